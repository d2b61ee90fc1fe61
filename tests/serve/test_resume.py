"""The journal: what is committed is kept through deaths, crowds and deadlines, and said once."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Self

import pytest

from reasonrt import Completion, FinishReason, Limits, Request, Runtime, Step
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.errors import EngineError, RequestError
from reasonrt.policies.stopping.loop import AUTHOR
from reasonrt.policies.stopping.probes import SUFFIX
from reasonrt.policies.stopping.rules import UpperThreshold
from reasonrt.policies.stopping.signals import TokensUsed
from reasonrt.runtime import Prepared
from reasonrt.serve.backends.base import Accepted
from reasonrt.serve.backends.local import Worker
from reasonrt.serve.resume import outlive
from reasonrt.serve.wire.errors import ApiError
from reasonrt.types import EngineUsage, Event, Report, Sampling, total_usage


class Scenario:
    """A backend that plays: each attempt yields some steps and then fails, hangs or ends."""

    restarts = 0
    ready = 1
    certificates = ()

    def __init__(self, *attempts: tuple[int, str]) -> None:
        self.attempts = list(attempts)
        self.seen: list[Request] = []
        self.sessions: list[str] = []
        self.runtime = Runtime({"target": ScriptedEngine("target", "")})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def solve(self, prepared: Prepared, session: str) -> AsyncGenerator[Accepted | Event, None]:
        request = prepared.request
        self.seen.append(request)
        self.sessions.append(session)
        num_steps, end = self.attempts.pop(0)
        if end == "refuse":
            raise RequestError("no")
        if end == "full":
            raise ApiError(503, "the replicas are full", code="overloaded", retry_after_s=1.0)
        yield Accepted(3, False, frozenset({"target"}))
        kept = len(request.committed)
        for index in range(kept, kept + num_steps):
            yield Step(f"{index} ", (1, 2), "target")
        if end == "die":
            raise EngineError("dead")
        if end == "hang":
            await asyncio.sleep(60)
        usage = {"target": EngineUsage(calls=1, generated=2 * num_steps)}
        yield Completion((), FinishReason.STOP, usage, 0.0, {"own": 1})


async def play(backend: Scenario, max_resumes: int = 5, **limits: Any) -> list[Accepted | Report | Event]:
    prepared = backend.runtime.prepare(Request.ask("?", limits=Limits(**limits)))
    async with aclosing(outlive(backend, prepared, "s", max_resumes, lambda: None)) as events:
        return [event async for event in events]


async def test_journal_yields_each_step_once_and_adds_up_usage() -> None:
    backend = Scenario((2, "die"), (0, "die"), (3, "die"), (1, "end"))

    accepted, *steps, completion = await play(backend)

    assert accepted == Accepted(3, False, frozenset({"target"}))
    assert [step.text for step in steps if isinstance(step, Step)] == [f"{index} " for index in range(6)]
    assert isinstance(completion, Completion)
    assert list(completion.steps) == steps
    assert [len(request.committed) for request in backend.seen] == [0, 2, 2, 5]
    assert completion.usage["target"].generated == 12
    assert completion.details == {"own": 1, "resumed": 3}


async def test_journal_gives_up_after_too_many_deaths() -> None:
    with pytest.raises(EngineError, match="dead"):
        await play(Scenario((1, "die"), (1, "die"), (1, "end")), max_resumes=1)


async def test_journal_leads_away_from_what_died() -> None:
    backend = Scenario((1, "die"), (0, "die"), (0, "full"), (1, "end"))

    await play(backend)

    first, second, third, fourth = backend.sessions
    assert first == "s"
    assert len({first, second, third}) == 3
    assert fourth == third


@pytest.mark.parametrize("before", [(1, "die"), (0, "die")])
async def test_request_that_has_begun_waits_for_full_replicas(before: tuple[int, str]) -> None:
    backend = Scenario(before, *[(0, "full")] * 3, (2, "end"))

    *_, completion = await play(backend, max_resumes=1)

    assert isinstance(completion, Completion)
    assert len(completion.steps) == before[0] + 2
    assert completion.details["resumed"] == 1


async def test_request_that_has_not_begun_is_told_that_replicas_are_full() -> None:
    with pytest.raises(ApiError, match="the replicas are full"):
        await play(Scenario((0, "full"), (1, "end")))


async def test_journal_passes_on_what_is_no_death() -> None:
    with pytest.raises(RequestError, match="no"):
        await play(Scenario((1, "die"), (0, "refuse")))


async def test_journal_ends_at_the_deadline_what_hangs() -> None:
    began = time.perf_counter()
    *_, completion = await play(Scenario((2, "hang")), deadline_s=1.0)

    assert isinstance(completion, Completion)
    assert completion.finish_reason is FinishReason.DEADLINE
    assert len(completion.steps) == 2
    assert time.perf_counter() - began < 30  # it hangs for a minute
    assert completion.usage["target"].generated == 4


async def test_journal_leaves_later_attempts_less_time() -> None:
    backend = Scenario((1, "die"), (1, "end"))

    await play(backend, deadline_s=5.0)

    first, second = (request.limits.deadline_s for request in backend.seen)
    assert first is not None
    assert second is not None
    assert second < first <= 5.0


def test_usage_of_attempts_is_added_engine_by_engine() -> None:
    a, b = EngineUsage(1, 2, 3, 4, 5, 6), EngineUsage(10, 20, 30, 40, 50, 60)

    assert total_usage([{"x": a}, {}, {"x": b, "y": b}]) == {"x": EngineUsage(11, 22, 33, 44, 55, 66), "y": b}


STEPS = "".join(f"step {index} it is\n\n" for index in range(20))
RULE: Any = {"rule": UpperThreshold(TokensUsed(), 40), "schedule": {"first_tokens": 16, "block_tokens": 8}}


def probed(prompt: str, sampling: Sampling) -> str:
    """A model that thinks for long and says 8 whenever it is asked."""
    _, suffix, begun = prompt.rpartition("[assistant] ")[2].partition(SUFFIX)
    return "8}"[len(begun) :] if suffix else continuing(f"<think>\n{STEPS}{SUFFIX}8}}")(prompt, sampling)


class Mortal(Worker):
    """A worker whose first attempt dies as soon as `last` has committed a step."""

    def __init__(self, last: str) -> None:
        super().__init__(Runtime({"target": ScriptedEngine("target", probed)}, {"target": {"stopping": RULE}}))
        self.last, self.attempts = last, 0

    async def solve(
        self, prepared: Prepared, session: str = "", is_patient: bool = True
    ) -> AsyncGenerator[Accepted | Report | Event, None]:
        self.attempts += 1
        async with aclosing(super().solve(prepared, session, is_patient)) as events:
            async for event in events:
                yield event
                if self.attempts == 1 and isinstance(event, Step) and event.author == self.last:
                    raise EngineError("dead")


@pytest.mark.parametrize("last", ["nobody", "target", AUTHOR])
async def test_author_that_is_no_engine_costs_nothing(last: str) -> None:
    async with Mortal(last) as backend:
        prepared = backend.runtime.prepare(Request.ask("?"))
        events = [event async for event in outlive(backend, prepared, "s", 5, lambda: None)]

    completion = events[-1]
    assert isinstance(completion, Completion)
    assert backend.attempts == (1 if last == "nobody" else 2)
    assert AUTHOR in {step.author for step in completion.steps}
    assert completion.content == r"\boxed{8}"
    assert set(completion.usage) == {"target"}
    written = sum(len(step.token_ids) for step in completion.steps if step.author == "target")
    assert completion.usage["target"].generated >= written
