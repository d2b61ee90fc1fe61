"""Whole generations as one request sees them: with and without an engine's own method, exactly counted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from reasonrt import FinishReason, Limits, Request, Runtime
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import EngineError
from reasonrt.metering import MeteredEngine
from reasonrt.ports import Engine, GeneratesWhole
from reasonrt.scopes import LimitReached, Scope
from reasonrt.types import Sampling, TokenDelta

PROMPT = list(range(2, 42))
SAMPLINGS = [Sampling(tokens) for tokens in (5, 30, 60)]


class ThirdParty:
    """An engine with what the port demands and no more."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        if name == "generate_whole":
            raise AttributeError(name)
        return getattr(self._engine, name)


@pytest.fixture(params=["native", "third_party"])
def engines(request: pytest.FixtureRequest) -> tuple[ScriptedEngine, Any]:
    engine = ScriptedEngine("fake", "x" * 200, chunk_tokens=1, seconds_per_token=0.001)
    return engine, engine if request.param == "native" else ThirdParty(engine)


def test_the_third_party_has_no_whole_generations(engines: tuple[ScriptedEngine, Any]) -> None:
    engine, seen = engines

    assert isinstance(engine, GeneratesWhole)
    assert isinstance(seen, GeneratesWhole) == (seen is engine)


@pytest.mark.parametrize("end", ["finished", "closed", "cancelled", "dead"])
async def test_usage_is_exact_whatever_ends_them(engines: tuple[ScriptedEngine, Any], end: str) -> None:
    engine, seen = engines
    meter = MeteredEngine(seen, Scope(Limits(max_engine_calls=3)))
    ended: list[tuple[int, TokenDelta]] = []

    async def run() -> None:
        async with aclosing(meter.generate_whole(PROMPT, SAMPLINGS)) as stream:
            async for item in stream:
                ended.append(item)
                assert meter.pace.running == 3 - len(ended)
                if end == "closed":
                    break
                if end == "dead":
                    engine.kill()

    if end == "dead":
        with pytest.raises(EngineError, match="died"):
            await run()
    elif end == "cancelled":
        running = asyncio.create_task(run())
        while not ended and not running.done():  # noqa: ASYNC110
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    else:
        await run()

    assert [index for index, _ in ended] == ([0, 1, 2] if end == "finished" else [0])
    usage = meter.usage(0)
    assert usage.generated == engine.generated_tokens
    assert (usage.calls, usage.prefilled + usage.cached) == (3, 3 * len(PROMPT))
    assert meter.pace.running == engine.running == 0
    assert meter.pace.first_token_s is None  # what comes whole tells nothing of the first token


async def test_what_the_cache_held_counts_once_for_each(engines: tuple[ScriptedEngine, Any]) -> None:
    meter = MeteredEngine(engines[1], Scope(Limits(max_engine_calls=6)))
    for _ in range(2):
        async with aclosing(meter.generate_whole(PROMPT, SAMPLINGS)) as stream:
            async for _ in stream:
                pass

    assert meter.usage(0).cached == 3 * (len(PROMPT) - 1)
    assert meter.usage(0).prefilled == 3 * (len(PROMPT) + 1)


async def test_over_the_limit_on_calls_none_reaches_the_engine(engines: tuple[ScriptedEngine, Any]) -> None:
    meter = MeteredEngine(engines[1], Scope(Limits(max_engine_calls=2)))

    with pytest.raises(LimitReached):
        meter.generate_whole(PROMPT, SAMPLINGS)

    assert engines[0].generated_tokens == meter.usage(0).calls == meter.pace.running == 0


@pytest.mark.parametrize(("max_engine_calls", "reason"), [(4, FinishReason.CALLS), (5, FinishReason.STOP)])
async def test_a_vote_that_may_not_ask_often_enough_asks_nothing(
    engines: tuple[ScriptedEngine, Engine], max_engine_calls: int, reason: FinishReason
) -> None:
    engine, seen = engines
    limits = Limits(max_engine_calls=max_engine_calls)

    completion = await Runtime({"target": seen}).complete(Request.ask("?", "self_consistency", limits=limits))

    assert completion.finish_reason is reason
    assert completion.usage["fake"].generated == engine.generated_tokens
    assert (engine.generated_tokens > 0) == (reason is FinishReason.STOP)


async def test_an_engine_that_says_no_reason_is_an_error() -> None:
    async def unended() -> AsyncIterator[TokenDelta]:
        yield TokenDelta((2, 3))

    engine: Any = ThirdParty(ScriptedEngine("silent", "x"))
    engine.generate = lambda *_: _Unended(unended())

    with pytest.raises(EngineError, match="without a reason"):
        await anext(MeteredEngine(engine, Scope(Limits(max_engine_calls=1))).generate_whole(PROMPT, [Sampling(9)]))


class _Unended:
    generated_tokens = passes = 2

    def __init__(self, deltas: Any) -> None:
        self._deltas = deltas

    def __aiter__(self) -> Any:
        return self._deltas

    async def aclose(self) -> None:
        await self._deltas.aclose()
