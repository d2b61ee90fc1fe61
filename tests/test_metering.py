"""What one request sees of an engine, and what the engine's pace learns from it."""

import asyncio
from contextlib import aclosing

import pytest

from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import EngineError
from reasonrt.metering import MeteredEngine
from reasonrt.pace import Pace
from reasonrt.scopes import LimitReached, Scope
from reasonrt.types import FinishReason, Limits, Sampling

PROMPT = list(range(2, 42))


async def drain(engine: MeteredEngine, sampling: Sampling) -> None:
    async with aclosing(engine.generate(PROMPT, sampling)) as stream:
        async for _ in stream:
            pass


async def test_the_pace_is_that_of_the_engine_and_shared_by_requests() -> None:
    engine = ScriptedEngine("fake", "x" * 200, chunk_tokens=2)
    pace = Pace(clock=lambda: engine.generated_tokens * 0.01)

    for _ in range(3):
        await drain(MeteredEngine(engine, Scope(Limits(max_engine_calls=1)), pace), Sampling(40))

    assert pace.running == 0
    assert pace.seconds_per_token == pytest.approx(0.01)
    assert pace.first_token_s == pytest.approx(0.02)
    assert pace.seconds(101, missing_tokens=0) == pytest.approx(0.01 + 1.0, rel=0.02)


@pytest.mark.parametrize("end", ["closed", "cancelled", "dead"])
async def test_a_generation_that_is_cut_short_no_longer_runs(end: str) -> None:
    engine = ScriptedEngine("mortal", "x" * 200, seconds_per_token=0.01)
    meter = MeteredEngine(engine, Scope(Limits(max_engine_calls=1)))
    async with aclosing(meter.generate(PROMPT, Sampling(100))) as stream:
        await anext(stream)
        assert meter.pace.running == 1
        if end == "cancelled":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.001)
        if end == "dead":
            engine.kill()
            with pytest.raises(EngineError):
                await anext(stream)

    assert meter.pace.running == 0


async def test_a_call_over_the_limit_does_not_reach_the_engine() -> None:
    meter = MeteredEngine(ScriptedEngine("fake", "text"), Scope(Limits(max_engine_calls=1)))
    await meter.read(PROMPT, [2])

    with pytest.raises(LimitReached):
        meter.generate(PROMPT, Sampling(1))

    assert meter.pace.running == 0
    assert meter.usage(0).calls == 1


@pytest.mark.parametrize(
    ("budget", "reasons"),
    [
        (None, [FinishReason.STOP, FinishReason.LENGTH]),
        (100, [FinishReason.STOP, FinishReason.LENGTH]),
        (50, [FinishReason.BUDGET, FinishReason.LENGTH]),  # 25 for each
        (20, [FinishReason.BUDGET, FinishReason.BUDGET]),
    ],
)
async def test_whole_generation_that_the_budget_ends_says_so(budget: int | None, reasons: list[FinishReason]) -> None:
    meter = MeteredEngine(ScriptedEngine("fake", "x" * 30), Scope(Limits(max_generated_tokens=budget)))

    async with aclosing(meter.generate_whole(PROMPT, [Sampling(40), Sampling(20)])) as ended:
        whole = dict([each async for each in ended])

    assert [whole[index].finish_reason for index in range(2)] == reasons


async def test_the_pace_knows_what_verifying_takes() -> None:
    engine = ScriptedEngine("fake", "text")
    pace = Pace(clock=lambda: engine.generated_tokens * 0.01)
    meter = MeteredEngine(engine, Scope(Limits(max_engine_calls=1)), pace)

    await meter.verify(PROMPT, [2, 3])

    assert pace.running == 0
    assert pace.seconds(1) == pytest.approx(0.01)


async def test_what_the_cache_held_is_not_counted_as_missing() -> None:
    engine = ScriptedEngine("fake", "text")
    meter = MeteredEngine(engine, Scope(Limits(max_engine_calls=2)))
    await drain(meter, Sampling(10))
    await drain(meter, Sampling(10))

    assert meter.usage(0).cached == len(PROMPT) - 1
    assert meter.usage(0).prefilled == len(PROMPT) + 1
