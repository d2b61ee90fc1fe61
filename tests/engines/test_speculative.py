"""vLLM's own speculation behind the port: the same text, counted exactly, with reads beside it."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, aclosing
from pathlib import Path
from typing import Any

import pytest

from reasonrt.config import VllmConfig
from reasonrt.engines.build import build_engine
from reasonrt.engines.vllm import VllmEngine
from reasonrt.engines.vllm_settings import VllmSettings
from reasonrt.errors import ConfigError, EngineError
from reasonrt.types import Message, Sampling, TokenDelta

NUMBERS = (23, 47, 58, 91)
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
DRAFT = {"method": "draft_model", "model": "zoo:nano-draft", "num_speculative_tokens": 4}


def ask(engine: VllmEngine, number: int) -> list[int]:
    question = f"Solve the following multiplication: {number} * 73. Give only the result as your final answer."
    return engine.tokenizer.chat((Message("user", question),))


async def collect(engine: VllmEngine, prompt: list[int], sampling: Sampling) -> list[TokenDelta]:
    async with aclosing(engine.generate(prompt, sampling)) as stream:
        deltas = [delta async for delta in stream]
        assert stream.generated_tokens == sum(len(delta.token_ids) for delta in deltas)
    return deltas


def ids_of(deltas: list[TokenDelta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


@pytest.fixture(scope="module", params=[NGRAM, DRAFT], ids=["ngram", "draft_model"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[VllmEngine]:
    core = str(min(os.sched_getaffinity(0)))  # not the one of the engine that it is compared with
    config = VllmConfig(model="zoo:nano-target", kv_cache_mib=64, cores=core, speculative=request.param)
    built = build_engine("target", config)
    assert isinstance(built, VllmEngine)
    yield await built.start()
    await built.aclose()


@pytest.mark.vllm
async def test_the_text_is_that_of_the_model_alone(engine: VllmEngine, target_engine: VllmEngine) -> None:
    for number in NUMBERS:
        deltas = await collect(engine, ask(engine, number), Sampling(64))
        alone = await collect(target_engine, ask(engine, number), Sampling(64))

        assert max(len(delta.token_ids) for delta in deltas) > 1  # speculation was taken
        # several tokens at once round otherwise: two that are equally likely may change places
        assert ids_of(deltas)[:8] == ids_of(alone)[:8]


@pytest.mark.vllm
async def test_reads_beside_it_and_the_highest_log_probabilities(engine: VllmEngine) -> None:
    sampling = Sampling(64, logprobs=True, top_logprobs=5)
    candidates = sorted(engine.tokenizer.vocabulary())[:9]
    lone = (await engine.read(ask(engine, NUMBERS[0]), candidates)).logprobs
    alone = await collect(engine, ask(engine, NUMBERS[0]), sampling)

    async def read_again_and_again() -> list[tuple[float, ...]]:
        return [(await engine.read(ask(engine, NUMBERS[0]), candidates)).logprobs for _ in range(12)]

    together, reads = await asyncio.gather(
        asyncio.gather(*(collect(engine, ask(engine, number), sampling) for number in NUMBERS)), read_again_and_again()
    )

    assert all(read == pytest.approx(lone, abs=0.1) for read in reads)
    first, lonely = ([place for delta in deltas for place in delta.top_logprobs] for deltas in (together[0], alone))
    assert all(place == pytest.approx(other, abs=0.1) for place, other in zip(first[:8], lonely[:8], strict=True))
    for deltas in together:
        for delta in deltas:
            for logprob, place in zip(delta.logprobs, delta.top_logprobs, strict=True):
                assert logprob == place[0] > place[-1] > -100
            assert len(delta.top_logprobs) == len(delta.token_ids)


@pytest.mark.vllm
@pytest.mark.parametrize("is_late", [False, True])
async def test_passes_are_counted_one_by_one(
    engine: VllmEngine, counted_by_vllm: Callable[[VllmEngine], AbstractContextManager[list[int]]], is_late: bool
) -> None:
    """By vLLM's own count of what its core hands over; whoever is late finds several outputs joined."""
    with counted_by_vllm(engine) as counts:
        async with aclosing(engine.generate(ask(engine, NUMBERS[0]), Sampling(64))) as stream:
            await anext(stream)
            await asyncio.sleep(0.5 * is_late)
            async for _ in stream:
                pass
        whole = engine.generate_whole(ask(engine, NUMBERS[1]), [Sampling(64), Sampling(20), Sampling(400)])
        async for index, _ in whole:
            if index == 0:
                break  # the last one is aborted
        await whole.aclose()

    assert stream.passes + whole.passes == len(counts)
    assert stream.generated_tokens + whole.generated_tokens == sum(counts)
    assert stream.passes < stream.generated_tokens


@pytest.mark.vllm
async def test_an_abort_is_counted_exactly(engine: VllmEngine) -> None:
    stream = engine.generate(ask(engine, NUMBERS[0]), Sampling(400))
    first = await anext(stream)
    await stream.aclose()

    assert len(first.token_ids) <= stream.generated_tokens < 400


@pytest.mark.vllm
@pytest.mark.parametrize("speculative", [{"method": "nonsense", "num_speculative_tokens": 4}, {"method": "ngram"}])
async def test_what_vllm_cannot_do_is_said_in_one_line(nano_target: Path, speculative: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="did not start") as caught:
        await VllmEngine("target", nano_target, VllmSettings(kv_cache_mib=64, speculative=speculative)).start()

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_draft_model_is_found_as_any_other() -> None:
    engine = build_engine("target", VllmConfig(model="zoo:nano-target", speculative=DRAFT))
    assert isinstance(engine, VllmEngine)
    assert engine.settings.speculative
    assert Path(engine.settings.speculative["model"]).is_dir()

    with pytest.raises(ConfigError, match="the zoo has no model 'zoo:nothing'"):
        build_engine("target", VllmConfig(model="zoo:nano-target", speculative=DRAFT | {"model": "zoo:nothing"}))
