"""Between the routes and the backend: places, journal, stop texts, metrics."""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from reasonrt.policies.stopping.signature import PublicKeys
from reasonrt.runtime import Prepared
from reasonrt.serve.admission import Admission, Room
from reasonrt.serve.backends.base import Accepted, Backend
from reasonrt.serve.catalog import Job
from reasonrt.serve.choice import STOP_TEXT, Choice, Shown
from reasonrt.serve.config import ServeConfig
from reasonrt.serve.metrics import Metrics
from reasonrt.serve.resume import committed_usage, outlive
from reasonrt.serve.tracing import Spans
from reasonrt.serve.wire.errors import ApiError, draining
from reasonrt.tasks import cancel
from reasonrt.types import Completion, FinishReason, Report, Step

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Update:
    """One event of one choice, and what of it can be shown."""

    choice: Choice
    event: Accepted | Report | Step | Completion
    new: Shown


class Gateway:
    """What all requests of a server share."""

    def __init__(self, backend: Backend, config: ServeConfig, metrics: Metrics) -> None:
        self.backend, self.config, self.metrics = backend, config, metrics
        keys = PublicKeys.read(config.certificate_keys)
        backend.runtime.certificates.keep(config.evidence_folder, keys)  # one evidence each, for all replicas
        self.admission = Admission(config.bounds, len(config.api_keys))
        self.replies: set[asyncio.Future[Any]] = set()  # that are worked on
        self.is_over = False
        self._spans = Spans(config.tracing)
        metrics.watch("reasonrt_running", "Choices that are worked on.", lambda: self.admission.running)
        metrics.watch("reasonrt_queued", "Choices that wait for a place.", lambda: self.admission.queued)
        metrics.watch("reasonrt_body_bytes", "Of requests that wait or run.", lambda: self.admission.body_bytes)
        metrics.watch("reasonrt_restarts", "Engines and replicas replaced.", lambda: backend.restarts, is_counter=True)
        metrics.watch("reasonrt_replicas_ready", "Replicas whose engines are all warm.", lambda: backend.ready)
        metrics.watch_certificates(lambda: backend.certificates)

    def unready(self) -> str:
        """Why no request is taken now; empty where requests are."""
        if self.admission.is_draining:
            return "the server is shutting down"
        return "" if self.backend.ready else "the engines are starting, or are being started again"

    async def take_room(self, held: AsyncExitStack, key: str, num_bytes: int) -> Room:
        """`Admission.room`, until `held` is left.

        Raises:
            ApiError: there is none.
        """
        try:
            return await held.enter_async_context(self.admission.room(key, num_bytes))
        except ApiError as error:
            self.metrics.rejections.labels(error.code or "other").inc()
            raise

    async def unless_cut_off(self, reading: Coroutine[Any, Any, T]) -> T:
        """What `reading` of a request gives, which is under way as a reply is.

        Raises:
            ApiError: it was cut off.
        """
        work = asyncio.ensure_future(reading)
        self.replies.add(work)
        try:
            await asyncio.wait({work})
        finally:
            await cancel(work)
            self.replies.discard(work)
        if work.cancelled():
            raise draining()
        return work.result()

    def cut_off(self) -> int:
        """Cancel every reply, and say how many there were; each of them tells its caller."""
        self.is_over = True
        running = [reply for reply in self.replies if not reply.done()]
        for reply in running:
            reply.cancel()
        return len(running)

    async def solve(self, job: Job, key: str) -> AsyncGenerator[Update, None]:
        """The events of all choices as they come.

        Closing the iterator frees the engines.

        Raises:
            ApiError: there is no place for it.
            RequestError: the policy cannot serve it.
            EngineError: engines died more often than a request outlives.
        """
        arrived, is_refused = time.perf_counter(), False
        try:
            most_s = job.request.limits.deadline_s
            async with self.admission.places(key, len(job.choices), job.streams, most_s) as concurrency:
                self.metrics.queue_seconds.observe(time.perf_counter() - arrived)
                choices = [self._choice(job, index, arrived) for index in range(len(job.choices))]
                async with aclosing(merge(choices, concurrency)) as updates:
                    async for update in updates:
                        yield update
        except ApiError as error:
            is_refused = True
            self.metrics.rejections.labels(error.code or "other").inc()
            raise
        finally:
            if not is_refused:  # which takes no time, and says nothing about those that are served
                self.metrics.request_seconds.labels(job.request.policy).observe(time.perf_counter() - arrived)

    async def _choice(self, job: Job, index: int, arrived: float) -> AsyncGenerator[Update, None]:
        prepared = _with_less_time(job.choices[index], time.perf_counter() - arrived)
        request, last = prepared.request, arrived
        engines = prepared.engines.values()
        tokenizers = None if request.logprobs is None else {engine.name: engine.tokenizer for engine in engines}
        choice = Choice(index, job.stop, tokenizers, is_echo=request.echo)
        attempts = outlive(self.backend, prepared, job.session, self.config.max_resumes, self.metrics.resumes.inc)
        ended: Completion | None = None
        span = self._spans.begin(request)
        try:
            async with aclosing(attempts) as events:
                async for event in events:
                    if isinstance(event, Accepted):
                        choice.accepted = event
                        yield Update(choice, event, Shown())
                        continue
                    if isinstance(event, Report):
                        choice.report(event)
                        yield Update(choice, event, Shown())
                        continue
                    now = time.perf_counter()
                    if isinstance(event, Step):
                        self.metrics.step(request.policy, event, now - last, is_first=not choice.steps)
                        span.step(event, now - last)
                        last = now
                    else:
                        ended = event
                    new = choice.add(event)
                    yield Update(choice, event, new)
                    if new.stop_text is not None and ended is None:
                        break
            if ended is None:  # met a stop text
                seconds = time.perf_counter() - arrived
                ended = replace(_cut_off(choice), seconds=seconds, details={STOP_TEXT: choice.shown.stop_text})
                yield Update(choice, ended, choice.add(ended))
        finally:
            span.end(ended)
            reason = ended.finish_reason if ended else "unfinished"
            self.metrics.end(request.policy, reason, ended or _cut_off(choice))


