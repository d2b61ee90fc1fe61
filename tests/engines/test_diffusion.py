"""Block diffusion as an engine: what it adds to the batcher, and what happens to requests when something fails."""

import asyncio
import json
import logging
import os
import pickle
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reasonrt.config import DiffusionConfig, load_config
from reasonrt.diffusion.batcher import Batcher
from reasonrt.diffusion.checkpoints import load_model
from reasonrt.diffusion.decoding import read_decoding
from reasonrt.diffusion.job import Job
from reasonrt.diffusion.model import DiffusionModel, attend_among_rows
from reasonrt.diffusion.sampling import Drawing
from reasonrt.diffusion.writers import Settled, Task
from reasonrt.engines.build import build_engine
from reasonrt.engines.diffusion import DiffusionEngine, DiffusionSettings, _DraftLogprobs
from reasonrt.engines.linked import LinkedEngine
from reasonrt.errors import CapabilityError, ConfigError, EngineError, RequestError
from reasonrt.kernels.row_stats import row_stats
from reasonrt.metering import MeteredEngine
from reasonrt.ports import Capability, Verified, canvas_positions
from reasonrt.scopes import Scope
from reasonrt.types import FinishReason, Limits, Message, Sampling, TokenDelta
from tests.engines.conftest import write_random_model

CONTEXTS = ("causal", "block")
PROMPT = [20, 300, 301, 302, 303, 304, 305, 306, 307, 308, 309, 310, 311]
LONG = [25, *PROMPT[1:]]  # whose text is longer than 300 tokens
DECODINGS: tuple[dict[str, Any], ...] = (
    {},
    {"strategy": "static", "passes": 3, "block_length": 6},
    {"strategy": "entropy", "entropy_bound": 6.0, "residual": True},
    {"strategy": "sub_blocks", "sub_block_length": 4, "threshold": 0.2},
)


@pytest.fixture(scope="module", params=CONTEXTS)
async def engine(request: pytest.FixtureRequest, diffusion_folder: Callable[[str], Path]) -> AsyncIterator[Any]:
    async with running(diffusion_folder(request.param)) as engine:
        yield engine


@pytest.fixture(scope="module")
async def causal_engine(diffusion_folder: Callable[[str], Path]) -> AsyncIterator[Any]:
    async with running(diffusion_folder("causal")) as engine:
        yield engine


class running:  # noqa: N801 (read as a verb)
    """An engine that has started, until the block ends."""

    def __init__(self, folder: Path, name: str = "diffusion", **settings: Any) -> None:
        self.engine = DiffusionEngine(name, folder, DiffusionSettings(**{"max_num_seqs": 8} | settings))

    async def __aenter__(self) -> DiffusionEngine:
        return await self.engine.start()

    async def __aexit__(self, *error: object) -> None:
        await self.engine.aclose()


async def write(engine: Any, prompt: list[int], sampling: Sampling, salt: str = "") -> list[TokenDelta]:
    async with aclosing(engine.generate(prompt, sampling, salt)) as stream:
        return [delta async for delta in stream]


async def write_ids(engine: Any, prompt: list[int], sampling: Sampling, salt: str = "") -> list[int]:
    return [token_id for delta in await write(engine, prompt, sampling, salt) for token_id in delta.token_ids]


def batcher_of(engine: DiffusionEngine) -> Batcher:
    assert engine._worker is not None
    return engine._worker._batcher


async def rest_of(stream: Any) -> list[TokenDelta]:
    return [delta async for delta in stream]


def written_alone(
    model: DiffusionModel, task: Task, decoding: dict[str, Any], drawing: Drawing
) -> tuple[list[Settled], Job]:
    """What a batcher without an engine reports of one job."""
    heard: list[Settled] = []
    job = Job(task, read_decoding(decoding, model.shape), drawing, lambda _, settled: heard.append(settled))
    batcher = Batcher(model, 1, 256)
    batcher.add(job)
    while not batcher.is_idle:
        batcher.step()
    return heard, job


# what it writes


