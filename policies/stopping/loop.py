"""One request under a stopping rule.

The inner policy continues to write while a probe runs. What it writes after a checkpoint is held back until the rule
has decided there, so that the rule stops at the same token as in replay, however long its probe takes. Where the rule
stops before it has seen an answer, nothing more is written while the answer is asked for; should that be blank, the
inner policy continues after the steps that it has written, as a request does that was cut off.

A checkpoint is the first boundary of a complete step at or after a mark of the schedule, before the thinking ends,
with room left for a probe. After a dropped probe the request thinks to its end: a rule that has not seen everything
could stop where it would not have in replay, and lose an answer that no trace has lost.

Where the request has tools, the answer of a probe is not taken: the thinking is closed, and the answer is written as it
is after thinking that ends by itself, so that it may call them.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from reasonrt.errors import ReasonRTError
from reasonrt.policies.answering import answered
from reasonrt.policies.stopping.probes import Answer, Probe, full_answer
from reasonrt.policies.stopping.replay import Outcome
from reasonrt.policies.stopping.rules import Action, StoppingRule, Watch
from reasonrt.policies.stopping.schedule import Schedule
from reasonrt.policies.stopping.service import ServedCertificate
from reasonrt.policies.stopping.shadows import ShadowTraces
from reasonrt.policies.stopping.signals import LOOKS
from reasonrt.policies.stopping.traces import Checkpoint, Fingerprints, Trace, problem_hash
from reasonrt.policies.structured import is_written_apart, structured
from reasonrt.ports import Engines, Policy, RequestEngine
from reasonrt.scopes import LimitReached
from reasonrt.tasks import cancel
from reasonrt.thinking import CLOSING, closing_text, ends_thinking, opens_thinking, split
from reasonrt.transcript import Transcript
from reasonrt.types import Completion, FinishReason, PolicyEvent, Request, Step, Stop

AUTHOR = "stopping"
"""Of the suffix: no engine has generated it."""

_Telling = asyncio.Task[tuple[dict[str, float], Answer | None]]


@dataclass(frozen=True, slots=True)
class Terms:
    """What one request is stopped by.

    Attributes:
        rule: None records.
        suffix: token ids that a probe appends.
        max_running, patience_s: as in `StoppingOptions`; a recording is patient without end.
        served: the certificate, where there is one.
        is_shadow: think to the end, and tell the certificate what the rule would have done.
        shadows: where it is recorded as a shadow, and what it was made with.
    """

    rule: StoppingRule | None
    schedule: Schedule
    suffix: Sequence[int]
    max_running: int
    patience_s: float | None = None
    served: ServedCertificate | None = None
    is_shadow: bool = False
    shadows: tuple[ShadowTraces, Fingerprints] | None = None

    @property
    def records(self) -> bool:
        """Whether every checkpoint is looked at in full, whatever a rule wants."""
        return self.rule is None or self.shadows is not None


@dataclass(slots=True)
class _Asked:
    """A checkpoint whose probe runs.

    Attributes:
        token_ids: that it was asked after.
        is_wanted: whether the rule looks at it.
    """

    tokens: int
    token_ids: Sequence[int]
    is_wanted: bool
    told: _Telling


class StoppingLoop:
    """The events of `inner`, up to where the rule stops it."""

    def __init__(
        self,
        inner: Policy,
        request: Request,
        engines: Engines,
        engine: RequestEngine,
        terms: Terms,
    ) -> None:
        self._inner, self._request, self._engines, self._engine, self._terms = inner, request, engines, engine, terms
        self._transcript = Transcript.of(request, engines)
        tokenizer = engines[inner.engines[0]].tokenizer
        self._opens_thinking = opens_thinking(tokenizer.decode, request.prompt(tokenizer))
        self._ends = {author.name: author.tokenizer.eos_token_ids for author in engines.values()}
        self._is_thinking, self._has_ended = not ends_thinking(self._transcript.text), False
        self._mark = terms.schedule.next_mark(self._transcript.num_tokens)
        self._probe = Probe(engine, terms.suffix, terms.schedule.answer_tokens, request.logprobs or 0)
        self._watch = Watch(terms.rule) if terms.rule else None
        self._looks = self._watch.looks if self._watch and not terms.records else LOOKS
        self._shown: list[Step] = []
        self._seen: list[Checkpoint] = []
        self._num_dropped = self._returned_tokens = 0
        self._outcome, self._is_counted = Outcome(Action.GO_ON, None, None, 0), False
        self._written: asyncio.Queue[tuple[PolicyEvent, _Asked | None] | Exception] = asyncio.Queue()
        self._asking: set[_Telling] = set()
        # one probe beside what the inner policy writes; a recording takes as many as there are checkpoints
        self._turn = asyncio.Semaphore(1) if terms.rule else nullcontext()

    async def events(self) -> AsyncGenerator[PolicyEvent, None]:
        self._engines.at_limit(lambda: {"stopping": self._told_so_far()})
        self._writing = asyncio.create_task(self._write(self._request))
        try:
            while True:
                written = await self._written.get()
                if isinstance(written, Exception):
                    raise written
                event, asked = written
                if isinstance(event, Stop):
                    yield self._ended(event)
                    return
                yield event
                self._shown.append(event)
                if asked is None:
                    continue
                if self._outcome.action is not Action.GO_ON and not self._terms.records:
                    self._tell_unused(asked)
                    continue
                answer = await self._decide(asked)
                if self._outcome.action is Action.GO_ON or self._terms.is_shadow:
                    self._continue()
                    continue
                await cancel(self._writing, *self._asking)
                self._tell_left()
                if answer is not None and self._request.tools:
                    async with aclosing(self._answered()) as rest:
                        async for event in rest:
                            yield event
                    return
                if answer is not None:
                    self._returned_tokens = len(answer.token_ids)
                    yield Step(self._engine.tokenizer.decode(self._probe.suffix), self._probe.suffix, AUTHOR, False)
                    yield answer.step(self._engine.name, self._seen[-1].signals)
                yield Stop(FinishReason.STOP, {"stopping": self._details()})
                return
        except GeneratorExit:  # who reads this needs no more of it: it has met a stop text, say
            has_stopped = self._outcome.action is not Action.GO_ON and not self._terms.is_shadow
            if not self._is_counted and (has_stopped or self._has_answer()):
                self._ended(Stop(FinishReason.STOP))
            raise
        finally:
            await cancel(self._writing, *self._asking)

    async def _answered(self) -> AsyncGenerator[PolicyEvent, None]:
        """The end of the thinking, where the rule stops it, and an answer that may call tools."""
        before = (*self._request.committed, *self._shown)
        text = closing_text(before[-1].text if before else "")
        closing = Step(text, tuple(self._engine.tokenizer.encode(text)), CLOSING)
        yield closing
        rest = replace(self._request, committed=(*before, closing))
        async with aclosing(structured(self._inner, rest, self._engines)) as events:
            async for event in events:
                yield self._ended(event) if isinstance(event, Stop) else event

    async def _write(self, request: Request, *, is_finished: bool = False) -> None:
        """Take what the inner policy writes, so that it never waits for a probe."""
        try:
            solve = structured if is_written_apart(self._inner, request) else answered
            events = solve(self._inner, request, self._engines, is_finished=is_finished)
            async with aclosing(events):
                async for event in events:
                    self._written.put_nowait((event, self._ask(event) if isinstance(event, Step) else None))
            self._written.put_nowait((Stop(FinishReason.STOP), None))  # after the policy's own, if it has yielded one
        except Exception as error:  # noqa: BLE001 (it is the reader's)
            self._written.put_nowait(error)

    def _ask(self, step: Step) -> _Asked | None:
        """Ask after `step`, if there is a checkpoint that the rule looks at."""
        self._transcript.commit(step)
        self._is_thinking = self._is_thinking and not ends_thinking(self._transcript.text)
        tokens = self._transcript.num_tokens
        self._has_ended = bool(step.token_ids) and step.token_ids[-1] in self._ends.get(step.author, ())
        if not self._is_thinking or self._has_ended or not step.is_complete or tokens < self._mark:
            return None
        self._mark = self._terms.schedule.next_mark(tokens)
        left = self._request.limits.max_tokens - tokens
        if min(left, self._transcript.room(self._engine)) < self._probe.room_tokens:
            return None
        if self._request.tools and not split(self._transcript.text, self._opens_thinking).is_thinking:
            return None  # it may be calling one
        is_wanted = self._watch is not None and self._watch.wants(tokens) and self._outcome.action is Action.GO_ON
        if (self._watch and self._num_dropped) or not (is_wanted or self._terms.records):
            return None
        token_ids = tuple(self._transcript.token_ids(self._engine))
        told = asyncio.create_task(self._told(token_ids))
        self._asking.add(told)
        told.add_done_callback(self._forget)
        return _Asked(tokens, token_ids, is_wanted, told)

    async def _told(self, token_ids: Sequence[int]) -> tuple[dict[str, float], Answer | None]:
        """What the rule reads after `token_ids`; less, or nothing, where a probe is dropped."""
        signals: dict[str, float] = {}
        answer = None
        if self._has_time():
            async with self._turn, self._patiently():
                signals = await self._probe.look(self._looks, token_ids)
                if self._terms.records or (self._watch and self._watch.wants_answer(signals)):
                    answer = await self._probe.answer(token_ids)
        return signals, answer

    def _forget(self, told: _Telling) -> None:
        self._asking.discard(told)
        if not told.cancelled():
            told.exception()  # raised where it is waited for, and of no interest where it no longer is

    def _has_time(self) -> bool:
        has_time = self._engine.pace.running < self._terms.max_running
        self._num_dropped += not has_time
        return has_time

    @asynccontextmanager
    async def _patiently(self) -> AsyncIterator[None]:
        """What is done within is dropped where it fails or takes too long."""
        try:
            async with asyncio.timeout(self._terms.patience_s):
                yield
        # where the engine itself is lost, or no call is left, the inner policy meets it too
        except (ReasonRTError, LimitReached, TimeoutError):
            self._num_dropped += 1

    async def _decide(self, asked: _Asked) -> Answer | None:
        """Let the rule see a checkpoint; the answer, where it stops with one."""
        signals, answer = await asked.told
        checkpoint = self._checkpoint(asked, signals, answer)
        is_running = self._outcome.action is Action.GO_ON
        action = self._watch.see(checkpoint) if self._watch and asked.is_wanted and is_running else Action.GO_ON
        if action is Action.ANSWER and answer is None and self._has_time():
            await self._pause()
            async with self._turn, self._patiently():
                answer = await self._probe.answer(asked.token_ids)
                checkpoint = self._checkpoint(asked, signals, answer)
        if self._watch and self._num_dropped:
            self._tell_probe(checkpoint, "dropped")
            return None
        self._seen.append(checkpoint)
        if action is Action.GIVE_UP or (action is Action.ANSWER and checkpoint.answer):
            value = checkpoint.answer if action is Action.ANSWER else None
            net_tokens = asked.tokens + self._probe.spent_tokens
            self._outcome = Outcome(action, len(self._seen) - 1, value, net_tokens)
        self._tell_probe(checkpoint, str(self._outcome.action))
        return answer if self._outcome.action is Action.ANSWER else None

    def _tell_probe(self, checkpoint: Checkpoint, action: str) -> None:
        """Report a checkpoint: what the rule made of it, or `dropped` or `unused` where it has not seen it."""
        looks = LOOKS & checkpoint.signals.keys()
        self._request.tell(
            "probe",
            author=self._engine.name,
            at_tokens=checkpoint.tokens,
            answer=checkpoint.answer,
            signals=dict(checkpoint.signals),
            tokens=checkpoint.probe_tokens + len(looks),
            action=action,
        )

    def _tell_unused(self, asked: _Asked) -> None:
        is_told = asked.told.done() and not asked.told.cancelled() and asked.told.exception() is None
        signals, answer = asked.told.result() if is_told else ({}, None)
        self._tell_probe(self._checkpoint(asked, signals, answer), "unused")

    def _tell_left(self) -> None:
        """Report what was written after the token at which the rule has stopped."""
        while not self._written.empty():
            written = self._written.get_nowait()
            if isinstance(written, tuple) and isinstance(written[0], Step):
                self._request.tell_discarded(written[0], "stopped")
                if written[1]:
                    self._tell_unused(written[1])

    async def _pause(self) -> None:
        """Let the inner policy write no more, where there are calls left to continue with."""
        if not self._terms.is_shadow and self._engines.allowance.engine_calls > self._terms.schedule.answer_tokens:
            await cancel(self._writing)

    def _continue(self) -> None:
        """Let it write again after all steps that are written, if it was paused."""
        if not self._writing.cancelled():
            return
        request = replace(self._request, committed=tuple(self._transcript.steps))
        self._writing = asyncio.create_task(self._write(request, is_finished=self._has_ended))

    def _checkpoint(self, asked: _Asked, signals: Mapping[str, float], answer: Answer | None) -> Checkpoint:
        if answer is None:
            return Checkpoint(asked.tokens, None, signals)
        return Checkpoint(asked.tokens, answer.value, {**signals, **answer.signals}, len(answer.token_ids))

    def _ended(self, stop: Stop) -> Stop:
        """The inner policy has come to its end."""
        served = self._terms.served
        if served and self._terms.is_shadow:
            trace = self._trace(stop.reason)
            served.ran_to_the_end(self._request, trace, self._outcome)
            if self._terms.shadows:
                shadows, fingerprints = self._terms.shadows
                shadows.add(trace, fingerprints)
        return replace(stop, details={**stop.details, "stopping": self._details()})

    def _has_answer(self) -> bool:
        """Whether the thinking has ended, and the answer stands after it."""
        return not self._is_thinking and self._trace(FinishReason.STOP).full_answer is not None

    def _trace(self, reason: FinishReason) -> Trace:
        """The request as a trace without gold, up to its first dropped probe: a rule sees nothing after it."""
        steps = tuple(self._transcript.steps)
        completion = Completion(steps, reason, {}, 0.0, prompt_opens_thinking=self._opens_thinking)
        asked = problem_hash("\n".join(message.content for message in self._request.messages))
        return Trace(
            asked, self._seen, max(1, self._transcript.num_tokens), full_answer(completion), content_hash=asked
        )

    def _details(self) -> dict[str, Any]:
        """What the `Stop` tells; counted among what the certificate has done."""
        found, self._is_counted = self._told_so_far(), True
        if served := self._terms.served:
            served.counts["dropped"] += self._num_dropped
            served.counts[found["action"]] += 1
        return found

    def _told_so_far(self) -> dict[str, Any]:
        """What was done and by which rule, and what it took."""
        terms, outcome = self._terms, self._outcome
        found: dict[str, Any] = {
            "action": str(Action.GO_ON if terms.is_shadow else outcome.action),
            "tokens": None if outcome.index is None else self._seen[outcome.index].tokens,
            "rule": asdict(terms.rule) if terms.rule and not terms.served else None,  # a certificate's stands there
            "certificate": terms.served.sha256 if terms.served else None,
            "is_shadow": terms.is_shadow,
            "num_checkpoints": len(self._seen),
            "num_dropped": self._num_dropped,
            "probe_tokens": self._probe.spent_tokens,
            "returned_tokens": self._returned_tokens,  # of these, the ones that are the answer
        }
        return found if terms.rule else found | {"checkpoints": [asdict(checkpoint) for checkpoint in self._seen]}