def _cut_off(choice: Choice) -> Completion:
    """The end of a choice that was left where it stood; what was under way is not counted."""
    accepted, steps = choice.accepted, tuple(choice.steps)
    usage = committed_usage(steps, accepted.engines)
    return Completion(steps, FinishReason.STOP, usage, 0.0, prompt_opens_thinking=accepted.prompt_opens_thinking)


def _with_less_time(prepared: Prepared, seconds: float) -> Prepared:
    limits = prepared.request.limits
    left_s = limits.deadline_s and max(1e-3, limits.deadline_s - seconds)
    return replace(prepared, request=replace(prepared.request, limits=replace(limits, deadline_s=left_s)))


async def merge(streams: Sequence[AsyncGenerator[T, None]], concurrency: int) -> AsyncGenerator[T, None]:
    """The items of all `streams` as they come; none is asked for its next one before the last has been taken.

    At most `concurrency` of the streams have begun and not ended.
    """
    if len(streams) == 1:  # as most often: a task for each item costs as much as all else that is done for it here
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield item
        return
    unbegun = iter(streams)
    waiting = {asyncio.ensure_future(anext(stream)): stream for stream in islice(unbegun, concurrency)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                stream: AsyncGenerator[T, None] | None = waiting.pop(task)
                if isinstance(task.exception(), StopAsyncIteration):
                    stream = next(unbegun, None)
                else:
                    yield task.result()
                if stream is not None:
                    waiting[asyncio.ensure_future(anext(stream))] = stream
    finally:
        await cancel(*waiting)
        for stream in streams:
            await stream.aclose()
