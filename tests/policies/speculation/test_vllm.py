"""Speculation on real engines: it answers as it should, counts what vLLM counts, and leaves nothing running."""

import os
import re
from pathlib import Path

import psutil
import pytest

from reasonrt import Completion, Request, Runtime, Step
from reasonrt.engines.vllm import VllmEngine
from reasonrt.engines.vllm_settings import VllmSettings

pytestmark = pytest.mark.vllm

KEEP_ALL = {"threshold": 1.0, "answer_threshold": 1.0}
OPTIONS: tuple[dict[str, object], ...] = (
    {},
    {"look_ahead": 0},
    {"keep_prefix": 0.0},
    {"reject_early": True},
    {"price": 0.1},
)
QUESTION = "State the final answer to the following arithmetic problem: 17 + 26 - 8 ="
SORTING = "Sort these numbers in ascending order: 250, 17, 88, 31, 204, 9, 122"


@pytest.fixture
def runtime(draft_engine: VllmEngine, target_engine: VllmEngine) -> Runtime:
    return Runtime({"draft": draft_engine, "target": target_engine})


def ids_of(completion: Completion) -> list[int]:
    return [token_id for step in completion.steps for token_id in step.token_ids]


def unfinished(*engines: VllmEngine) -> int:
    """Requests that vLLM still works on."""
    return sum(engine._llm.output_processor.get_num_unfinished_requests() for engine in engines)


async def test_arbitrage_solves_what_the_target_solves(
    runtime: Runtime, draft_engine: VllmEngine, target_engine: VllmEngine
) -> None:
    contents: list[str] = []
    for options in OPTIONS:
        completion = await runtime.complete(Request.ask(QUESTION, "arbitrage", options=options))

        contents.append(completion.content)
        assert not completion.details["fallback"]
        assert completion.details["draft_steps"] > 0
        for usage in completion.usage.values():
            assert usage.generated >= usage.discarded >= 0
        assert unfinished(draft_engine, target_engine) == 0

    assert all(re.fullmatch(r"\\boxed\{\d+\}", content) for content in contents)
    # another CPU rounds otherwise: in one of them, two tokens that are equally likely may change places
    assert contents.count(r"\boxed{35}") >= len(OPTIONS) - 1


async def test_sampled_requests_are_verified(runtime: Runtime) -> None:
    """Every step is: what the draft wrote stays where the target has drawn it as well."""
    request = Request.ask(SORTING, "arbitrage", options={"threshold": -1.0}, temperature=0.7, seed=1)

    completion = await runtime.complete(request)

    assert not completion.details["fallback"]
    assert completion.details["verifications"] > 3
    assert completion.details["draft_steps"] > 0


async def test_target_writes_what_the_router_gives_it(runtime: Runtime) -> None:
    """Every step escalated: the target's own text, step by step, from its own token ids."""
    alone = await runtime.complete(Request.ask(SORTING, "target"))
    routed = await runtime.complete(
        Request.ask(SORTING, "arbitrage", options={"threshold": -1e6, "keep_prefix": 0.0, "answer_threshold": -1e6})
    )

    # what it reads and what it writes round otherwise: two that are equally likely may change places
    assert ids_of(routed)[:8] == ids_of(alone)[:8]
    assert routed.details["verifications"] > 3
    assert routed.usage["target"].cached > 0


async def test_leaving_stops_both_engines(
    runtime: Runtime, draft_engine: VllmEngine, target_engine: VllmEngine
) -> None:
    events = runtime.solve(Request.ask(SORTING, "arbitrage", options={"threshold": 0.0, "start_early": 0.0}))
    await anext(events)
    await anext(events)
    await events.aclose()

    assert unfinished(draft_engine, target_engine) == 0


async def test_draft_killed_in_a_request_leaves_it_to_the_target(nano_draft: Path, target_engine: VllmEngine) -> None:
    """About 20 s: an engine of its own, which is killed."""
    known = set(psutil.Process().children(recursive=True))
    draft = await VllmEngine(
        "mortal", nano_draft, VllmSettings(kv_cache_mib=64, cores=str(min(os.sched_getaffinity(0))))
    ).start()
    runtime = Runtime({"draft": draft, "target": target_engine})
    events = runtime.solve(Request.ask(SORTING, "random", options=KEEP_ALL))
    try:
        steps = [await anext(events)]
        for process in set(psutil.Process().children(recursive=True)) - known:
            if "EngineCor" in process.name():
                process.kill()
        steps += [event async for event in events]

        completion = steps.pop()
        assert isinstance(completion, Completion)
        assert "died" in completion.details["fallback"]
        assert completion.content
        last = steps[-1]
        assert isinstance(last, Step)
        assert last.author == target_engine.name
        assert unfinished(target_engine) == 0
    finally:
        await draft.aclose()