@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("decoding", DECODINGS, ids=lambda decoding: decoding.get("strategy", "default"))
async def test_token_identity_with_the_batcher_alone(
    decoding: dict[str, Any], temperature: float, engine: DiffusionEngine
) -> None:
    model = load_model(engine.model, torch.float32)
    task = Task(tuple(PROMPT), 40, frozenset(model.shape.end_token_ids))
    heard, job = written_alone(model, task, decoding, Drawing(temperature, 0.95, 7))

    sampling = Sampling(40, temperature, 0.95, seed=7, logprobs=True, decoding=decoding)
    stream = engine.generate(PROMPT, sampling)
    deltas = [delta async for delta in stream]

    assert [list(delta.token_ids) for delta in deltas] == [settled.tokens for settled in heard]
    logprobs = [logprob for delta in deltas for logprob in delta.logprobs]
    assert logprobs == pytest.approx([chance for settled in heard for chance in settled.logprobs], abs=1e-4)
    assert deltas[-1].finish_reason is heard[-1].finish is not None
    assert (stream.passes, stream.canvas_positions) == (job.passes, job.canvas)


async def test_batch_independence(engine: DiffusionEngine) -> None:
    def sampling(index: int) -> Sampling:
        return Sampling(20 + 3 * index, seed=index, temperature=0.8 * (index % 2), decoding=DECODINGS[index % 4])

    prompts = [[20 + index, *PROMPT[: 4 + index]] for index in range(12)]
    alone = [await write_ids(engine, prompt, sampling(i), f"alone {i}") for i, prompt in enumerate(prompts)]

    async def later(index: int) -> list[int]:
        await asyncio.sleep(0.003 * index)
        return await write_ids(engine, prompts[index], sampling(index), f"crowd {index}")

    assert await asyncio.gather(*map(later, range(12))) == alone


async def test_logprobs_are_those_of_the_pass_that_committed_the_token(causal_engine: DiffusionEngine) -> None:
    """With one position a pass, from left to right, each is what a read after the text so far says."""
    decoding = {"strategy": "sequential", "block_length": 1}
    ids: list[int] = []
    logprobs: list[float] = []
    for delta in await write(causal_engine, PROMPT, Sampling(6, logprobs=True, decoding=decoding)):
        ids += delta.token_ids
        logprobs += delta.logprobs

    for index, (token_id, logprob) in enumerate(zip(ids, logprobs, strict=True)):
        task = Task((*PROMPT, *ids[:index]), 1, frozenset())
        model = batcher_of(causal_engine).model
        (settled,) = written_alone(model, task, decoding, Drawing())[0]
        assert settled.tokens == [token_id]
        assert settled.logprobs == pytest.approx([logprob], abs=1e-4)


async def test_defaults_of_the_configuration_lie_under_those_of_the_request(
    diffusion_folder: Callable[[str], Path],
) -> None:
    async with running(diffusion_folder("causal"), decoding={"strategy": "sequential", "block_length": 4}) as engine:
        plain = await write_ids(engine, PROMPT, Sampling(12))
        other = await write_ids(engine, PROMPT, Sampling(12, decoding={"strategy": "threshold"}))
        spelled = {"strategy": "threshold", "block_length": 4}
        assert other == await write_ids(engine, PROMPT, Sampling(12, decoding=spelled))
        assert plain == await write_ids(engine, PROMPT, Sampling(12, decoding={}))

        with pytest.raises(RequestError, match="block_length must be at most 8"):
            await write(engine, PROMPT, Sampling(4, decoding={"block_length": 9}))
        with pytest.raises(RequestError, match="top_logprobs do not go with edit_threshold"):
            await write(engine, PROMPT, Sampling(4, top_logprobs=1, decoding={"edit_threshold": 0.5}))


async def test_stop_tokens_are_ends_beside_the_models_own(engine: DiffusionEngine) -> None:
    text = await write_ids(engine, PROMPT, Sampling(40))
    stop = text[1]

    deltas = await write(engine, PROMPT, Sampling(40, stop_token_ids=frozenset({stop})))

    ids = [token_id for delta in deltas for token_id in delta.token_ids]
    assert ids[-1] == stop
    assert deltas[-1].finish_reason is FinishReason.STOP


