"""`auto`: the way of solving a request that is predicted to be the fastest, within the accuracy that it asks for.

Four ways, each with what it needs:

* **target**: the target alone.
* **speculative**: the same model in an engine with token-level speculation of its own, where there is one.
* **hand_over**: the draft, gated step by step; from the first step that does not pass, the faster of these two writes.
* **arbitrage**: the draft, and a target that verifies the steps that do not pass.

The first two are the target's own text. The others may lose `max_loss` against it, as the router expects (see
`SpeculationOptions.max_loss`), which is why they need a router that was measured on steps held out.

What a way takes is predicted by the cost model (`policies/speculation/costs.py`) from what the requests of this runtime
have shown of late: the pace of each engine under its load, what a way asks of either engine for a token of text, how
long a solution is, and how much longer the way took than was predicted. At each step that does not pass, it is
predicted again for the rest of the request.
"""

import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal
from weakref import WeakKeyDictionary

from reasonrt.errors import ConfigError, RequestError, told
from reasonrt.pace import Pace
from reasonrt.policies.options import PolicyOptions
from reasonrt.policies.single import Role, Single
from reasonrt.policies.speculation.costs import NO_WORK, Parts, Speed, Work, planned, seconds_per_problem
from reasonrt.policies.speculation.loop import SpeculationLoop, Tally
from reasonrt.policies.speculation.options import Share, SpeculationOptions
from reasonrt.policies.speculation.policy import Speculation
from reasonrt.policies.speculation.verification import why_not_verify
from reasonrt.ports import OPERATOR_ONLY, Engine, Engines, RequestEngine
from reasonrt.routers.learned import LearnedOptions, RouterFile, load_router, roles_of_learned
from reasonrt.routers.registry import ROUTERS
from reasonrt.tasks import read_text
from reasonrt.transcript import Transcript
from reasonrt.types import PolicyEvent, Request, Stop

Way = Literal["target", "speculative", "hand_over", "arbitrage"]
GATED: Final[tuple[Way, ...]] = ("hand_over", "arbitrage")
ALONE: Final[tuple[Way, ...]] = ("target", "speculative")
HALF_LIFE_REQUESTS = 8
TRIED_AGAIN_AFTER = 64
"""Requests after which a way is tried again that was left aside and is not hopeless: machines and tasks change."""
HOPEFUL = 2.0
"""A way that is predicted to take more than so many times as long as the best is not tried to learn of it."""
_LEARNING = "to learn how fast it is"
_TOKENS = 256  # of a solution, before there was one
_STEP_TOKENS = 16


@dataclass
class Auto(PolicyOptions):
    """Options of `auto`.

    Attributes:
        max_loss: the probability of a right end that a request may lose against the target's own, in [0, 1]; at 0 the
            text is the target's own.
        speculative: the role of an engine of the target with token-level speculation of its own (engine setting
            `speculative`), where there is one.
        router_file: as of `arbitrage`.
    """

    max_loss: Share = 0.01
    speculative: Role = "target_speculative"
    router_file: Annotated[str, OPERATOR_ONLY] = "zoo:nano-features"

    engines = ("target",)

    @property
    def optional_engines(self) -> tuple[str, ...]:
        return ("draft", self.speculative, *roles_of_learned(LearnedOptions(self.router_file)))

    def check(self, engines: Mapping[str, Engine]) -> None:
        if "draft" in engines:
            load_router(self.router_file).bind(engines)

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        for role in self.optional_engines:
            if role in engines:
                with suppress(RequestError):  # told of where it is asked
                    await read_text(request.num_characters, request.prompt, engines[role].tokenizer)
        figures = _figures.setdefault(engines["target"].pace, Figures())
        solving = _Solving(self, request, engines, figures)
        engines.at_limit(solving.details)
        async with aclosing(solving.events()) as events:
            async for event in events:
                if isinstance(event, Stop):
                    event = replace(event, details={**event.details, **solving.details()})
                yield event


@dataclass
class Shown:
    """What requests have shown of one way.

    Attributes:
        weight: of the requests behind it.
        drafted, targeted: work per committed token: of the draft, and of the engine of the target.
        log_error: logarithm of the seconds that it took over those that were predicted.
        tried_at: the number of the request that last went this way.
    """

    weight: float = 0.0
    drafted: Work = NO_WORK
    targeted: Work = NO_WORK
    log_error: float = 0.0
    tried_at: int | None = None

    def add(self, drafted: Work, targeted: Work, error: float) -> None:
        keep = 0.5 ** (1 / HALF_LIFE_REQUESTS)
        self.weight = keep * self.weight + 1
        part = 1 / self.weight
        self.drafted, self.targeted = _mixed(self.drafted, drafted, part), _mixed(self.targeted, targeted, part)
        self.log_error += part * (math.log(min(10.0, max(0.1, error))) - self.log_error)


