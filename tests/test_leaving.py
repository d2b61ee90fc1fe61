"""Deadlines hold, and leaving a request in any way stops every engine that works on it."""

import asyncio
import gc
import time
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt import Completion, FinishReason, Limits, Request, Runtime, Step
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.errors import EngineError
from reasonrt.policies.registry import policy_names

TEXT = "<think>\nOne.\n\nTwo.\n\nThree.\n\n</think>\n\n\\boxed{7}"
POLICIES = policy_names()


def make_runtime(script: Any = TEXT, **settings: Any) -> Runtime:
    script = continuing(script) if isinstance(script, str) else script
    return Runtime(
        {role: ScriptedEngine(role, script, **settings) for role in ("target", "draft", "reward", "diffusion")}
    )


def scripted(runtime: Runtime) -> list[ScriptedEngine]:
    return [engine for engine in runtime.engines.values() if isinstance(engine, ScriptedEngine)]


async def until_an_engine_writes(runtime: Runtime, task: "asyncio.Task[Completion]") -> None:
    """In the middle of a generation, of which the first delta has come; or until the request is done."""
    give_up = time.monotonic() + 60
    before = {each.name: each.generated_tokens for each in scripted(runtime)}
    while not task.done() and not any(
        each.running and each.generated_tokens >= before[each.name] + each.chunk_tokens for each in scripted(runtime)
    ):
        assert time.monotonic() < give_up
        await asyncio.sleep(0.001)


def assert_adds_up(completion: Completion, runtime: Runtime) -> None:
    """Each engine's own count is the usage's, and none works on."""
    for engine in scripted(runtime):
        usage = completion.usage.get(engine.name)
        assert (usage.generated if usage else 0) == engine.generated_tokens
        assert engine.running == 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("deadline_s", [0.04, 0.23])
async def test_deadline_returns_what_is_committed_in_time(policy: str, deadline_s: float) -> None:
    runtime = make_runtime("a.\n\n" * 100, seconds_per_token=0.05, chunk_tokens=1)
    request = Request.ask("?", policy, limits=Limits(deadline_s=deadline_s))

    started = time.perf_counter()
    completion = await runtime.complete(request)
    seconds = time.perf_counter() - started

    assert completion.finish_reason is FinishReason.DEADLINE
    assert deadline_s <= seconds < deadline_s + 5  # the whole text takes 15 s
    assert_adds_up(completion, runtime)
    if policy in ("target", "draft"):
        written, whole_step = completion.generated_tokens, 3
        assert (written - 1) // whole_step <= len(completion.steps) <= written // whole_step


async def test_deadline_holds_for_an_engine_that_never_waits() -> None:
    runtime = make_runtime("a.\n\n" * 60_000, max_model_len=1_000_000, chunk_tokens=1)
    request = Request.ask("?", limits=Limits(max_tokens=400_000, deadline_s=1.0))

    completion = await runtime.complete(request)

    assert completion.finish_reason is FinishReason.DEADLINE
    assert 0 < len(completion.steps) < 60_000
    assert_adds_up(completion, runtime)


async def test_deadline_counts_the_time_that_the_reader_takes() -> None:
    runtime = make_runtime()
    seen = []

    async with aclosing(runtime.solve(Request.ask("?", limits=Limits(deadline_s=1.0)))) as events:
        async for event in events:
            seen.append(event)
            await asyncio.sleep(1.1)

    assert [type(event) for event in seen] == [Step, Completion]
    assert isinstance(seen[-1], Completion)
    assert seen[-1].finish_reason is FinishReason.DEADLINE


async def test_nothing_is_lost_between_deadline_and_an_outer_timeout() -> None:
    runtime = make_runtime(seconds_per_token=0.05)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.06):
            await runtime.complete(Request.ask("?", limits=Limits(deadline_s=10)))

    assert all(engine.running == 0 for engine in scripted(runtime))


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None)
@given(num_events=st.integers(0, 5))
async def test_closing_the_iterator_stops_every_engine(policy: str, num_events: int) -> None:
    runtime = make_runtime(chunk_tokens=1)
    events = runtime.solve(Request.ask("?", policy))

    for _ in range(num_events):
        await anext(events)
    await events.aclose()

    assert all(engine.running == 0 for engine in scripted(runtime))


@pytest.mark.parametrize("policy", POLICIES)
async def test_cancelling_the_task_stops_every_engine(policy: str) -> None:
    runtime = make_runtime(seconds_per_token=0.01)
    task = asyncio.create_task(runtime.complete(Request.ask("?", policy)))
    await until_an_engine_writes(runtime, task)
    assert not task.done()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert all(engine.running == 0 for engine in scripted(runtime))


async def test_abandoned_iterator_stops_its_engine() -> None:
    runtime = make_runtime(chunk_tokens=1)
    events = runtime.solve(Request.ask("?"))
    await anext(events)
    assert scripted(runtime)[0].running == 1

    del events
    gc.collect()

    give_up = time.monotonic() + 60
    while scripted(runtime)[0].running:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("policy", POLICIES)
async def test_dead_engine_is_an_error_and_the_next_request_works(policy: str) -> None:
    runtime = make_runtime(seconds_per_token=0.005)
    task = asyncio.create_task(runtime.complete(Request.ask("?", policy)))
    while not task.done():  # the first to die may have written what was thrown away
        await until_an_engine_writes(runtime, task)
        for engine in scripted(runtime):
            engine.kill()

    try:
        told = (await task).details["fallback"]  # the draft alone was at work: the target wrote on
    except EngineError as error:
        told = str(error)
    assert "died" in told
    assert all(engine.running == 0 for engine in scripted(runtime))
    before = sum(engine.generated_tokens for engine in scripted(runtime))
    completion = await runtime.complete(Request.ask("?", policy))

    assert completion.finish_reason is FinishReason.STOP
    assert completion.generated_tokens == sum(engine.generated_tokens for engine in scripted(runtime)) - before