async def test_speculating_with_itself_it_writes_what_the_model_writes_and_verifies_it(
    speculating_folder: Path,
) -> None:
    async with running(speculating_folder, decoding={"strategy": "self_speculation"}) as engine:
        prompt = engine.tokenizer.chat((Message("user", "What is 12 + 30?"),))
        ids = await write_ids(engine, prompt, Sampling(80))
        assert "12 + 30 = 42" in engine.tokenizer.decode(ids)
        assert (await engine.verify(prompt, ids)).token_ids == tuple(ids)
        slipped = [*ids[:5], ids[5] + 1, *ids[6:]]
        assert (await engine.verify(prompt, slipped)).token_ids == tuple(ids[:6])
        drawn = Sampling(40, temperature=2.0, top_p=0.95, seed=3)
        ids = await write_ids(engine, prompt, drawn)
        assert (await engine.verify(prompt, ids, drawn)).token_ids == tuple(ids)
        slipped = [*ids[:5], ids[5] + 1, *ids[6:]]
        assert (await engine.verify(prompt, slipped, drawn)).token_ids == tuple(ids[:6])
        other = Sampling(40, temperature=2.0, top_p=0.95, seed=4)
        found = list((await engine.verify(prompt, ids, other)).token_ids)
        assert found == (await write_ids(engine, prompt, other))[: len(found)]
        ids = await write_ids(engine, prompt, Sampling(80))
        reading = await engine.read(prompt, [ids[0], ids[1]])
        (first,) = await write(engine, prompt, Sampling(1, logprobs=True))
        assert reading.logprobs[0] == pytest.approx(first.logprobs[0], abs=1e-3)


@pytest.mark.parametrize("num_tokens", [100, 20_000])
def test_of_what_a_pass_predicts_for_a_draft_no_row_is_kept(num_tokens: int) -> None:
    drafted = list(range(32))
    watch = _DraftLogprobs(drafted, 7, Sampling(1, logprobs=True, top_logprobs=3))
    logits = torch.randn(32, num_tokens, generator=torch.Generator().manual_seed(0))

    watch(np.arange(7, 39), row_stats(logits), logits)

    assert len(pickle.dumps(watch)) < 10_000
    found = watch.fill(Verified((0,)), -1.0)
    expected = logits.double().log_softmax(-1)
    assert found.logprobs == pytest.approx([float(row[i]) for i, row in zip(drafted, expected, strict=True)], abs=1e-4)
    assert list(found.top_token_ids) == [tuple(row.topk(3).indices.tolist()) for row in expected]
    assert found.own_logprob == -1.0


async def test_verify_of_a_draft_longer_than_a_pass_is_a_plain_causal_pass(causal_engine: DiffusionEngine) -> None:
    draft = [int(token_id) for token_id in np.random.default_rng(0).integers(2, 2048, 400)]
    model = load_model(causal_engine.model, torch.float32)
    expected = token_by_token(model, PROMPT, draft)

    verified = await causal_engine.verify(PROMPT, draft)

    assert verified.token_ids == (expected[0],)
    own: list[int] = []
    while len(own) < 20:  # one more each time, since what follows is not what the model writes
        own = list((await causal_engine.verify(PROMPT, [*own, *draft])).token_ids)
    assert own == [token_by_token(model, [*PROMPT, *own[:index]], [0])[0] for index in range(len(own))]


def token_by_token(model: DiffusionModel, prompt: list[int], draft: list[int]) -> list[int]:
    tokens = torch.tensor([*prompt, *draft])
    positions = torch.arange(len(tokens))
    with torch.inference_mode():
        hidden = model(model.embedding(tokens), positions, attend_among_rows(positions + 1))
        return [int(i) for i in model.logits(hidden)[len(prompt) - 1 : -1].argmax(-1)]


# what it refuses


