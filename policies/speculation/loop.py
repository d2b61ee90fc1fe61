"""The loop of step-level speculation: draft, judge, verify, escalate, commit. What it is for: `policy.py`."""

import asyncio
import logging
import math
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum, auto
from functools import cache
from itertools import takewhile
from typing import Any, Protocol

from reasonrt.answers import holds_answer
from reasonrt.errors import ConfigError, EngineError, ReasonRTError, RequestError, told
from reasonrt.metering import MeteredEngine
from reasonrt.policies.speculation.options import SpeculationOptions
from reasonrt.policies.speculation.run_ahead import Drafted, run_ahead
from reasonrt.policies.speculation.verification import Verdict, verify_step, why_not_verify
from reasonrt.ports import Capability, Engine, RequestEngine
from reasonrt.routers.base import Router
from reasonrt.routers.features import TOP_LOGPROBS, entropy
from reasonrt.scopes import Scope
from reasonrt.tasks import cancel
from reasonrt.thinking import CLOSING, opens_thinking, split
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, Limits, PolicyEvent, Request, Step, Stop, TokenDelta
from reasonrt.writing import sampling_for, seed_of, write_step, write_steps

_log = logging.getLogger(__name__)
WARM_TOKENS = 32
"""The target's cache is filled in blocks: less than one is not worth a pass."""
MIN_KEPT_TOKENS = 3
"""A corrected step of which the target keeps fewer further tokens is the target's to write: the draft has lost it."""


class Terms(Protocol):
    """What the loop asks of its policy."""

    @property
    def options(self) -> SpeculationOptions: ...

    def router(self, request: Request, engines: Mapping[str, Engine]) -> Router:
        """Raises: ConfigError: there is none for these engines; the target writes alone."""

    def is_worth(self, advantage: float, step: Step, target_s: float | None, expected_loss: float = 0.0) -> bool:
        """Whether a step of this predicted advantage goes to the target, which would take `target_s` for it.

        Args:
            expected_loss: of the draft's steps that the target has not read, so far.
        """

    def hands_over(self, transcript: Transcript, tally: "Tally") -> bool:
        """Whether the target writes to the end from a step on that is the target's to write."""


