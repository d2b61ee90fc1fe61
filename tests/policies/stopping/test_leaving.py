"""Leaving a request under a stopping rule, in any way, stops every engine that works on it or on a probe."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt import Completion, FinishReason, Limits, Request, Runtime
from reasonrt.calibration import upper_threshold_rules
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.errors import EngineError
from reasonrt.policies.stopping.probes import SUFFIX
from reasonrt.types import Sampling

TEXT = "<think>\n" + "".join(f"step {index} goes on\n\n" for index in range(40)) + "</think>\n\n\\boxed{8}"
SCHEDULE = {"first_tokens": 8, "block_tokens": 4, "growth": 1.1, "answer_tokens": 12}


def script(prompt: str, sampling: Sampling) -> str:
    before, probed, begun = prompt.rpartition("[assistant] ")[2].partition(SUFFIX)
    return "7}"[len(begun) :] if probed and "step 39" not in before else continuing(TEXT)(prompt, sampling)


def make_runtime(**settings: Any) -> Runtime:
    return Runtime({role: ScriptedEngine(role, script, **settings) for role in ("target", "draft", "reward")})


def scripted(runtime: Runtime) -> list[ScriptedEngine]:
    return [engine for engine in runtime.engines.values() if isinstance(engine, ScriptedEngine)]


def is_idle(runtime: Runtime) -> bool:
    return all(engine.running == 0 for engine in scripted(runtime))


def stopped_request(policy: str = "target", **fields: Any) -> Request:
    """Probed at every checkpoint, and never stopped."""
    rule = upper_threshold_rules("confidence", [2.0])[0]
    return Request.ask("?", policy, options={"stopping": {"rule": rule, "schedule": SCHEDULE}}, **fields)


async def until_it_is_probed(runtime: Runtime) -> None:
    """By then, the engines have written far less than the whole text."""
    async with asyncio.timeout(60):
        while sum(engine.generated_tokens for engine in scripted(runtime)) < 50:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def assert_adds_up(completion: Completion, runtime: Runtime) -> None:
    for engine in scripted(runtime):
        usage = completion.usage.get(engine.name)
        assert (usage.generated if usage else 0) == engine.generated_tokens
    assert is_idle(runtime)


@given(num_events=st.integers(0, 6), policy=st.sampled_from(["target", "rsd", "arbitrage", "oracle"]))
@settings(deadline=None)
async def test_closing_the_iterator_stops_every_engine(num_events: int, policy: str) -> None:
    runtime = make_runtime(chunk_tokens=1)
    events = runtime.solve(stopped_request(policy))

    for _ in range(num_events):
        await anext(events)
    await events.aclose()

    assert is_idle(runtime)


@pytest.mark.parametrize("policy", ["target", "rsd"])
async def test_cancelling_the_task_stops_every_engine(policy: str) -> None:
    runtime = make_runtime(chunk_tokens=1, seconds_per_token=0.002)
    task = asyncio.create_task(runtime.complete(stopped_request(policy)))
    await until_it_is_probed(runtime)
    assert not task.done()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert is_idle(runtime)


async def test_deadline_returns_what_is_committed() -> None:
    runtime = make_runtime(chunk_tokens=1, seconds_per_token=0.002)

    completion = await runtime.complete(stopped_request(limits=Limits(deadline_s=0.8)))

    assert completion.finish_reason is FinishReason.DEADLINE
    assert completion.steps
    assert_adds_up(completion, runtime)


async def test_probe_over_the_limit_on_engine_calls_is_dropped_and_the_request_goes_on() -> None:
    runtime = make_runtime()

    completion = await runtime.complete(stopped_request(limits=Limits(max_engine_calls=3)))

    assert completion.finish_reason is FinishReason.STOP
    assert completion.content == r"\boxed{8}"
    assert completion.usage["target"].calls == 3
    assert completion.details["stopping"]["num_dropped"] > 0
    assert is_idle(runtime)


async def test_dead_engine_is_an_error_and_the_next_request_works() -> None:
    runtime = make_runtime(chunk_tokens=1, seconds_per_token=0.002)
    task = asyncio.create_task(runtime.complete(stopped_request()))
    await until_it_is_probed(runtime)
    for engine in scripted(runtime):
        engine.kill()

    with pytest.raises(EngineError, match="died"):
        await task

    assert is_idle(runtime)
    assert (await runtime.complete(stopped_request())).content == r"\boxed{8}"
