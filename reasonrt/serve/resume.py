"""Requests that outlive what works on them: committed steps are kept here, and the work goes on after the last."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import astuple, replace

from reasonrt.errors import CapabilityError, EngineError
from reasonrt.serve.backends.base import Accepted, Backend
from reasonrt.serve.wire.errors import OVERLOADED, ApiError
from reasonrt.types import Completion, EngineUsage, Event, FinishReason, Request, Step, Usage

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_SLACK_S = 2.0  # a live backend ends a request at its deadline by itself


async def outlive(
    backend: Backend, request: Request, session: str, max_resumes: int, on_resume: Callable[[], None]
) -> AsyncGenerator[Accepted | Event, None]:
    """`backend.solve`, taken up after the last committed step whenever an engine or a replica dies.

    No step is yielded twice. The completion counts what the dead attempts cost as far as it was committed, and says
    in its details how often the request was `resumed`. A request that has begun and finds the replicas full waits for
    them; that is no death.

    Raises:
        ApiError: the replicas are full before it has begun.
        EngineError: more than `max_resumes` deaths.
    """
    began = time.perf_counter()
    steps: list[Step] = []
    of_the_dead: Usage = {}
    deaths, is_accepted = 0, False

    def seconds() -> float:
        return time.perf_counter() - began

    def ended(reason: FinishReason) -> Completion:
        return Completion(tuple(steps), reason, of_the_dead, seconds(), {"resumed": deaths})

    while True:
        left_s = request.limits.deadline_s and request.limits.deadline_s - seconds()
        if left_s is not None and left_s <= 0:
            yield ended(FinishReason.DEADLINE)
            return
        num_kept = len(steps)
        attempt = replace(request, limits=replace(request.limits, deadline_s=left_s), committed=tuple(steps))
        try:
            # another session after each death: a consistent hash would lead back to a replica that is sick
            place = f"{session}#{deaths}" if deaths else session
            async with aclosing(_until(backend.solve(attempt, place), left_s and left_s + _SLACK_S)) as events:
                async for event in events:
                    if isinstance(event, Step):
                        steps.append(event)
                    elif isinstance(event, Completion):
                        usage = total_usage((of_the_dead, event.usage))
                        details = dict(event.details) | ({"resumed": deaths} if deaths else {})
                        event = Completion(tuple(steps), event.finish_reason, usage, seconds(), details)
                    elif is_accepted:
                        continue
                    is_accepted = True
                    yield event
                    if isinstance(event, Completion):
                        return
        except CapabilityError:
            raise
        except ApiError as error:
            if error.code != OVERLOADED or not (is_accepted or deaths):
                raise
        except EngineError:
            deaths += 1
            if deaths > max_resumes:
                raise
            on_resume()
        of_the_dead = total_usage((of_the_dead, committed_usage(steps[num_kept:])))
        await asyncio.sleep(min(_FIRST_PAUSE_S * 2 ** max(0, deaths - 1), _LONGEST_PAUSE_S))


def committed_usage(steps: Sequence[Step]) -> Usage:
    """What `steps` cost at the least, with a pass for each token."""
    tokens: dict[str, int] = {}
    for step in steps:
        tokens[step.author] = tokens.get(step.author, 0) + len(step.token_ids)
    return {author: EngineUsage(generated=num, passes=num) for author, num in tokens.items()}


def total_usage(usages: Iterable[Usage]) -> Usage:
    """The sum, engine by engine."""
    total: dict[str, EngineUsage] = {}
    for name, usage in (item for part in usages for item in part.items()):
        pairs = zip(astuple(total.get(name, EngineUsage())), astuple(usage), strict=True)
        total[name] = EngineUsage(*(a + b for a, b in pairs))
    return total


async def _until(
    events: AsyncGenerator[Accepted | Event, None], patience_s: float | None
) -> AsyncGenerator[Accepted | Event, None]:
    """`events`, ended when they take longer than `patience_s` together."""
    loop = asyncio.get_running_loop()
    end = None if patience_s is None else loop.time() + patience_s
    async with aclosing(events):
        while True:
            try:
                async with asyncio.timeout_at(end) as clock:
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if clock.expired():
                    return
                raise
            yield event
