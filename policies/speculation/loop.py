"""The loop of step-level speculation: what it is, and its options, are in `policies/speculation/options.py`."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache

from reasonrt.answers import find_answer, holds_answer
from reasonrt.errors import ConfigError, EngineError, ReasonRTError, RequestError
from reasonrt.policies.speculation.options import SpeculationOptions
from reasonrt.policies.speculation.run_ahead import Drafted, run_ahead
from reasonrt.policies.speculation.verification import Verdict, can_verify, verify_step
from reasonrt.ports import Capability, PacedEngine
from reasonrt.routers.base import Router
from reasonrt.routers.features import TOP_LOGPROBS, entropy
from reasonrt.tasks import cancel
from reasonrt.transcript import Transcript
from reasonrt.types import END_THINK, THINK, FinishReason, PolicyEvent, Request, Step, Stop
from reasonrt.writing import sampling_for, write_step, write_steps

_log = logging.getLogger(__name__)
WARM_TOKENS = 32
"""The target's cache is filled in blocks: less than one is not worth a pass."""
MIN_KEPT_TOKENS = 3
"""A corrected step of which the target keeps fewer further tokens is the target's to write: the draft has lost it."""


@dataclass
class Tally:
    """What the loop did in one request, as its `Stop` tells."""

    steps: int = 0  # committed
    draft_steps: int = 0  # of these, written by the draft
    escalations: int = 0  # steps that the target was asked for
    useless_escalations: int = 0  # of these, those that brought the draft's own text again
    router_s: float = 0.0  # seconds that steps waited for the router
    verifications: int = 0  # passes of the target over a step of the draft's
    verify_s: float = 0.0  # seconds that steps waited for these
    fallback: str = ""  # why the target wrote alone from some step on


@dataclass
class Speculation(SpeculationOptions):
    """The policy but for its router."""

    async def solve(self, request: Request, engines: Mapping[str, PacedEngine]) -> AsyncGenerator[PolicyEvent, None]:
        asked = {**engines, "target": engines[self.target]}
        async with aclosing(_Run(self, request, asked).events()) as events:
            async for event in events:
                yield event


class _TargetAloneError(Exception):
    """The draft or the router is not there, or has no room; says why."""


@cache
def _warn_once(message: str) -> None:
    _log.warning("%s; the target writes alone", message)


def _is_answered(text: str) -> bool:
    said = text.rpartition(END_THINK)[2]
    return THINK not in said and holds_answer(said) and find_answer(said) is not None


