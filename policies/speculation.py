"""Step-level speculation: the draft writes, a router judges each step, the target writes those that it should.

One loop for all such policies; they differ in their router only (`policies/arbitrage.py`). Per request:

* **run-ahead**: the draft is not stopped at a boundary. Steps are cut from its stream and judged while it writes
  the next ones; an escalation aborts it and goes back to what is committed.
* **warm target**: while the draft writes, the target reads what is committed, so that it can begin at once.
* **priced**: escalate when the predicted advantage is worth the seconds that the target's step is predicted to take.

Source of the decision: Arbitrage (arXiv 2512.05033), algorithm 1. The loop is ours: published ones are lock-step.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache

from reasonrt.engines.base import Capability
from reasonrt.errors import ConfigError, EngineError, ReasonRTError, RequestError
from reasonrt.policies.answers import holds_answer
from reasonrt.policies.base import PacedEngine, PolicyOptions, drop, sampling_for, write_step, write_steps
from reasonrt.policies.run_ahead import Drafted, run_ahead
from reasonrt.routers.base import Router
from reasonrt.routers.features import TOP_LOGPROBS, entropy
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Step, Stop

_log = logging.getLogger(__name__)
WARM_TOKENS = 32
"""The target's cache is filled in blocks: less than one is not worth a pass."""


@dataclass
class Tally:
    """What the loop did in one request, as its `Stop` tells."""

    steps: int = 0  # committed
    draft_steps: int = 0  # of these, written by the draft
    escalations: int = 0  # steps that the target was asked for
    useless_escalations: int = 0  # of these, those that brought the draft's own text again
    router_s: float = 0.0  # seconds that steps waited for the router
    fallback: str = ""  # why the target wrote alone from some step on


@dataclass
class Speculation(PolicyOptions):
    """Options of every policy here.

    Attributes:
        threshold: escalate above this predicted advantage, in the router's unit (each policy says which).
        price: instead of `threshold`: advantage that a second of the target must bring; needs a router whose
            advantage is a probability.
        answer_threshold: for the steps that hold the answer; None is half of the threshold.
        max_target_share: of the committed tokens, in [0, 1]; the target is not asked beyond it.
        look_ahead: steps that the draft may be ahead of the router; 0 is lock-step.
        warm_target: let the target read along.
        keep_prefix: probability in [0, 1]; the target keeps a rejected step up to the first token of which the
            draft was less sure. 0 keeps nothing.
        reject_early: judge a step while it is being written, too.
        start_early: first-token entropy, nats, above which the target begins its step beside the draft's.
        target: the role of the target.
    """

    threshold: float = 0.0
    price: float | None = None
    answer_threshold: float | None = None
    max_target_share: float = 1.0
    look_ahead: int = 4
    warm_target: bool = True
    keep_prefix: float = 0.0
    reject_early: bool = False
    start_early: float | None = None
    target: str = "target"

    @property
    def engines(self) -> tuple[str, ...]:
        return ("draft", self.target)

    def __post_init__(self) -> None:
        bounds = {"threshold": 1e6, "answer_threshold": 1e6, "price": 1e6, "look_ahead": 1000, "start_early": 100}
        for name, high in (bounds | {"max_target_share": 1, "keep_prefix": 1}).items():
            value, low = getattr(self, name), -high if "threshold" in name else 0
            if value is not None and (type(value) not in (int, float) or not low <= value <= high):
                raise RequestError(f"{name} must be a number in [{low:g}, {high:g}], got {value!r}")

    def router(self, request: Request, engines: Mapping[str, PacedEngine]) -> Router:
        """The router for this request.

        Raises:
            ConfigError: there is none for these engines; the target will write alone.
        """
        raise NotImplementedError

    def bar(self) -> float:
        """The advantage above which a step is escalated."""
        return self.threshold

    async def solve(self, request: Request, engines: Mapping[str, PacedEngine]) -> AsyncGenerator[PolicyEvent, None]:
        asked = {**engines, "target": engines[self.target]}
        async with aclosing(_Run(self, request, asked).events()) as events:
            async for event in events:
                yield event

    def is_worth(self, advantage: float, step: Step, target_s: float | None) -> bool:
        """Whether a step of this predicted advantage goes to the target, which would take `target_s` for it."""
        bar = self.bar()
        if self.price is not None:
            bar = self.price * (target_s or 0.0)  # unmeasured: free, and so measured
        if holds_answer(step.text):
            bar = min(bar, bar / 2 if self.answer_threshold is None else self.answer_threshold)
        return advantage > bar


