"""Requests that outlive what works on them: committed steps are kept here, and the work continues after the last."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace

from reasonrt.errors import CapabilityError, EngineError, RefusedError
from reasonrt.runtime import Prepared
from reasonrt.serve.backends.base import Accepted, Backend
from reasonrt.serve.wire.errors import OVERLOADED, ApiError
from reasonrt.tasks import Expired, before
from reasonrt.types import Completion, EngineUsage, Event, FinishReason, Report, Step, Usage, total_usage

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_SLACK_S = 2.0  # a live backend ends a request at its deadline by itself


async def outlive(
    backend: Backend, prepared: Prepared, session: str, max_resumes: int, on_resume: Callable[[], None]
) -> AsyncGenerator[Accepted | Report | Event, None]:
    """`backend.solve`, taken up after the last committed step whenever an engine or a replica dies.

    No step is yielded twice. The completion counts what the attempts that died cost as far as it was committed, and
    says in its details how often the request was `resumed`. A request that has begun and finds the replicas full waits
    for them; that is no death. Nor is the answer of a server as an engine that it does not serve the request, which has
    been asked for as often as it says.

    Raises:
        ApiError: the replicas are full before it has begun.
        EngineError: more than `max_resumes` deaths, or one after which an engine cannot continue what was committed.
    """
    began, request = time.perf_counter(), prepared.request
    steps: list[Step] = []
    spent_before: Usage = {}
    deaths, accepted = 0, Accepted(0, False, frozenset())
    death: EngineError | None = None  # the last one
    is_accepted = False

    def seconds() -> float:
        return time.perf_counter() - began

    def ended(reason: FinishReason) -> Completion:
        details, is_open = {"resumed": deaths}, accepted.prompt_opens_thinking
        return Completion(tuple(steps), reason, spent_before, seconds(), details, is_open)

    while True:
        left_s = request.limits.deadline_s and request.limits.deadline_s - seconds()
        if left_s is not None and left_s <= 0:
            yield ended(FinishReason.DEADLINE)
            return
        num_kept = len(steps)
        attempt = replace(request, limits=replace(request.limits, deadline_s=left_s), committed=tuple(steps))
        prepared = backend.runtime.prepare(attempt) if steps else replace(prepared, request=attempt)
        end = left_s and asyncio.get_running_loop().time() + left_s + _SLACK_S
        try:
            # another session after each death: a consistent hash would lead back to a replica that is sick
            place = f"{session}#{deaths}" if deaths else session
            async with aclosing(before(end, backend.solve(prepared, place))) as events:
                async for event in events:
                    if isinstance(event, Step):
                        steps.append(event)
                    elif isinstance(event, Completion):
                        usage = total_usage((spent_before, event.usage))
                        details = dict(event.details) | ({"resumed": deaths} if deaths else {})
                        event = replace(event, steps=tuple(steps), usage=usage, seconds=seconds(), details=details)
                    elif isinstance(event, Report):
                        yield event
                        continue
                    elif is_accepted:
                        continue
                    else:
                        accepted = event
                    is_accepted = True
                    yield event
                    if isinstance(event, Completion):
                        return
        except Expired:
            pass  # the next turn ends it
        except CapabilityError as error:
            if death is None:
                raise
            raise death from error  # the caller has asked for nothing that it cannot do
        except RefusedError:
            raise
        except ApiError as error:
            if error.code != OVERLOADED or not (is_accepted or deaths):
                raise
        except EngineError as error:
            deaths, death = deaths + 1, error
            if deaths > max_resumes:
                raise
            on_resume()
        spent_before = total_usage((spent_before, committed_usage(steps[num_kept:], accepted.engines)))
        await asyncio.sleep(min(_FIRST_PAUSE_S * 2 ** max(0, deaths - 1), _LONGEST_PAUSE_S))


def committed_usage(steps: Sequence[Step], engines: Collection[str]) -> Usage:
    """What `steps` cost at the least, with a pass for each token.

    Args:
        engines: by their names; what another author has written, no engine has generated.
    """
    tokens: dict[str, int] = {}
    for step in steps:
        if step.author in engines:
            tokens[step.author] = tokens.get(step.author, 0) + len(step.token_ids)
    return {author: EngineUsage(generated=num, passes=num) for author, num in tokens.items()}
