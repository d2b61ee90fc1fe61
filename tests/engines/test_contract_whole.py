"""Whole generations, and what the cache held of a read, for every engine."""

import asyncio
from contextlib import aclosing
from typing import cast

import pytest

from reasonrt.engines.linked import LinkedEngine
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.engines.whole import generate_whole
from reasonrt.errors import RequestError
from reasonrt.ports import Engine
from reasonrt.types import FinishReason, Message, Sampling, TokenDelta

MAX_TOKENS = 48
NUMBERS = (23, 47, 58, 91)


@pytest.fixture(
    params=["scripted", "linked", *(pytest.param(kind, marks=pytest.mark.vllm) for kind in ("vllm", "remote"))]
)
def engine(request: pytest.FixtureRequest) -> Engine:
    name = "target_engine" if request.param == "vllm" else f"{request.param}_engine"
    return cast(Engine, request.getfixturevalue(name))


def is_scripted(engine: Engine) -> bool:
    return isinstance(engine, ScriptedEngine | LinkedEngine)


def ask(engine: Engine, number: int = NUMBERS[0]) -> list[int]:
    question = f"Solve the following multiplication: {number} * 73. Give only the result as your final answer."
    return engine.tokenizer.chat((Message("user", question),))


async def collect(engine: Engine, prompt: list[int], sampling: Sampling) -> list[TokenDelta]:
    async with aclosing(engine.generate(prompt, sampling)) as stream:
        deltas = [delta async for delta in stream]
        assert stream.passes == stream.generated_tokens == len(ids_of(deltas))
    return deltas


async def collect_whole(engine: Engine, prompt: list[int], samplings: list[Sampling]) -> dict[int, TokenDelta]:
    async with aclosing(generate_whole(engine, prompt, samplings)) as stream:
        ended = [item async for item in stream]
        assert stream.passes == stream.generated_tokens == sum(len(whole.token_ids) for _, whole in ended)
    assert sorted(index for index, _ in ended) == list(range(len(samplings)))  # each once
    return dict(ended)


def ids_of(deltas: list[TokenDelta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


async def test_whole_generations_are_those_that_would_have_been_streamed(engine: Engine) -> None:
    samplings = [
        Sampling(MAX_TOKENS),
        Sampling(7, temperature=1.0, seed=3),
        Sampling(MAX_TOKENS, logprobs=True, top_logprobs=3),
        Sampling(400),
    ]
    streamed = [await collect(engine, ask(engine), sampling) for sampling in samplings]

    for index, whole in (await collect_whole(engine, ask(engine), samplings)).items():
        deltas, sampling = streamed[index], samplings[index]
        # in a batch, a real model rounds otherwise: two tokens that were equally likely may change places
        same = None if isinstance(engine, ScriptedEngine) else 7
        assert whole.token_ids[:same] == tuple(ids_of(deltas))[:same]
        assert whole.finish_reason is deltas[-1].finish_reason
        assert len(whole.logprobs) == sampling.logprobs * len(whole.token_ids)
        assert len(whole.top_logprobs) == bool(sampling.top_logprobs) * len(whole.token_ids)


async def test_whole_generations_of_one_sampling_are_drawn_apart(engine: Engine) -> None:
    wholes = await collect_whole(engine, ask(engine), [Sampling(400, temperature=1.0)] * 5)

    assert all(whole.token_ids[-1] in engine.tokenizer.eos_token_ids for whole in wholes.values())
    assert all(whole.finish_reason is FinishReason.STOP for whole in wholes.values())
    if not isinstance(engine, ScriptedEngine | LinkedEngine):
        assert len({whole.token_ids for whole in wholes.values()}) > 1


async def test_whole_generations_come_as_they_end(engine: Engine) -> None:
    samplings = [Sampling(max_tokens) for max_tokens in (200, 1, 20)]

    async with aclosing(generate_whole(engine, ask(engine), samplings)) as stream:
        order = [index async for index, _ in stream]

    assert order.index(1) < order.index(2)


async def test_closing_whole_generations_aborts_their_work(engine: Engine) -> None:
    before = engine.generated_tokens if isinstance(engine, ScriptedEngine) else 0
    stream = generate_whole(engine, ask(engine), [Sampling(4), Sampling(400), Sampling(400)])
    index, first = await anext(stream)

    await stream.aclose()
    counted = stream.generated_tokens
    await stream.aclose()
    await asyncio.sleep(0.1)

    assert index == 0
    assert len(first.token_ids) <= stream.generated_tokens == counted < 400
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    if isinstance(engine, ScriptedEngine):
        assert engine.running == 0
        assert engine.generated_tokens == before + counted


async def test_whole_generations_that_never_began_cost_nothing(engine: Engine) -> None:
    stream = generate_whole(engine, ask(engine), [Sampling(MAX_TOKENS)] * 2)

    await stream.aclose()

    assert stream.generated_tokens == 0
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_one_whole_generation_that_does_not_fit_is_the_error_of_all(engine: Engine) -> None:
    with pytest.raises(RequestError, match="max_model_len 1024"):
        await collect_whole(engine, ask(engine), [Sampling(MAX_TOKENS), Sampling(5000)])

    if isinstance(engine, ScriptedEngine):
        assert engine.running == 0


async def test_what_the_cache_held_of_a_read_is_told(engine: Engine) -> None:
    prompt = ask(engine, 8192) * 3
    readings = [await engine.read(prompt, [2], "of the reader") for _ in range(2)]
    other = await engine.read(prompt, [2], "of another")

    assert 0 < readings[1].cached_tokens < len(prompt)
    assert readings[0].cached_tokens == other.cached_tokens == 0