class _TargetAloneError(Exception):
    """The draft or the router is not there; says why."""


@cache
def _warn_once(message: str) -> None:
    _log.warning("%s; the target writes alone", message)


class _Run:
    """One request on its way."""

    def __init__(self, options: Speculation, request: Request, engines: Mapping[str, PacedEngine]) -> None:
        self._options, self._request, self._engines = options, request, engines
        self._draft, self._target = engines["draft"], engines["target"]
        self._transcript = Transcript(request.messages, request.committed)
        self._tally = Tally()
        by_target = [step for step in request.committed if step.author == self._target.name]
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
                sampling = sampling_for(self._request, self._transcript, self._target)
                async with aclosing(write_steps(self._target, self._transcript, sampling)) as written:
                    async for event in written:
                        if isinstance(event, Step):
                            yield self._count(event)  # the stream itself goes on: nothing to commit to
                        else:
                            reason = event
        finally:
            await drop(self._warming, self._early)
        yield Stop(reason or FinishReason.STOP, asdict(self._tally))

    def _router(self) -> Router:
        try:
            return self._options.router(self._request, self._engines)
        except ConfigError as error:
            _warn_once(str(error))
            raise _TargetAloneError(str(error)) from error

    async def _next_steps(self, router: Router) -> AsyncGenerator[Step | FinishReason, None]:
        """The draft's steps up to one that the target should write, and that one from the target.

        Whoever takes a step commits it before asking for the next one.
        """
        if not self._transcript.room(self._draft) or not self._transcript.room(self._target):
            yield FinishReason.LENGTH
            return
        async with aclosing(self._drafted()) as drafted:
            async for event in drafted:
                if isinstance(event, FinishReason):
                    yield event
                    return
                self._start_early(event.step)
                if event.is_partial and not self._options.reject_early:
                    continue
                step, is_rejected = await self._judged(router, event.step)
                if is_rejected:
                    break
                if not event.is_partial:
                    await drop(self._early)
                    self._early = None
                    yield step
            else:
                return  # it was too far ahead: it begins again behind what is committed
        async with aclosing(self._escalated(step)) as events:
            async for written in events:
                yield written

    async def _drafted(self) -> AsyncGenerator[Drafted | FinishReason, None]:
        options = self._options
        sampling = sampling_for(self._request, self._transcript, self._draft, logprobs=True, top_logprobs=TOP_LOGPROBS)
        watch = options.reject_early or options.start_early is not None
        drafted = run_ahead(self._draft, self._transcript, sampling, options.look_ahead, watch)
        async with aclosing(drafted):
            try:
                async for event in drafted:
                    yield event
            except EngineError as error:
                raise _TargetAloneError(str(error)) from error

    async def _judged(self, router: Router, step: Step) -> tuple[Step, bool]:
        """The step with its advantage, and whether the target should write it."""
        options, length = self._options, len(step.token_ids)
        share = (self._target_tokens + length) / (self._transcript.num_tokens + length)
        if share > options.max_target_share:
            return step, False
        started = time.perf_counter()
        try:
            advantage = await router.advantage(self._transcript, step)
        except EngineError as error:
            raise _TargetAloneError(f"the router is lost: {error}") from error
        except RequestError:  # the transcript has outgrown the router's context
            return step, False
        self._tally.router_s += time.perf_counter() - started
        missing = len(self._transcript.token_ids(self._target)) - self._read_tokens
        target_s = self._target.pace.seconds(length, missing) if options.price is not None else None
        step = replace(step, scores={**step.scores, "advantage": advantage})
        return step, options.is_worth(advantage, step, target_s)

    async def _escalated(self, rejected: Step) -> AsyncGenerator[Step | FinishReason, None]:
        """The target's step in place of `rejected`, behind the part of that which is kept."""
        self._tally.escalations += 1
        kept = self._kept(rejected)
        if kept is not None:
            yield kept
        if self._early is None:
            self._early = asyncio.create_task(self._target_step())
        await drop(self._warming)  # it would read the same ids once more
        self._warming = None
        step, reason = await self._early
        self._early = None
        if step is not None:
            self._tally.useless_escalations += (kept.text if kept else "") + step.text == rejected.text
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
        if limit is not None and self._early is None and step.top_logprobs and entropy(step.top_logprobs[0]) > limit:
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
