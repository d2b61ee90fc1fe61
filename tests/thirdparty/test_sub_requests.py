"""A policy that asks other policies: what it uses through them is limited, closed and counted as its own."""

import asyncio
import time
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reasonrt import Completion, FinishReason, Limits, Request, Runtime, Step, register_policy
from reasonrt.config import load_config
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import RequestError
from reasonrt.policies.registry import unregister_policy
from reasonrt.types import Stop

QUESTION = "What is 17 + 25?"


@pytest.fixture
def runtime(config: Path) -> Runtime:
    return Runtime.from_config(config)


def scripted(runtime: Runtime) -> list[Any]:
    return [engine for engine in runtime.engines.values() if isinstance(engine, ScriptedEngine)]


def assert_adds_up(completion: Completion, runtime: Runtime) -> None:
    """Each engine's own count is the usage's, and what was not committed was discarded."""
    for engine in scripted(runtime):
        committed = sum(len(step.token_ids) for step in completion.steps if step.author == engine.name)
        usage = completion.usage[engine.name]
        assert usage.generated == engine.generated_tokens
        assert usage.discarded == engine.generated_tokens - committed
        assert engine.running == 0


@pytest.mark.parametrize("asks", [["draft", "target"], ["target"], ["draft"], ["self_consistency", "draft"]])
async def test_usage_counts_what_sub_requests_spend(runtime: Runtime, asks: list[str]) -> None:
    completion = await runtime.complete(Request.ask(QUESTION, "checked", options={"asks": asks}))

    assert completion.finish_reason is FinishReason.STOP
    assert_adds_up(completion, runtime)


async def test_calls_of_sub_requests_count(runtime: Runtime) -> None:
    request = Request.ask(QUESTION, "checked")
    full = await runtime.complete(request)

    limited = await runtime.complete(replace(request, limits=Limits(max_engine_calls=1)))

    assert sum(usage.calls for usage in full.usage.values()) == 2
    assert sum(usage.calls for usage in limited.usage.values()) == 1
    assert limited.finish_reason is FinishReason.CALLS


async def test_generated_tokens_of_sub_requests_count(runtime: Runtime) -> None:
    request = Request.ask(QUESTION, "checked")
    drafted = (await runtime.complete(request)).usage["draft"].generated
    before = sum(engine.generated_tokens for engine in scripted(runtime))

    limited = await runtime.complete(replace(request, limits=Limits(max_generated_tokens=drafted + 8)))

    assert limited.finish_reason is FinishReason.BUDGET
    spent = sum(usage.generated for usage in limited.usage.values())
    assert drafted + 8 <= spent < drafted + 8 + 4  # tokens come four at a time
    assert spent == sum(engine.generated_tokens for engine in scripted(runtime)) - before


async def test_deadline_holds_for_all_sub_requests_together(config: Path) -> None:
    settings = load_config(config).model_dump()
    for engine in settings["engines"].values():
        engine["settings"] |= {"seconds_per_token": 0.1}
    runtime = Runtime.from_config(config, engines=settings["engines"])
    started = time.perf_counter()

    completion = await runtime.complete(Request.ask(QUESTION, "checked", limits=Limits(deadline_s=0.3)))

    assert completion.finish_reason is FinishReason.DEADLINE
    assert time.perf_counter() - started < 4.0  # alone, each of the two takes 6 s
    assert_adds_up(completion, runtime)


@pytest.mark.parametrize(("max_depth", "is_served"), [(0, False), (1, False), (2, True)])
async def test_what_is_nested_too_deep_is_refused(runtime: Runtime, max_depth: int, is_served: bool) -> None:
    request = Request.ask(QUESTION, "checked", options={"asks": ["checked"]}, limits=Limits(max_depth=max_depth))

    if is_served:
        completion = await runtime.complete(request)
        assert completion.content == r"\boxed{42}"
        assert_adds_up(completion, runtime)
    else:
        with pytest.raises(RequestError, match="sub-requests are nested too deep; max_depth"):
            await runtime.complete(request)
    assert not any(engine.running for engine in scripted(runtime))


@pytest.mark.parametrize("num_tokens", [1, 40, 90])
async def test_leaving_the_parent_leaves_the_child(config: Path, num_tokens: int) -> None:
    runtime = Runtime.from_config(config)
    events = runtime.solve(Request.ask(QUESTION, "checked"))
    waiting = asyncio.ensure_future(anext(events))
    while sum(engine.generated_tokens for engine in scripted(runtime)) < num_tokens:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert any(engine.running for engine in scripted(runtime))

    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    await events.aclose()

    assert not any(engine.running for engine in scripted(runtime))


class Peek:
    """Commits the first step that another policy writes, and leaves it there."""

    engines = ("target",)

    @classmethod
    def from_options(cls, options: Any) -> Any:
        return cls()

    async def solve(self, request: Request, engines: Any) -> Any:
        async with aclosing(engines.solve(replace(request, policy="target"))) as events:
            async for event in events:
                if isinstance(event, Step):
                    yield replace(event, text=event.text.removeprefix("<think>"))  # or it were thinking, with no answer
                    break
        yield Stop(FinishReason.STOP)


async def test_child_that_is_left_in_the_middle_is_counted(runtime: Runtime) -> None:
    register_policy("peek", Peek)
    try:
        completion = await runtime.complete(Request.ask(QUESTION, "peek"))
    finally:
        unregister_policy("peek")

    (step,) = completion.steps
    (target,) = [engine for engine in scripted(runtime) if engine.name == "target"]
    assert completion.usage["target"].calls == 1
    assert completion.usage["target"].generated == target.generated_tokens >= len(step.token_ids)
    assert completion.usage["target"].discarded == target.generated_tokens - len(step.token_ids)
    assert target.running == 0


async def test_resumed_request_passes_on_what_is_committed(runtime: Runtime) -> None:
    request = Request.ask(QUESTION, "checked", options={"asks": ["target"]})
    full = await runtime.complete(request)

    resumed = await runtime.complete(replace(request, committed=full.steps[:2]))

    assert resumed.text == full.text
    assert resumed.steps[:2] == full.steps[:2]
    assert resumed.usage["target"].generated < full.usage["target"].generated