async def test_request_that_cannot_fit_is_refused_and_nobody_else_notices(engine: DiffusionEngine) -> None:
    room = engine.max_model_len
    alone = await write_ids(engine, PROMPT, Sampling(60), "alone")
    other = asyncio.create_task(write_ids(engine, PROMPT, Sampling(60), "other"))
    await asyncio.sleep(0.005)
    before = batcher_of(engine)._pass

    for prompt, new_tokens in (([5] * room, 1), (PROMPT, room), ([5] * 3 * room, 4)):
        with pytest.raises(RequestError, match=f"do not fit into max_model_len {room}"):
            await anext(engine.generate(prompt, Sampling(new_tokens)))
    with pytest.raises(RequestError, match="the prompt is empty"):
        await anext(engine.generate([], Sampling(4)))
    for token_id in (-1, 2048, 2**70):
        with pytest.raises(RequestError, match=r"the prompt has the token id .* \[0, 2048\)"):
            await anext(engine.generate([5, token_id], Sampling(4)))
    with pytest.raises(RequestError, match="unknown option 'mood'; block diffusion knows"):
        await anext(engine.generate(PROMPT, Sampling(4, decoding={"mood": 1})))

    assert engine.running <= 1
    assert batcher_of(engine)._pass >= before
    assert await other == alone


async def test_blocks_are_rounded_up_within_the_models_positions(tmp_path: Path) -> None:
    for context in CONTEXTS:
        folder = write_random_model(tmp_path / context, context, max_positions=64)
        async with running(folder) as engine:
            assert engine.max_model_len == 56
            for num_prompt in (1, 3, 8, 55):
                deltas = await write(engine, [5] * num_prompt, Sampling(56 - num_prompt))
                assert deltas[-1].finish_reason is not None
            with pytest.raises(RequestError, match="max_model_len 56"):
                await write(engine, [5] * 3, Sampling(54))


async def test_what_it_cannot_do_it_says(diffusion_folder: Callable[[str], Path], engine: DiffusionEngine) -> None:
    can_verify = engine.shape.context == "causal"
    assert (Capability.VERIFY in engine.capabilities) is can_verify
    if not can_verify:
        with pytest.raises(CapabilityError, match="does not write token by token"):
            await engine.verify(PROMPT, [5])
    else:
        with pytest.raises(RequestError, match="the draft is empty"):
            await engine.verify(PROMPT, [])
        with pytest.raises(RequestError, match="the draft has the token id 9999"):
            await engine.verify(PROMPT, [9999])
    with pytest.raises(CapabilityError, match="no scalar head"):
        await engine.score(PROMPT)
    with pytest.raises(RequestError, match="the candidate has the token id -2"):
        await engine.read(PROMPT, [-2])


async def test_read_is_normalized_and_never_expects_the_mask_token(engine: DiffusionEngine) -> None:
    logprobs = (await engine.read(PROMPT, range(2048))).logprobs

    assert logprobs[engine.shape.mask_token_id] == -np.inf
    assert sum(map(np.exp, logprobs)) == pytest.approx(1.0)