@dataclass
class Tally:
    """What the loop did in one request, as its `Stop` tells."""

    steps: int = 0  # committed
    draft_steps: int = 0  # of these, the draft's without a token of the target's
    draft_tokens: int = 0  # committed, in whatever steps
    escalations: int = 0  # steps that the target was asked for
    useless_escalations: int = 0  # of these, those that brought the draft's own text again
    router_s: float = 0.0  # seconds that steps waited for the router
    verifications: int = 0  # passes of the target over a step of the draft's
    agreed: int = 0  # of these, those that changed nothing
    verify_s: float = 0.0  # seconds that steps waited for these
    expected_loss: float = 0.0  # of a right end, by the draft's steps that the target has not read
    handed_over: bool = False  # the target writes from some step on to the end
    fallback: str = ""  # why the target wrote alone from some step on
    not_verified: str = ""  # why it wrote rejected steps without reading them, where it was to verify them

    def told(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """As a `Stop` tells it, with what an earlier loop of the request has told `before`."""
        told = asdict(self)
        for name in told.keys() & before.keys() - {"expected_loss"}:  # that one is of all that is committed
            is_count = isinstance(told[name], int | float) and not isinstance(told[name], bool)
            told[name] = before[name] + told[name] if is_count else told[name] or before[name]
        return told


class Standing(Enum):
    """How the target stands to the step that is being written."""

    UNASKED = auto()  # it has not been asked about the step before
    ASKED = auto()  # it has: an end after that step is its to judge, too
    CORRECTED = auto()  # the step holds a token of the target's, so its rest is verified without asking the router


@dataclass(frozen=True, slots=True)
class Judged:
    """A drafted step after the router: with its advantage, and whether it is the target's to write."""

    step: Step
    is_rejected: bool


class SpeculationLoop:
    """One request while it is solved.

    Args:
        engines: by role; `target` is the one that the options name. Where there is a `writer`, it writes in the place
            of the target from where the draft is no longer asked.
        before: what an earlier loop of the same request has told.
    """

    def __init__(
        self,
        terms: Terms,
        request: Request,
        engines: Mapping[str, RequestEngine],
        before: Mapping[str, Any],
    ) -> None:
        self._terms, self._options, self._before = terms, terms.options, before
        self._pace = engines["target"].pace
        if self._options.max_target_share < 1:  # counted apart from what the probes of a stopping rule ask of it
            counted = MeteredEngine(engines["target"], Scope(Limits(max_engine_calls=sys.maxsize)))
            engines = {role: counted if each is engines["target"] else each for role, each in engines.items()}
        self._request, self._engines = request, engines
        self._draft, self._target = engines["draft"], engines["target"]
        self._writer = engines.get("writer", self._target)
        self._transcript = Transcript.of(request, engines)
        self._tally = Tally()
        # what is kept of a rejected step would be lost in part as well, and nobody knows how much of it
        self._keep_prefix = 0.0 if self._options.max_loss is not None else self._options.keep_prefix
        self._reads_logprobs = True
        self._told_tokens = 0  # of the first step that is ahead: its beginning was judged, and is told as such
        tokenizer = self._draft.tokenizer
        prompt = request.prompt(tokenizer)
        self._prompt_opens_thinking = opens_thinking(tokenizer.decode, prompt)
        if self._options.verify and not self._options.hand_over:
            self._tally.not_verified = why_not_verify(self._draft, self._target, request.temperature)
        self._can_verify = self._options.verify and not (self._options.hand_over or self._tally.not_verified)
        written = self._transcript.num_tokens_by[self._target.name]
        self._passes_before = written + before.get("agreed", 0)  # as far as is known
        self._router_passes = 0  # of the target, for the last step
        self._beside = _TargetBeside(self._target, self._transcript, request)
        self._standing, self._is_draft_alone = self._resume(request.committed)
        drafted = (step for step in request.committed if step.author == self._draft.name)
        kept = (_advantage_of(step) for step in drafted if not terms.is_worth(_advantage_of(step), step, None))
        self._tally.expected_loss = math.fsum(max(0.0, advantage) for advantage in kept)
        if self._options.hand_over:  # whoever continues after a failure knows by who has written
            writers = {self._target.name, self._writer.name}
            is_begun = self._standing is Standing.CORRECTED
            self._tally.handed_over = is_begun or any(step.author in writers for step in request.committed)

    def details(self) -> dict[str, Any]:
        """What it has done so far, as its `Stop` tells."""
        return self._tally.told(self._before)

    async def events(self) -> AsyncGenerator[PolicyEvent, None]:
        for engine in (self._target, self._writer):
            self._transcript.token_ids(engine)  # refuse a prompt that is too long before anything starts
        reason: FinishReason | None = None
        try:
            try:
                router = self._build_router()
                self._reads_logprobs = self._needs_logprobs(router)
                while reason is None and not self._tally.handed_over:
                    async with aclosing(self._write(router)) as events:
                        async for event in events:
                            if isinstance(event, Step):
                                yield self._commit(event)
                            else:
                                reason = event
            except _TargetAloneError as error:
                self._tally.fallback = str(error)
            if reason is None:
                await self._beside.aclose()
                async with aclosing(self._write_alone()) as written:
                    async for event in written:
                        if isinstance(event, Step):
                            yield self._count(event)  # the stream itself continues: nothing to commit to
                        else:
                            reason = event
        finally:
            await self._beside.aclose()
        yield Stop(reason or FinishReason.STOP, self.details(), self.warnings())

    def warnings(self) -> dict[str, str]:
        """What was asked for and did not take place."""
        told = self.details()
        if told["fallback"]:
            return {"speculation": told["fallback"]}
        return {"verification": told["not_verified"]} if told["not_verified"] else {}

    async def _write(self, router: Router) -> AsyncGenerator[Step | FinishReason, None]:
        """The draft's steps up to one that is the target's to write, and that one. Each is committed as it comes."""
        async with aclosing(self._draft_ahead()) as drafted:
            async for event in drafted:
                if isinstance(event, FinishReason):
                    yield event
                    return
                self._start_early(event.step)
                if event.is_partial and (self._can_verify or not self._options.reject_early):
                    continue
                judged = await self._judge(router, event)
                if judged.is_rejected and event.is_partial:
                    self._told_tokens = len(judged.step.token_ids)
                if judged.is_rejected and self._terms.hands_over(self._transcript, self._tally):
                    self._tally.handed_over = True
                    break
                verdict = await self._verify(judged.step) if judged.is_rejected else None
                if judged.is_rejected and not (verdict and verdict.is_agreed):
                    break
                if not event.is_partial:
                    self._tally.expected_loss += 0 if judged.is_rejected else max(0.0, _advantage_of(judged.step))
                    await self._beside.drop_step()
                    self._standing = Standing.ASKED if judged.is_rejected else Standing.UNASKED
                    if not event.is_end:
                        yield judged.step
            else:
                return  # the draft was too far ahead: it begins again after what is committed
        if self._tally.handed_over:
            kept = self._keep_sure_part(judged.step)
            self._request.tell_discarded(judged.step, "rejected", len(kept.token_ids) if kept else 0)
            if kept:
                yield replace(kept, scores=judged.step.scores)
            return
        async with aclosing(self._escalate(judged.step, verdict)) as events:
            async for written in events:
                yield written

    async def _draft_ahead(self) -> AsyncGenerator[Drafted | FinishReason, None]:
        options, transcript = self._options, self._transcript
        watch = options.reject_early or options.start_early is not None
        try:
            if not transcript.room(self._draft):
                raise _TargetAloneError("the draft's context is full")
            # the target may begin with the request's own seed: nothing that it draws hangs together with the draft
            seed = seed_of(self._request.seed, "draft", transcript.num_tokens)
            wanted: dict[str, Any] = {"logprobs": True, "top_logprobs": TOP_LOGPROBS} if self._reads_logprobs else {}
            sampling = sampling_for(self._request, transcript, self._draft, seed=seed, **wanted)
            look_ahead = options.look_ahead
            if options.hand_over and look_ahead and self._request.limits.max_generated_tokens is None:
                look_ahead = sys.maxsize  # what is ahead is thrown away once: until then it is one generation
            ahead = run_ahead(self._draft, transcript, sampling, look_ahead, watch, self._tell_ahead)
            async with aclosing(ahead) as drafted:
                async for event in drafted:
                    if event is FinishReason.LENGTH and transcript.num_tokens < self._request.limits.max_tokens:
                        raise _TargetAloneError("the draft's context is full")
                    yield event
        except (EngineError, RequestError) as error:
            raise _alone("", error) from error

    async def _judge(self, router: Router, drafted: Drafted) -> Judged:
        """The step with its advantage, and whether the target should write it."""
        step = drafted.step
        length = max(1, len(step.token_ids))
        passes = 1 if self._can_verify else length
        if not self._may_ask(passes + self._router_passes, length):  # else the router would use up what it may ask for
            return Judged(step, is_rejected=False)
        if self._standing is Standing.CORRECTED:
            return Judged(step, is_rejected=True)
        if drafted.is_end:  # nothing that a router knows: it goes with the step before, if the answer is there
            is_rejected = self._standing is Standing.ASKED or not self._is_answered()
        else:
            advantage = await self._ask_router(router, step)
            is_worth = self._terms.is_worth(advantage, step, self._target_seconds(step), self._tally.expected_loss)
            is_rejected = is_worth and self._may_ask(passes, length)  # after what the router has asked of it
            step = replace(step, scores={**step.scores, "advantage": advantage})
        self._tally.escalations += is_rejected
        return Judged(step, is_rejected)

    async def _verify(self, step: Step) -> Verdict | None:
        """What the target says of the draft's step; None where it is to write the step without having read it."""
        has_no_room = self._transcript.room(self._target) <= len(step.token_ids)
        if not self._can_verify or self._beside.is_writing or has_no_room:
            return None
        await self._beside.stop_reading()  # it would read the same ids again
        started = time.perf_counter()
        seed = seed_of(self._request.seed, "verify")
        sampling = sampling_for(self._request, self._transcript, self._target, seed=seed)
        verdict = await verify_step(self._target, self._transcript, step, sampling)
        took_s = time.perf_counter() - started
        stays = step if verdict.is_agreed else verdict.kept
        num_kept = len(stays.token_ids) if stays else 0
        read = {"author": self._target.name, "tokens": len(step.token_ids), "kept_tokens": num_kept, "took_s": took_s}
        self._request.tell("verification", **read)
        self._tally.verify_s += took_s
        self._tally.verifications += 1
        self._tally.agreed += verdict.is_agreed
        self._beside.has_read(num_kept)
        self._tally.useless_escalations += verdict.is_agreed and self._standing is not Standing.CORRECTED
        return verdict

    async def _escalate(self, rejected: Step, verdict: Verdict | None) -> AsyncGenerator[Step | FinishReason, None]:
        """The target's step in place of `rejected`, or its first token that differs, after the part that is kept."""
        was_corrected, self._standing = self._standing is Standing.CORRECTED, Standing.ASKED
        kept = verdict.kept if verdict else None if was_corrected else self._keep_sure_part(rejected)
        self._request.tell_discarded(rejected, "rejected", len(kept.token_ids) if kept else 0)
        if kept is not None:
            yield replace(kept, scores=rejected.scores)
        if verdict and verdict.is_end:
            yield FinishReason.STOP
            return
        if verdict and verdict.correction:
            yield replace(verdict.correction, scores=rejected.scores)
            num_kept = len(kept.token_ids) if kept else 0
            rest = max(1, len(rejected.token_ids) - num_kept - 1)
            is_lost = was_corrected and num_kept < MIN_KEPT_TOKENS and self._may_ask(rest, rest)
            if verdict.correction.is_complete:
                return
            if not is_lost:
                self._standing = Standing.CORRECTED
                return
        if not self._transcript.room(self._target):
            yield FinishReason.LENGTH
            return
        step, reason = await self._beside.step(verdict.begun if verdict else None)
        written = (kept.text if kept else "") + (step.text if step else "")
        self._tally.useless_escalations += written == rejected.text
        if step is not None:
            yield replace(step, scores=rejected.scores)
            self._beside.has_read(0)
        if reason is not None:
            yield reason

    def _tell_ahead(self, step: Step) -> None:
        told, self._told_tokens = self._told_tokens, 0
        if told:
            ids = step.token_ids[told:]
            step = Step(self._draft.tokenizer.decode(ids), ids, step.author, step.is_complete, step.logprobs[told:])
        if step.token_ids:
            self._request.tell_discarded(step, "ahead")

    def _commit(self, step: Step) -> Step:
        self._transcript.commit(step)
        if self._options.warm_target and step.author == self._draft.name and self._may_ask(1, 0):
            self._beside.start_reading()
        return self._count(step)

    def _count(self, step: Step) -> Step:
        is_draft = step.author == self._draft.name
        self._is_draft_alone &= is_draft
        self._tally.draft_tokens += len(step.token_ids) if is_draft else 0
        if step.is_complete:
            self._tally.steps += 1
            self._tally.draft_steps += self._is_draft_alone
            self._is_draft_alone = True
        return step

    def _resume(self, committed: Sequence[Step]) -> tuple[Standing, bool]:
        """How the target stands to what comes after the committed steps, and whether the draft alone has begun it."""
        begun = [*takewhile(lambda step: not step.is_complete, reversed(committed))]
        if begun and begun[0].author == CLOSING:  # nobody has been asked about what comes after it
            return Standing.UNASKED, True
        if begun:  # the target was asked for it, unless a limit of the thinking has cut a step that the draft kept
            is_drafts = all(step.author == self._draft.name for step in begun)
            is_kept = is_drafts and not self._terms.is_worth(_advantage_of(begun[-1]), begun[-1], None, 0.0)
            return Standing.UNASKED if is_kept else Standing.CORRECTED, is_drafts
        if not committed:
            return Standing.UNASKED, True
        last, is_in_parts = committed[-1], len(committed) > 1 and not committed[-2].is_complete
        is_worth = self._terms.is_worth(_advantage_of(last), last, None, 0.0)
        was_asked = is_in_parts or last.author != self._draft.name or is_worth
        return Standing.ASKED if was_asked else Standing.UNASKED, True

    def _is_answered(self) -> bool:
        return holds_answer(split(self._transcript.text, self._prompt_opens_thinking).content)

    def _build_router(self) -> Router:
        try:
            return self._terms.router(self._request, self._engines)
        except ConfigError as error:
            _warn_once(str(error))
            raise _TargetAloneError(str(error)) from error

    def _needs_logprobs(self, router: Router) -> bool:
        """Whether the router, or an option, reads the draft's log-probabilities; they may cost, or not be there."""
        options = self._options
        keeps = self._keep_prefix > 0 and not self._can_verify and Capability.LOGPROBS in self._draft.capabilities
        return getattr(router, "reads_logprobs", True) or keeps or options.start_early is not None

    async def _ask_router(self, router: Router, step: Step) -> float:
        started, passes = time.perf_counter(), self._passes
        try:
            advantage = await router.advantage(self._transcript, step)
        except (EngineError, RequestError) as error:  # it died, or the transcript has outgrown its context
            raise _alone("the router is lost: ", error) from error
        self._tally.router_s += time.perf_counter() - started
        self._router_passes = self._passes - passes
        return advantage

    async def _write_alone(self) -> AsyncGenerator[Step | FinishReason, None]:
        if not self._transcript.room(self._writer):
            yield FinishReason.LENGTH
            return
        sampling = sampling_for(self._request, self._transcript, self._writer)
        async with aclosing(write_steps(self._writer, self._transcript, sampling)) as events:
            async for event in events:
                yield event

    def _may_ask(self, passes: int, length: int) -> bool:
        """Whether the target may do so many passes, for so many tokens of text, without more than its share of them."""
        share = self._options.max_target_share
        return share >= 1 or (self._passes + passes) / max(1, self._transcript.num_tokens + length) <= share

    @property
    def _passes(self) -> int:
        """Of the target so far."""
        return int(self._passes_before + self._target.usage(0).passes)

    def _target_seconds(self, step: Step) -> float | None:
        """What the target is predicted to take for the step, where that has a price."""
        if self._options.price is None:
            return None
        missing, length = self._beside.missing_tokens, len(step.token_ids)
        work = (1, missing + length) if self._can_verify else (length, missing)
        return self._pace.seconds(*work)

    def _keep_sure_part(self, rejected: Step) -> Step | None:
        """The tokens of a rejected step before the first of which the draft was not sure enough.

        Of these, as many as end where a token of the target's ends, too.
        """
        sure = self._keep_prefix
        doubts = (i for i, logprob in enumerate(rejected.logprobs) if not sure or logprob < math.log(sure))
        length = self._transcript.shared_length(self._target, rejected, next(doubts, 0))
        text = self._draft.tokenizer.decode(rejected.token_ids[:length])
        # not after a step that has begun already, and not within a character
        if not text or self._beside.is_writing or not rejected.text.startswith(text):
            return None
        return rejected.beginning(length, text, is_complete=False)

    def _start_early(self, step: Step) -> None:
        limit, length = self._options.start_early, len(step.token_ids)
        if limit is None or self._beside.is_writing or not step.top_logprobs or not self._may_ask(length, length):
            return
        if entropy(step.top_logprobs[0]) > limit:
            self._beside.start_step()


class _TargetBeside:
    """What the target does while the draft writes: it reads what is committed, or it begins the step itself."""

    def __init__(self, target: RequestEngine, transcript: Transcript, request: Request) -> None:
        self._target, self._transcript, self._request = target, transcript, request
        self._read_tokens = 0  # of the target's ids, how many it has read or written
        self._reading: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[tuple[Step | None, FinishReason | None]] | None = None

    @property
    def is_writing(self) -> bool:
        return self._writing is not None

    @property
    def missing_tokens(self) -> int:
        """Of its ids, those that it has neither read nor written."""
        return len(self._transcript.token_ids(self._target)) - self._read_tokens

    def has_read(self, further_tokens: int) -> None:
        """It has read all that is committed, and so many tokens after it."""
        self._read_tokens = len(self._transcript.token_ids(self._target)) + further_tokens

    def start_reading(self) -> None:
        can_read = Capability.READ in self._target.capabilities
        if can_read and self._reading is None and self.missing_tokens >= WARM_TOKENS:
            self._reading = asyncio.create_task(self._read())

    async def stop_reading(self) -> None:
        await cancel(self._reading)
        self._reading = None

    def start_step(self, begun: TokenDelta | None = None) -> None:
        sampling = sampling_for(self._request, self._transcript, self._target)
        self._writing = asyncio.create_task(write_step(self._target, self._transcript, sampling, begun))

    async def drop_step(self) -> None:
        await cancel(self._writing)
        self._writing = None

    async def step(self, begun: TokenDelta | None) -> tuple[Step | None, FinishReason | None]:
        """The target's step, after its tokens `begun`; started now if it is not started already."""
        if self._writing is None:
            self.start_step(begun)
        await self.stop_reading()
        assert self._writing is not None  # noqa: S101 - for the type checker
        try:
            return await self._writing
        finally:
            await self.drop_step()

    async def aclose(self) -> None:
        await cancel(self._reading, self._writing)

    async def _read(self) -> None:
        """What the target cannot read now it will read when it is asked."""
        ids = list(self._transcript.token_ids(self._target))
        with suppress(ReasonRTError):
            await self._target.read(ids, ids[:1])
            self._read_tokens = max(self._read_tokens, len(ids))
        self._reading = None


class _TargetAloneError(Exception):
    """The draft or the router is not there, or has no room; says why."""


def _advantage_of(step: Step) -> float:
    return step.scores.get("advantage", 0.0)


def _alone(what: str, error: ReasonRTError) -> _TargetAloneError:
    if isinstance(error, EngineError):
        _log.warning("%s%s; the target writes alone", what, error)
    return _TargetAloneError(f"{what}{told(error)}")


@cache
def _warn_once(message: str) -> None:
    _log.warning("%s; the target writes alone", message)