@dataclass
class Figures:
    """What the requests of one runtime have shown."""

    num_requests: int = 0
    tokens: float = _TOKENS
    ways: dict[Way, Shown] = field(default_factory=lambda: {way: Shown() for way in (*ALONE, *GATED)})

    def has_written(self, tokens: int) -> None:
        self.tokens += (1 - 0.5 ** (1 / HALF_LIFE_REQUESTS)) * (max(1, tokens) - self.tokens)


_figures: WeakKeyDictionary[Pace, Figures] = WeakKeyDictionary()
"""By the target's pace, of which each runtime has one."""


@dataclass
class _Gated(Speculation):
    """`arbitrage` that asks, at each step that the draft must not keep, who is to write on."""

    is_handing_over: Callable[[Transcript], bool]

    def hands_over(self, transcript: Transcript, tally: Tally) -> bool:
        return self.is_handing_over(transcript)


class _Solving:
    """One request."""

    def __init__(self, auto: Auto, request: Request, engines: Engines, figures: Figures) -> None:
        self._auto, self._request, self._engines, self._figures = auto, request, engines, figures
        self._speculative = auto.speculative if auto.speculative in engines else ""
        self._transcript = Transcript.of(request, engines)
        self._prompt_tokens = len(self._transcript.token_ids(engines["target"]))
        figures.num_requests += 1
        self._missing = self._unavailable()  # way to why it is not there
        self._num_concurrent = self._count_concurrent()
        self._router = self._load_router()
        self._writer = self._faster_target()
        self._predicted = {
            way: self._seconds(way, figures.tokens) for way in (*ALONE, *GATED) if way not in self._missing
        }
        self._way, self._why = self._choose()
        self._loop: SpeculationLoop | None = None
        figures.ways[self._way].tried_at = figures.num_requests

    def details(self) -> dict[str, Any]:
        """What it chose and why, by the key `auto`; the ratios are measured over predicted, of the last requests."""
        known = {way: round(seconds, 4) for way, seconds in self._predicted.items() if seconds is not None}
        ratios = {way: round(math.exp(shown.log_error), 3) for way, shown in self._figures.ways.items() if shown.weight}
        return {
            "auto": {"way": self._way, "why": self._why, "predicted_s": known, "ratios": ratios}
            | ({"unavailable": dict(self._missing)} if self._missing else {})
        }

    async def events(self) -> AsyncGenerator[PolicyEvent, None]:
        started, num_tokens = time.perf_counter(), 0
        async with aclosing(self._written()) as events:
            async for event in events:
                if isinstance(event, Stop):
                    self._learn(num_tokens, time.perf_counter() - started)
                else:
                    num_tokens += len(event.token_ids)
                yield event

    def _written(self) -> AsyncGenerator[PolicyEvent, None]:
        if self._way not in GATED:
            return Single(self._role_of(self._way)).solve(self._request, self._engines)
        defaults = {**ROUTERS["arbitrage"].defaults, "verify": "arbitrage" not in self._missing}
        options = SpeculationOptions(max_loss=self._max_loss(), **defaults)
        policy = _Gated(ROUTERS["arbitrage"], options, LearnedOptions(self._auto.router_file), self._hands_over)
        engines = {**self._engines, "writer": self._engines[self._writer]}
        self._loop = SpeculationLoop(policy, self._request, engines, self._engines.told)
        self._engines.at_limit(self._loop.details, self._loop.warnings)
        return self._loop.events()

    def _choose(self) -> tuple[Way, str]:
        """The way, and why."""
        figures, predicted = self._figures, self._predicted
        known = {way: seconds for way, seconds in predicted.items() if seconds is not None}
        unknown = [way for way in predicted if way not in known]
        untried = [way for way in unknown if figures.ways[way].tried_at is None]
        if untried or not known:
            # several requests may begin before anything is known: each goes another way
            way = untried[0] if untried else min(unknown, key=lambda way: figures.ways[way].tried_at or 0)
            return way, _LEARNING
        best = min(known, key=lambda way: known[way])
        for way, seconds in known.items():
            tried_at = figures.ways[way].tried_at
            is_known = tried_at is not None or way not in GATED  # what an engine writes alone, its pace tells
            is_old = is_known and figures.num_requests - (tried_at or 0) > TRIED_AGAIN_AFTER
            if way != best and seconds <= HOPEFUL * known[best] and (not is_known or is_old):
                return way, _LEARNING
        others = ", ".join(f"{way} {seconds:.3g} s" for way, seconds in known.items() if way != best)
        why = f"predicted {known[best]:.3g} s" + (f"; {others}" if others else "")
        reasons = dict.fromkeys(self._missing.values())
        return best, why + "".join(f"; {reason}" for reason in reasons)

    def _hands_over(self, transcript: Transcript) -> bool:
        """Whether the draft is asked no more, now that a step of its does not pass."""
        if "arbitrage" in self._missing or self._why == _LEARNING:
            return self._way == "hand_over"
        self._num_concurrent = max(1.0, self._count_concurrent() - 1)  # the draft of this request is still writing
        left = max(_STEP_TOKENS, self._figures.tokens - transcript.num_tokens)
        handing = self._seconds("hand_over", left, is_handed_over=True)
        going_on = self._seconds("arbitrage", left, written=transcript.num_tokens)
        if handing is None or going_on is None:
            return self._way == "hand_over"
        self._way = "hand_over" if handing <= going_on else "arbitrage"
        return self._way == "hand_over"

    def _seconds(self, way: Way, tokens: float, written: int = 0, *, is_handed_over: bool = False) -> float | None:
        """From now to the end of so many tokens, as predicted; None where nothing is known.

        Args:
            written: tokens of this request, whose own work counts as well.
            is_handed_over: none of these is the draft's.
        """
        shown, engine = self._figures.ways[way], self._engines[self._role_of(way)]
        target = _speed(engine)
        if target is None:
            return None
        n, alone = self._num_concurrent, Work(tokens, self._prompt_tokens)
        if is_handed_over:
            shown = self._figures.ways["speculative" if self._role_of(way) == self._speculative else "target"]
        if way not in GATED or is_handed_over:
            return n * alone.seconds(target, n) * math.exp(shown.log_error)
        draft = _speed(self._engines["draft"])
        if draft is None:
            return None
        if shown.weight:
            drafted, targeted = self._with_own(shown, way, written)
            drafted, targeted = drafted * tokens, targeted * tokens
        else:
            drafted, targeted = self._expected_work(way, draft, target, tokens)
        parts = Parts(draft, target, alone, drafted, targeted, at_once=n)
        return n * seconds_per_problem(parts) * math.exp(shown.log_error)

    def _with_own(self, shown: Shown, way: Way, written: int) -> tuple[Work, Work]:
        """Work per token, of the last requests and of this one so far."""
        if not written:
            return shown.drafted, shown.targeted
        part = written / (written + self._figures.tokens)
        own_drafted, own_targeted = (work * (1 / written) for work in self._own_work(way))
        return _mixed(shown.drafted, own_drafted, part), _mixed(shown.targeted, own_targeted, part)

    def _expected_work(self, way: Way, draft: Speed, target: Speed, tokens: float) -> tuple[Work, Work]:
        """Before it was tried: by the share of the steps that the router kept when it was calibrated."""
        kept = self._kept_share()
        if way == "arbitrage":
            parts = planned(
                draft, target, kept, tokens=tokens, prompt_tokens=self._prompt_tokens, step_tokens=_STEP_TOKENS
            )
            return parts.drafted, parts.targeted
        num_steps = max(1, round(tokens / _STEP_TOKENS))
        by_draft = tokens * math.fsum(kept**k for k in range(1, num_steps + 1)) / num_steps
        is_asked = 1 - kept**num_steps
        drafted = Work(by_draft + is_asked * _STEP_TOKENS, self._prompt_tokens)
        return drafted, Work(tokens - by_draft, is_asked * (self._prompt_tokens + by_draft))

    def _kept_share(self) -> float:
        assert self._router is not None and self._router.report is not None  # noqa: S101, PT018 - it would be missing
        bins, bar = self._router.report["calibration"], self._max_loss() * _STEP_TOKENS / self._figures.tokens
        return float(sum(predicted <= bar for predicted, _ in bins) / len(bins))

    def _max_loss(self) -> float:
        """Of what the router predicts: one that predicts too little has less to lose."""
        assert self._router is not None and self._router.report is not None  # noqa: S101, PT018 - it would be missing
        bins = self._router.report["calibration"]
        predicted, measured = (math.fsum(each[column] for each in bins) for column in (0, 1))
        return self._auto.max_loss * (max(0.0, min(1.0, predicted / measured)) if measured > 0 else 1.0)

    def _learn(self, num_tokens: int, seconds: float) -> None:
        """From this request, which wrote so many tokens; of one that went two ways, their number alone."""
        if self._request.committed or not num_tokens:
            return
        self._figures.has_written(num_tokens)
        done = self._loop.details() if self._loop else {}
        if done.get("fallback") or (done.get("handed_over") and done["verifications"]):
            return
        shown = self._figures.ways[self._way]
        shown.tried_at = self._figures.num_requests
        error = math.exp(shown.log_error)
        predicted = self._seconds(self._way, num_tokens)
        ratio = seconds / (predicted / error) if predicted else 1.0
        drafted, targeted = self._own_work(self._way)
        shown.add(drafted * (1 / num_tokens), targeted * (1 / num_tokens), ratio)

    def _own_work(self, way: Way) -> tuple[Work, Work]:
        """What this request has asked of the draft, and of the engine of the target."""
        work = []
        for role in ("draft", self._role_of(way)):
            usage = self._engines[role].usage(0) if role in self._engines else None
            work.append(Work(usage.generated, usage.prefilled) if usage else NO_WORK)
        return work[0], work[1]

    def _role_of(self, way: Way) -> str:
        """Of the engine of the target that writes, or verifies, in this way."""
        if way == "speculative":
            return self._speculative
        return self._writer if way == "hand_over" else "target"

    def _faster_target(self) -> str:
        """The role of the faster engine of the target; of the one that speculates, where that is not known."""
        if not self._speculative:
            return "target"
        target_s, speculative_s = (self._seconds(way, self._figures.tokens) for way in ALONE)
        return "target" if target_s and speculative_s and target_s < speculative_s else self._speculative

    def _count_concurrent(self) -> float:
        """The generations that run on these engines, with one of this request."""
        roles = {"target", "draft", self._speculative} & {*self._engines}
        return 1.0 + sum(self._engines[role].pace.running for role in roles)

    def _load_router(self) -> RouterFile | None:
        return None if "hand_over" in self._missing else load_router(self._auto.router_file)

    def _unavailable(self) -> dict[Way, str]:
        """The ways that are not there, and why."""
        missing: dict[Way, str] = {}
        target, role = self._engines["target"], self._auto.speculative
        if not self._speculative:
            missing["speculative"] = f"no engine has the role {role!r}"
        elif self._engines[role].model_fingerprint != target.model_fingerprint:
            missing["speculative"], self._speculative = f"engine {role!r} has another model than the target", ""
        elif not self._has_room(role):
            missing["speculative"], self._speculative = f"the context of engine {role!r} is full", ""
        if reason := self._why_not_gated():
            return missing | dict.fromkeys(GATED, reason)
        if reason := why_not_verify(self._engines["draft"], target, self._request.temperature):
            missing["arbitrage"] = reason
        return missing

    def _why_not_gated(self) -> str:
        if "draft" not in self._engines:
            return "no engine has the role 'draft'"
        if not self._auto.max_loss:
            return "max_loss is 0"
        try:
            router = load_router(self._auto.router_file)
            router.bind(self._engines)
        except ConfigError as error:
            return told(error)
        if not self._has_room("draft"):
            return "the draft's context is full"
        if not (router.report and router.report.get("calibration")):
            return f"the router {self._auto.router_file} was not measured on steps held out"
        return ""

    def _has_room(self, role: str) -> bool:
        try:
            return self._transcript.room(self._engines[role]) > 0
        except RequestError:  # the prompt alone fills it
            return False


def _speed(engine: RequestEngine) -> Speed | None:
    """Its speed per token of one generation, whatever it speculates by itself; None before it has written.

    Undisturbed, as the cost model takes it, which adds what engines on one device do one after the other.
    """
    line = engine.pace.undisturbed
    return Speed(*line, engine.pace.prefill_s_per_token) if line and sum(line) > 0 else None


def _mixed(old: Work, new: Work, part: float) -> Work:
    return old * (1 - part) + new * part
