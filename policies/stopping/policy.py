"""Stopping over any policy: the option `stopping`, and under a certificate also `risk`, of every request.

The rule is watched while the inner policy writes (`stopping_loop.py`). Where it cannot be, because the certificate is
for another model for instance, the request thinks to the end, and its details say why.
"""

import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any

from reasonrt.errors import CalibrationError, RequestError
from reasonrt.policies.options import PolicyOptions
from reasonrt.policies.stopping.files import canonical, parse
from reasonrt.policies.stopping.loop import StoppingLoop, Terms
from reasonrt.policies.stopping.probes import SUFFIX
from reasonrt.policies.stopping.rules import RULE
from reasonrt.policies.stopping.schedule import SCHEDULE, Schedule
from reasonrt.policies.stopping.service import Guards
from reasonrt.policies.stopping.traces import Fingerprints
from reasonrt.ports import Capability, Engine, PacedEngine, Policy
from reasonrt.types import Message, PolicyEvent, Request, Stop

OPTIONS = frozenset({"stopping", "risk"})
"""Of every policy; a policy itself never sees them."""
PROBE = "answer"


@dataclass
class StoppingOptions(PolicyOptions):
    """What stands under `stopping`: one of the first three, and how.

    Attributes:
        certificate: a file; or several, of which the first holds where the request names no risk.
        rule: a stopping rule, as in a certificate; it promises nothing.
        record: look at every checkpoint in full, never stop, and return what was seen.
        suffix: what a probe appends; a certificate brings its own.
        schedule: fields of `Schedule`; a certificate brings its own.
        shadow: share of the requests under a certificate that run to their end, in [0, 1].
        max_running: while the engine works on so many generations, probes are dropped; a dropped one means "go on".
        patience_s: a probe that takes longer, in an engine's queue for instance, is dropped.
        risk: the highest tolerated; picks the certificate with the highest alpha up to it.
    """

    certificate: str | Sequence[str] = ()
    rule: Any = None
    record: bool = False
    suffix: str = SUFFIX
    schedule: Any = field(default_factory=Schedule)
    shadow: float = 0.05
    max_running: int = 48
    patience_s: float = 5.0
    risk: float | None = None

    def __post_init__(self) -> None:
        self.certificate = (self.certificate,) if isinstance(self.certificate, str) else tuple(self.certificate)
        if self.risk is not None and not self.certificate:
            raise RequestError("risk picks among certificates; give stopping some")
        if bool(self.certificate) + (self.rule is not None) + self.record != 1:
            raise RequestError("stopping takes one of certificate, rule and record; give one")
        numbers = {"shadow": 1, "max_running": 1_000_000, "patience_s": 3600}
        numbers |= {} if self.risk is None else {"risk": 1}
        for name, high in numbers.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value <= high:
                raise RequestError(f"{name} must be a number in [0, {high}], got {value!r}")
        for text in (self.suffix, *self.certificate):
            if not isinstance(text, str) or not text:
                raise RequestError(f"suffix and certificate must be text, got {text!r}")
        try:
            self.rule = self.rule and parse(RULE, self.rule, "rule")
            self.schedule = parse(SCHEDULE, self.schedule, "schedule")
        except CalibrationError as error:
            raise RequestError(f"stopping: {error}") from None