class _Run:
    """One request on its way."""

    def __init__(self, options: SpeculationOptions, request: Request, engines: Mapping[str, PacedEngine]) -> None:
        self._options, self._request, self._engines = options, request, engines
        self._draft, self._target = engines["draft"], engines["target"]
        self._transcript = Transcript(request.messages, request.committed)
        self._tally = Tally()
        by_target = [step for step in request.committed if step.author == self._target.name]
        self._can_verify = options.verify and request.temperature == 0 and can_verify(self._draft, self._target)
        self._is_corrected = False  # the step that is being written has a token of the target's: it is verified on
        self._was_asked = False  # the target, about the last step
        self._target_tokens = sum(len(step.token_ids) for step in by_target)  # committed
        self._read_tokens = 0  # of the target's ids, how many it has read or written
        self._can_warm = options.warm_target and options.max_target_share > 0
        self._can_warm &= Capability.READ in self._target.capabilities
        self._warming: asyncio.Task[None] | None = None
        self._early: asyncio.Task[tuple[Step | None, FinishReason | None]] | None = None  # the target's step

    async def events(self) -> AsyncGenerator[PolicyEvent, None]:
        self._transcript.token_ids(self._target)  # refuse a prompt that is too long before anything starts
        reason: FinishReason | None = None
        try:
            try:
                router = self._router()
                while reason is None:
                    async with aclosing(self._next_steps(router)) as events:
                        async for event in events:
                            if isinstance(event, Step):
                                yield self._commit(event)
                            else:
                                reason = event
            except _TargetAloneError as error:
                self._tally.fallback = str(error)
                await cancel(self._warming, self._early)
                async with aclosing(self._written_alone()) as written:
                    async for event in written:
                        if isinstance(event, Step):
                            yield self._count(event)  # the stream itself goes on: nothing to commit to
                        else:
                            reason = event
        finally:
            await cancel(self._warming, self._early)
        yield Stop(reason or FinishReason.STOP, asdict(self._tally))

    def _router(self) -> Router:
        try:
            return self._options.router(self._request, self._engines)
        except ConfigError as error:
            _warn_once(str(error))
            raise _TargetAloneError(str(error)) from error

    async def _written_alone(self) -> AsyncGenerator[Step | FinishReason, None]:
        if not self._transcript.room(self._target):
            yield FinishReason.LENGTH
            return
        sampling = sampling_for(self._request, self._transcript, self._target)
        async with aclosing(write_steps(self._target, self._transcript, sampling)) as events:
            async for event in events:
                yield event

    async def _next_steps(self, router: Router) -> AsyncGenerator[Step | FinishReason, None]:
        """The draft's steps up to one that the target should write, and that one from the target.

        Whoever takes a step commits it before asking for the next one.
        """
        async with aclosing(self._drafted()) as drafted:
            async for event in drafted:
                if isinstance(event, FinishReason):
                    yield event
                    return
                self._start_early(event.step)
                if event.is_partial and (self._can_verify or not self._options.reject_early):
                    continue
                step, is_rejected = await self._judged(router, event)
                verdict = await self._verified(step) if is_rejected else None
                if is_rejected and not (verdict and verdict.is_agreed):
                    break
                if not event.is_partial:
                    await cancel(self._early)
                    self._early, self._is_corrected, self._was_asked = None, False, is_rejected
                    if not event.is_end:
                        yield step
            else:
                return  # it was too far ahead: it begins again behind what is committed
        async with aclosing(self._escalated(step, verdict)) as events:
            async for written in events:
                yield written

    async def _drafted(self) -> AsyncGenerator[Drafted | FinishReason, None]:
        options, transcript = self._options, self._transcript
        watch = options.reject_early or options.start_early is not None
        try:
            if not transcript.room(self._draft):
                raise _TargetAloneError("the draft's context is full")
            sampling = sampling_for(self._request, transcript, self._draft, logprobs=True, top_logprobs=TOP_LOGPROBS)
            async with aclosing(run_ahead(self._draft, transcript, sampling, options.look_ahead, watch)) as drafted:
                async for event in drafted:
                    if event is FinishReason.LENGTH and transcript.num_tokens < self._request.limits.max_tokens:
                        raise _TargetAloneError("the draft's context is full")
                    yield event
        except (EngineError, RequestError) as error:
            raise _TargetAloneError(str(error)) from error

    def _may_ask(self, step: Step) -> bool:
        """Whether the target may write as much as this without more than its share."""
        length = max(1, len(step.token_ids))
        share = (self._target_tokens + length) / (self._transcript.num_tokens + length)
        return share <= self._options.max_target_share

    async def _judged(self, router: Router, drafted: Drafted) -> tuple[Step, bool]:
        """The step with its advantage, and whether the target should write it."""
        options, step = self._options, drafted.step
        if self._is_corrected or not self._may_ask(step):
            return step, self._is_corrected
        if drafted.is_end:  # nothing that a router knows: it goes with the step before, if the answer is there
            is_rejected = self._was_asked or not _is_answered(self._transcript.text)
            self._tally.escalations += is_rejected
            return step, is_rejected
        started = time.perf_counter()
        try:
            advantage = await router.advantage(self._transcript, step)
        except (EngineError, RequestError) as error:  # it died, or the transcript has outgrown its context
            raise _TargetAloneError(f"the router is lost: {error}") from error
        self._tally.router_s += time.perf_counter() - started
        missing = len(self._transcript.token_ids(self._target)) - self._read_tokens
        length = len(step.token_ids)
        work = (1, missing + length) if self._can_verify else (length, missing)
        target_s = self._target.pace.seconds(*work) if options.price is not None else None
        step = replace(step, scores={**step.scores, "advantage": advantage})
        is_rejected = options.is_worth(advantage, step, target_s)
        self._tally.escalations += is_rejected
        return step, is_rejected

    async def _verified(self, step: Step) -> Verdict | None:
        """What the target says of the draft's step; None where it is to write the step without having read it."""
        if not self._can_verify or self._early or self._transcript.room(self._target) <= len(step.token_ids):
            return None
        await cancel(self._warming)  # it would read the same ids once more
        self._warming = None
        started = time.perf_counter()
        verdict = await verify_step(self._target, self._transcript, step)
        self._tally.verify_s += time.perf_counter() - started
        self._tally.verifications += 1
        stays = step if verdict.is_agreed else verdict.kept
        self._read_tokens = len(self._transcript.token_ids(self._target)) + (len(stays.token_ids) if stays else 0)
        self._tally.useless_escalations += verdict.is_agreed and not self._is_corrected
        return verdict

    async def _escalated(self, rejected: Step, verdict: Verdict | None) -> AsyncGenerator[Step | FinishReason, None]:
        """The target's step in place of `rejected`, or its first token that differs, behind the part that is kept."""
        self._was_asked = True
        kept = verdict.kept if verdict else self._kept(rejected)
        if kept is not None:
            yield replace(kept, scores=rejected.scores)
        if verdict and verdict.is_end:
            yield FinishReason.STOP
            return
        if verdict and verdict.correction:
            yield replace(verdict.correction, scores=rejected.scores)
            is_lost = self._is_corrected and (kept is None or len(kept.token_ids) < MIN_KEPT_TOKENS)
            self._is_corrected = not verdict.correction.is_complete
            if not is_lost or not self._is_corrected:
                return
        if not self._transcript.room(self._target):
            yield FinishReason.LENGTH
            return
        if self._early is None:
            self._early = asyncio.create_task(self._target_step())
        await cancel(self._warming)
        self._warming = None
        step, reason = await self._early
        self._early, self._is_corrected = None, False
        written = (kept.text if kept else "") + (step.text if step else "")
        self._tally.useless_escalations += written == rejected.text
        if step is not None:
            yield replace(step, scores=rejected.scores)
            self._read_tokens = len(self._transcript.token_ids(self._target))
        if reason is not None:
            yield reason

    def _kept(self, rejected: Step) -> Step | None:
        """The tokens of a rejected step before the first of which the draft was not sure enough."""
        sure = self._options.keep_prefix
        doubts = (i for i, logprob in enumerate(rejected.logprobs) if not sure or logprob < math.log(sure))
        length = next(doubts, 0)
        text = self._draft.tokenizer.decode(rejected.token_ids[:length])
        # not behind a step that has begun already, and not within a character
        if not text or self._early is not None or not rejected.text.startswith(text):
            return None
        return Step(text, rejected.token_ids[:length], rejected.author, False, rejected.logprobs[:length])

    async def _target_step(self) -> tuple[Step | None, FinishReason | None]:
        return await write_step(
            self._target, self._transcript, sampling_for(self._request, self._transcript, self._target)
        )

    def _start_early(self, step: Step) -> None:
        limit = self._options.start_early
        if limit is None or self._early or not step.top_logprobs or not self._may_ask(step):
            return
        if entropy(step.top_logprobs[0]) > limit:
            self._early = asyncio.create_task(self._target_step())

    def _commit(self, step: Step) -> Step:
        self._transcript.commit(step)
        missing = len(self._transcript.token_ids(self._target)) - self._read_tokens
        if self._can_warm and step.author == self._draft.name and missing >= WARM_TOKENS and self._warming is None:
            self._warming = asyncio.create_task(self._warm())
        return self._count(step)

    def _count(self, step: Step) -> Step:
        self._tally.steps += step.is_complete
        self._tally.draft_steps += step.is_complete and step.author == self._draft.name
        self._target_tokens += len(step.token_ids) * (step.author == self._target.name)
        return step

    async def _warm(self) -> None:
        """Let the target read what is committed; what it cannot read now it will read when it is asked."""
        ids = list(self._transcript.token_ids(self._target))
        with suppress(ReasonRTError):
            await self._target.read(ids, ids[:1])
            self._read_tokens = max(self._read_tokens, len(ids))
        self._warming = None
