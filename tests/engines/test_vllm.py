"""What only real vLLM can show: exact accounting against its own count, death and return, and scoring models."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing
from pathlib import Path

import psutil
import pytest
from vllm.platforms import current_platform

from reasonrt.engines.vllm import VllmEngine
from reasonrt.engines.vllm_settings import VllmSettings, engine_arguments
from reasonrt.errors import CapabilityError, EngineError
from reasonrt.runtime import Runtime
from reasonrt.types import Completion, Limits, Message, Penalties, Request, Sampling

pytestmark = pytest.mark.vllm

Counted = Callable[[VllmEngine], AbstractContextManager[list[int]]]
QUESTION = "Solve the following multiplication: 29 * 73. Give only the result as your final answer."
LONG_QUESTION = f"Sort these numbers in ascending order: {', '.join(map(str, range(250, 10, -12)))}"
"""Each step of its answer names all numbers that are left."""


@pytest.mark.parametrize(
    ("policy", "options"),
    [("target", {}), ("draft", {}), ("self_consistency", {"k": 5, "temperature": 1.0})],
)
async def test_usage_adds_up_to_vllms_own_count(
    draft_engine: VllmEngine,
    target_engine: VllmEngine,
    counted_by_vllm: Counted,
    policy: str,
    options: dict[str, object],
) -> None:
    engines = {"draft": draft_engine, "target": target_engine}
    requests = [Request.ask(QUESTION.replace("29", str(n)), policy, options=options, seed=n) for n in range(21, 31)]

    with counted_by_vllm(draft_engine) as of_draft, counted_by_vllm(target_engine) as of_target:
        completions = [result async for _, result in Runtime(engines).solve_all(requests, 4)]

    for name, counts in (("draft", of_draft), ("target", of_target)):
        used = [result.usage[name] for result in completions if isinstance(result, Completion) and name in result.usage]
        assert sum(usage.generated for usage in used) == sum(counts)
        assert sum(usage.passes for usage in used) == len(counts)


@pytest.mark.parametrize("policy", ["target", "self_consistency"])
async def test_a_request_cut_by_its_deadline_is_counted_exactly_too(
    target_engine: VllmEngine, counted_by_vllm: Counted, policy: str
) -> None:
    runtime = Runtime({"target": target_engine})

    with counted_by_vllm(target_engine) as counts:
        completion = await runtime.complete(Request.ask(LONG_QUESTION, policy, limits=Limits(deadline_s=0.15)))

    assert completion.finish_reason == "deadline"
    assert completion.seconds < 5
    assert completion.usage["target"].generated == sum(counts)


@pytest.mark.parametrize("penalties", [Penalties(presence=2.0), Penalties(frequency=2.0), Penalties(repetition=3.0)])
async def test_penalties_make_tokens_rarer_that_are_there(target_engine: VllmEngine, penalties: Penalties) -> None:
    prompt = target_engine.tokenizer.chat((Message("user", LONG_QUESTION),))

    async def written(sampling: Sampling) -> list[int]:
        stream = target_engine.generate(prompt, sampling)
        return [token_id async for delta in stream for token_id in delta.token_ids]

    plain, penalised = await written(Sampling(96)), await written(Sampling(96, penalties=penalties))

    assert len(set(penalised)) / len(penalised) > len(set(plain)) / len(plain)


async def test_shared_prefixes_are_read_from_the_cache(target_engine: VllmEngine) -> None:
    prompt = target_engine.tokenizer.chat((Message("user", "Sort these numbers in ascending order: " + "7, " * 40),))
    for _ in range(2):
        stream = target_engine.generate(prompt, Sampling(2))
        deltas = [delta async for delta in stream]

    block = engine_arguments(target_engine.model, target_engine.settings, current_platform.is_cpu())["block_size"]
    assert deltas[0].cached_tokens == (len(prompt) - 1) // block * block  # whole ones, and one token is always computed


async def test_engine_that_hangs_fails_its_requests_and_comes_back(nano_draft: Path, counted_by_vllm: Counted) -> None:
    known = set(psutil.Process().children(recursive=True))
    engine = await VllmEngine("mortal", nano_draft, VllmSettings(kv_cache_mib=64)).start()
    try:
        prompt = engine.tokenizer.chat((Message("user", LONG_QUESTION),))
        with counted_by_vllm(engine) as counts:
            streams = [engine.generate(prompt, Sampling(400)) for _ in range(3)]
            whole = engine.generate_whole(prompt, [Sampling(400)] * 2)
            waiting = asyncio.create_task(anext(whole))
            for stream in streams:
                await anext(stream)
            await until_all_have_begun(engine, 5)
            for process in set(psutil.Process().children(recursive=True)) - known:
                if "EngineCor" in process.name():
                    process.suspend()
            with pytest.raises(EngineError, match="has not answered for 3 s, and was killed"):
                await engine.check_health(3.0)

            async def drain(index: int) -> None:
                async with aclosing(streams[index]) as stream:
                    async for _ in stream:
                        pass

            results = await asyncio.gather(*map(drain, range(3)), waiting, return_exceptions=True)
            await whole.aclose()
        assert whole.generated_tokens > 0
        assert sum(stream.generated_tokens for stream in streams) + whole.generated_tokens == sum(counts)
        completion = await Runtime({"target": engine}).complete(Request.ask(QUESTION))

        assert all(isinstance(result, EngineError) and "died" in str(result) for result in results)
        assert completion.finish_reason == "stop"
        assert engine.restarts == 1
    finally:
        await engine.aclose()
    give_up = time.monotonic() + 60.0  # processes that end on a busy machine take their time
    while left := [process for process in set(psutil.Process().children(recursive=True)) - known if is_alive(process)]:
        assert time.monotonic() < give_up, left
        await asyncio.sleep(0.2)


async def until_all_have_begun(engine: VllmEngine, count: int) -> None:
    """Until each of so many requests has a token."""
    states = engine._llm.output_processor.request_states
    async with asyncio.timeout(60):
        while sum(state.detokenizer.num_output_tokens() > 0 for state in states.values()) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "VLLM" in process.name()
    except psutil.NoSuchProcess:
        return False


async def test_a_scoring_model_scores_and_nothing_else(nano_draft: Path, tmp_path: Path) -> None:
    import shutil

    import torch
    from transformers import AutoConfig, Qwen3ForSequenceClassification

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(nano_draft, num_labels=1)
    model = Qwen3ForSequenceClassification(config).to(torch.bfloat16).eval()
    model.save_pretrained(tmp_path)
    shutil.copytree(
        nano_draft, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("config.json", "*.safetensors")
    )
    engine = await VllmEngine("reward", tmp_path, VllmSettings(scores=True, kv_cache_mib=64)).start()
    try:
        prompt = engine.tokenizer.chat((Message("user", QUESTION),))
        score = (await engine.score(prompt)).value
        with torch.no_grad():
            logit = model(torch.tensor([prompt])).logits[0, 0]

        assert score == pytest.approx(torch.sigmoid(logit.float()).item(), abs=0.02)
        with pytest.raises(CapabilityError, match="scoring model"):
            engine.generate(prompt, Sampling(1))
    finally:
        await engine.aclose()