@dataclass
class Stopping(PolicyOptions):
    """An inner policy whose requests may be ended by a rule.

    Attributes:
        name: of the inner policy.
        guards: the runtime's; all its requests share them.
    """

    inner: Policy
    name: str
    options: StoppingOptions
    guards: Guards

    def __post_init__(self) -> None:
        self.engines = self.inner.engines

    @property
    def optional_engines(self) -> tuple[str, ...]:
        return self.inner.optional_engines

    async def solve(self, request: Request, engines: Mapping[str, PacedEngine]) -> AsyncGenerator[PolicyEvent, None]:
        engine = engines[self._role]
        try:
            terms = self._terms(request, engines)
        except CalibrationError as error:
            async with aclosing(self.inner.solve(request, engines)) as events:
                async for event in events:
                    yield _with_fallback(event, str(error))
            return
        async with aclosing(StoppingLoop(self.inner, request, engines, engine, terms).events()) as events:
            async for event in events:
                yield event

    def fingerprints(
        self,
        request: Request,
        engines: Mapping[str, Engine],
        schedule: Schedule | None = None,
        suffix: Sequence[int] = (),
    ) -> Fingerprints:
        """What a certificate must be for, to hold for `request` on `engines` (by role, as `solve` gets them).

        Args:
            schedule, suffix: in place of those in the options.
        """
        tokenizer = engines[self._role].tokenizer
        template = canonical(tokenizer.chat((Message("user", "?"),)))
        settings: dict[str, Any] = asdict(self.inner) if is_dataclass(self.inner) else {}
        return Fingerprints(
            model=engines[self._role].model_fingerprint,
            tokenizer=tokenizer.fingerprint,
            template=hashlib.sha256(template.encode()).hexdigest(),
            engine=canonical({role: engine.fingerprint for role, engine in engines.items()}),
            sampling=canonical({"temperature": float(request.temperature), "top_p": float(request.top_p)}),
            schedule=(schedule or self.options.schedule).to_json(),
            probes={PROBE: tuple(suffix or tokenizer.encode(self.options.suffix))},
            policy=canonical({"name": self.name, "options": settings}),
            max_tokens=request.limits.max_tokens,
        )

    @property
    def _role(self) -> str:
        """Of the engine that is probed: the one whose answer it would be."""
        return "target" if "target" in self.engines else self.engines[0]

    def _terms(self, request: Request, engines: Mapping[str, PacedEngine]) -> Terms:
        """Raises: CalibrationError: why the request must think to the end."""
        options, engine = self.options, engines[self._role]
        if Capability.LOGPROBS not in engine.capabilities:
            raise CalibrationError(f"engine {engine.name!r} returns no log-probabilities, so nothing can be probed")
        suffix = tuple(engine.tokenizer.encode(options.suffix))
        patience_s = None if options.record else options.patience_s
        if not options.certificate:
            return Terms(options.rule, options.schedule, suffix, options.max_running, patience_s)
        if request.committed:  # a rule that remembers would decide otherwise than in replay
            raise CalibrationError("the request goes on behind committed steps, whose signals are not known")
        guard = self.guards.pick(options.certificate, options.risk)
        recorded = guard.certificate.fingerprints
        schedule = Schedule.from_json(recorded.schedule) if recorded.schedule else options.schedule
        suffix = recorded.probes.get(PROBE, suffix)
        guard.check(self.fingerprints(request, engines, schedule, suffix))
        is_shadow = _is_shadow(request, options.shadow)
        return Terms(guard.certificate.rule, schedule, suffix, options.max_running, patience_s, guard, is_shadow)


def around(policy: Policy, name: str, options: Mapping[str, Any], guards: Guards) -> Stopping:
    """`policy` under what `options` say of stopping.

    Raises:
        RequestError: an option that is not known, or a value out of range.
    """
    if not getattr(policy, "commits_as_it_goes", True):
        raise RequestError(f"{name} commits nothing before all of it is written: there is nothing to stop")
    known = options.get("stopping") or {}
    if not isinstance(known, Mapping):
        raise RequestError(f"stopping takes options, as in {{certificate: FILE}}, got {known!r}")
    return Stopping(policy, name, StoppingOptions.from_options({**known, "risk": options.get("risk")}), guards)


def _is_shadow(request: Request, share: float) -> bool:
    """The same for the same request: it depends on the conversation and the seed alone."""
    said = canonical([[[message.role, message.content] for message in request.messages], request.seed])
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:8]) < share * 2**64


def _with_fallback(event: PolicyEvent, reason: str) -> PolicyEvent:
    if not isinstance(event, Stop):
        return event
    return replace(event, details={**event.details, "stopping": {"action": "go_on", "fallback": reason}})