def test_configuration_that_does_not_fit_is_refused(diffusion_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = diffusion_folder("block")
    with pytest.raises(ConfigError, match="decoding: unknown option 'mood'"):
        DiffusionEngine("d", folder, DiffusionSettings(decoding={"mood": 1}))
    with pytest.raises(ConfigError, match="decoding: residual_start 'reference' needs an engine with a reference"):
        DiffusionEngine("d", folder, DiffusionSettings(decoding={"residual_start": "reference"}))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        DiffusionEngine("d", tmp_path)
    with pytest.raises(ConfigError, match="too few for blocks of 8"):
        DiffusionEngine("d", write_random_model(tmp_path / "short", "block", max_positions=9))


def test_a_reference_model_writes_the_same_tokens(diffusion_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """As many tokens are not enough: two of them have changed places here."""
    folder = diffusion_folder("block")
    other = shutil.copytree(folder, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))

    DiffusionEngine("d", folder, DiffusionSettings(reference_model=diffusion_folder("causal")))
    with pytest.raises(ConfigError, match="writes other tokens than the model; give one with the same tokenizer"):
        DiffusionEngine("d", folder, DiffusionSettings(reference_model=other))


def test_engine_is_built_from_the_configuration(diffusion_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = diffusion_folder("causal")
    (tmp_path / "reasonrt.yaml").write_text(
        f"engines:\n  far: {{kind: diffusion, model: {folder}, max_model_len: 77, decoding: {{threshold: 0.5}}}}\n"
        f"  near: {{kind: diffusion, model: {folder}, own_process: false, reference_model: {folder}}}\n"
    )
    config = load_config(tmp_path / "reasonrt.yaml")

    far, near = (build_engine(role, engine_config) for role, engine_config in config.engines.items())

    assert isinstance(far, LinkedEngine)
    assert (far.name, far.max_model_len) == ("far", 77)
    assert isinstance(near, DiffusionEngine)
    assert near.settings.reference_model == folder
    assert far.model_fingerprint == near.model_fingerprint
    assert far.fingerprint != near.fingerprint
    (tmp_path / "reasonrt.yaml").write_text("engines: {d: {kind: diffusion, model: m, blocks: 3}}")
    with pytest.raises(ConfigError, match=r"engines\.d\.blocks: extra inputs are not permitted"):
        load_config(tmp_path / "reasonrt.yaml")


def test_fingerprint_is_of_what_is_computed(diffusion_folder: Callable[[str], Path]) -> None:
    def fingerprint(**settings: Any) -> str:
        return DiffusionEngine("d", diffusion_folder("block"), DiffusionSettings(**settings)).fingerprint

    plain = fingerprint()
    assert plain == fingerprint(cores="0", niceness=3, max_num_seqs=2, kv_cache_mib=9, compile=True, max_model_len=99)
    assert plain == fingerprint(decoding={"threshold": 0.9})
    others = [
        fingerprint(dtype="float16"),
        fingerprint(decoding={"threshold": 0.8}),
        fingerprint(reference_model=diffusion_folder("causal")),
    ]
    assert len({plain, *others}) == 4


# memory, failures, leaving


async def test_memory_decides_how_many_run_concurrently(
    diffusion_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = diffusion_folder("causal")  # 256 bytes a token in fp32
    with caplog.at_level(logging.WARNING):
        async with running(folder, max_num_seqs=64, kv_cache_mib=1) as engine:
            assert len(batcher_of(engine)._slots) == 3
            assert "1 MiB hold 3 concurrent sequences of 1024 tokens, not 64" in caplog.text
            texts = await asyncio.gather(*(write_ids(engine, PROMPT, Sampling(12), str(i)) for i in range(9)))
            assert len(set(map(tuple, texts))) == 1

    engine = DiffusionEngine("big", folder, DiffusionSettings(max_model_len=100_000, kv_cache_mib=1))
    engine.max_model_len = 100_000
    with pytest.raises(ConfigError, match=r"one sequence of 100000 tokens takes 25 MiB; kv_cache_mib is 1, and"):
        await engine.start()


@contextmanager
def broken(model: DiffusionModel, error: Exception) -> Iterator[None]:
    """Each pass fails, in the middle of the model."""

    def fail(*args: Any) -> Any:
        raise error

    layer = model.layers[1]
    layer.mix = fail
    try:
        yield
    finally:
        del layer.mix


async def test_out_of_memory_in_a_pass_ends_its_requests_and_no_others(
    diffusion_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    async with running(diffusion_folder("block"), max_num_seqs=2) as engine:
        expected = await write_ids(engine, PROMPT, Sampling(30))
        model = batcher_of(engine).model
        streams = [engine.generate(LONG, Sampling(900), str(index)) for index in range(2)]
        firsts = [await anext(stream) for stream in streams]
        waiting = asyncio.create_task(write_ids(engine, PROMPT, Sampling(30), "waits"))
        with broken(model, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")):
            for stream in streams:
                with pytest.raises(EngineError, match=r"a forward pass failed: OutOfMemoryError: CUDA out of memory"):
                    await rest_of(stream)
                with pytest.raises(StopAsyncIteration):
                    await anext(stream)
            with pytest.raises(EngineError):  # it got a slot while memory was short
                await waiting

        assert all(first.token_ids for first in firsts)
        assert engine.running == engine.restarts == 0
        assert await write_ids(engine, PROMPT, Sampling(30), "after") == expected


async def test_numbers_that_are_none_end_the_pass_and_leave_nothing_in_the_cache(
    engine: DiffusionEngine, caplog: pytest.LogCaptureFixture
) -> None:
    expected = await write_ids(engine, PROMPT, Sampling(30), "healthy")
    weight = batcher_of(engine).model.layers[0].qkv.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
    with pytest.raises(EngineError, match="the model computes no finite log-probabilities"):
        await write(engine, PROMPT, Sampling(30), "poisoned")
    with torch.no_grad():
        weight.copy_(kept)

    deltas = await write(engine, PROMPT, Sampling(30), "poisoned")

    assert deltas[0].cached_tokens == 0
    assert [token_id for delta in deltas for token_id in delta.token_ids] == expected


async def test_dead_thread_fails_what_runs_and_comes_back(
    diffusion_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    async with running(diffusion_folder("causal")) as engine:
        expected = await write_ids(engine, PROMPT, Sampling(30))
        stream = engine.generate(LONG, Sampling(900))
        await anext(stream)

        def die() -> None:
            raise SystemExit

        batcher_of(engine).step = die
        with pytest.raises(EngineError, match="died or was closed while it worked on this request; ask again"):
            await rest_of(stream)
        await stream.aclose()

        assert await write_ids(engine, PROMPT, Sampling(30)) == expected
        assert (engine.restarts, engine.running) == (1, 0)


async def test_closing_the_engine_fails_what_runs(diffusion_folder: Callable[[str], Path]) -> None:
    async with running(diffusion_folder("causal"), "closes") as engine:
        stream = engine.generate(LONG, Sampling(900))
        await anext(stream)
        await engine.aclose()
        with pytest.raises(EngineError, match="died or was closed"):
            await rest_of(stream)
        assert not [thread for thread in threading.enumerate() if thread.name == "passes of closes"]


async def test_cancellation_takes_a_request_out_within_a_pass(
    engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = batcher_of(engine)
    step = batcher.step

    def step_slowly() -> None:
        time.sleep(0.02)  # far longer than this thread waits on a busy machine
        step()

    monkeypatch.setattr(batcher, "step", step_slowly)
    stream = engine.generate(LONG, Sampling(900))
    first = await anext(stream)

    before = batcher._pass
    await stream.aclose()
    passes = batcher._pass - before
    counted = stream.generated_tokens, stream.passes, stream.canvas_positions

    assert passes <= 2 + len(first.token_ids) + stream.passes // 4
    assert batcher.is_idle
    assert engine.running == 0
    done = batcher._pass
    await asyncio.sleep(0.05)
    assert batcher._pass == done
    assert counted == (stream.generated_tokens, stream.passes, stream.canvas_positions)
    assert stream.canvas_positions == 8 * stream.passes
    assert len(first.token_ids) <= stream.generated_tokens < 900


@pytest.mark.parametrize("num_deltas", [0, 1, 3, 12])
async def test_cancelled_task_in_the_middle_of_a_block_leaves_the_others_alone(
    num_deltas: int, engine: DiffusionEngine
) -> None:
    alone = await write_ids(engine, PROMPT, Sampling(40), f"alone {num_deltas}")
    stays = asyncio.create_task(write_ids(engine, PROMPT, Sampling(40), f"stays {num_deltas}"))
    has_come = asyncio.Event()

    async def write_on() -> None:
        sampling = Sampling(300, decoding={"strategy": "sequential"})
        async with aclosing(engine.generate(LONG, sampling, f"leaves {num_deltas}")) as stream:
            for _ in range(num_deltas):
                await anext(stream)
            has_come.set()
            await rest_of(stream)

    leaves = asyncio.create_task(write_on())
    await has_come.wait()
    leaves.cancel()

    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert await stays == alone
    assert engine.running == 0


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux alone binds threads to cores")
async def test_thread_takes_its_place(diffusion_folder: Callable[[str], Path]) -> None:
    core = max(os.sched_getaffinity(0))
    async with running(diffusion_folder("causal"), "placed", cores=str(core), niceness=7):
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "passes of placed"]
        assert thread.native_id is not None
        assert os.sched_getaffinity(thread.native_id) == {core}
        assert os.getpriority(os.PRIO_PROCESS, thread.native_id) == 7
    with pytest.raises(ConfigError, match="cores '5000' are not there"):
        async with running(diffusion_folder("causal"), cores="5000"):
            pass


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_compiled_layers_write_the_same(diffusion_folder: Callable[[str], Path]) -> None:
    """About a minute: the C++ compiler."""

    async def written(engine: DiffusionEngine) -> list[list[int]]:
        texts = [await write_ids(engine, PROMPT[:length], Sampling(30)) for length in (3, 9, 13)]
        return [token_ids[:8] for token_ids in texts]  # compiled code rounds otherwise, and on each CPU in its own way

    async with running(diffusion_folder("block")) as engine:
        expected = await written(engine)
    async with running(diffusion_folder("block"), compile=True) as engine:
        assert await written(engine) == expected


# over a link, and in usage


@pytest.fixture(scope="module")
async def linked_engine(diffusion_folder: Callable[[str], Path]) -> AsyncIterator[Any]:
    config = DiffusionConfig(kind="diffusion", model=str(diffusion_folder("causal")))
    engine = await build_engine("diffusion", config).start()
    yield engine
    await engine.aclose()


async def test_passes_and_canvas_cross_the_link(causal_engine: DiffusionEngine, linked_engine: LinkedEngine) -> None:
    for decoding in DECODINGS:
        sampling = Sampling(40, decoding=decoding)
        near, far = causal_engine.generate(PROMPT, sampling), linked_engine.generate(PROMPT, sampling)
        texts = [[delta.token_ids async for delta in stream] for stream in (near, far)]

        assert texts[0] == texts[1]
        assert near.generated_tokens == far.generated_tokens
        assert (far.passes, far.canvas_positions) == (near.passes, near.canvas_positions)
        assert far.canvas_positions > far.generated_tokens


async def test_passes_and_canvas_cross_the_link_after_an_early_close(linked_engine: LinkedEngine) -> None:
    stream = linked_engine.generate(LONG, Sampling(900))
    first = await anext(stream)
    seen = stream.passes

    await stream.aclose()

    counted: Any = await linked_engine._link.call("count", stream._id, session=stream._id)
    assert (counted.generated_tokens, counted.passes) == (stream.generated_tokens, stream.passes)
    assert counted.canvas_positions == stream.canvas_positions == 8 * stream.passes
    assert 1 <= seen <= stream.passes
    assert len(first.token_ids) <= stream.generated_tokens


@pytest.mark.parametrize("is_linked", [False, True])
async def test_usage_counts_passes_and_canvas_positions(
    is_linked: bool, causal_engine: DiffusionEngine, linked_engine: LinkedEngine
) -> None:
    metered = MeteredEngine(linked_engine if is_linked else causal_engine, Scope(Limits()))
    stream = metered.generate(PROMPT, Sampling(30))
    ids = [token_id async for delta in stream for token_id in delta.token_ids]
    closed = metered.generate(LONG, Sampling(900))
    await anext(closed)
    await closed.aclose()
    whole = metered.generate_whole(PROMPT, [Sampling(5), Sampling(9)])
    async for _ in whole:
        pass

    usage = metered.usage(committed_tokens=len(ids))

    streams: tuple[Any, ...] = (stream, closed, whole)
    assert usage.passes == sum(each.passes for each in streams) > 0
    assert usage.canvas == sum(map(canvas_positions, streams)) == 8 * usage.passes
    assert usage.generated == sum(each.generated_tokens for each in streams)


@pytest.mark.slow
async def test_event_loop_is_not_held_up_while_32_requests_decode(diffusion_folder: Callable[[str], Path]) -> None:
    """About 20 s: a process of its own, and some thousand tokens in it."""
    config = DiffusionConfig(kind="diffusion", model=str(diffusion_folder("causal")), max_num_seqs=32)
    sampling = Sampling(200, decoding={"strategy": "sequential", "passes": 8})
    engine = await build_engine("diffusion", config).start()
    quantiles: list[float] = []
    try:
        while len(quantiles) < 5 and min(quantiles, default=1.0) >= 0.020:  # now and then the machine itself is busy
            tasks = [asyncio.create_task(write_ids(engine, [20 + i, *PROMPT], sampling)) for i in range(32)]
            late: list[float] = []
            while not all(task.done() for task in tasks):
                before = time.perf_counter()
                await asyncio.sleep(0.005)
                late.append(time.perf_counter() - before - 0.005)
            await asyncio.gather(*tasks)
            assert len(late) > 50
            quantiles.append(float(np.quantile(late, 0.99)))
    finally:
        await engine.aclose()

    assert min(quantiles) < 0.020
