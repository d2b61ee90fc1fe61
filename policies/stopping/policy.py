"""Stopping over any policy: the option `stopping`, and under a certificate also `risk`, of every request.

The rule is watched while the inner policy writes (`loop.py`). Where it cannot be, because the certificate is
for another model for instance, the request thinks to the end, and its details say why.
"""

import hashlib
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any, Self

from pydantic import Field

from reasonrt.errors import CalibrationError, ConfigError, RequestError, shown
from reasonrt.policies.answering import answered
from reasonrt.policies.stopping.files import canonical
from reasonrt.policies.stopping.loop import StoppingLoop, Terms
from reasonrt.policies.stopping.probes import SUFFIX
from reasonrt.policies.stopping.risks import RISKS
from reasonrt.policies.stopping.rules import StoppingRule
from reasonrt.policies.stopping.schedule import Schedule
from reasonrt.policies.stopping.service import ServedCertificates
from reasonrt.policies.stopping.shadows import shadow_traces
from reasonrt.policies.stopping.traces import Fingerprints
from reasonrt.policies.structured import is_written_apart, structured
from reasonrt.ports import OPERATOR_ONLY, Capability, Engine, Engines, Policy, RequestEngine
from reasonrt.types import NO_PENALTIES, Message, PolicyEvent, Request, Stop, Tokenizer

PROBE = "answer"
_CONVERSATIONS = (("user",), ("system", "user"), ("user", "assistant", "user"), ("system", "user", "assistant", "user"))


Text = Annotated[str, Field(min_length=1, max_length=1000)]
Level = Annotated[float, Field(ge=0, le=1)]


@dataclass
class StoppingOptions:
    """What stands under `stopping`: one of the first three, and how.

    Attributes:
        certificate: a file; or several, of which the first holds where the request names no risk.
        rule: a stopping rule, as in a certificate; it promises nothing.
        record: look at every checkpoint in full, never stop, and return what was seen.
        suffix: what a probe appends; a certificate brings its own.
        schedule: fields of `Schedule`; a certificate brings its own.
        shadow: share of the requests under a certificate that run to their end, in [0, 1]; more of them as the evidence
            against it grows.
        shadow_traces: a file; these are then looked at in full, and their traces written there, to certify on again.
        max_running: while the engine works on so many generations, probes are dropped; the request then continues.
        patience_s: a probe that takes longer, in an engine's queue for instance, is dropped.
    """

    certificate: Annotated[Text | Annotated[list[Text], Field(min_length=1)] | None, OPERATOR_ONLY] = None
    rule: StoppingRule | None = None
    record: Annotated[bool, OPERATOR_ONLY] = False
    suffix: Annotated[Text, OPERATOR_ONLY] = SUFFIX
    schedule: Annotated[Schedule, OPERATOR_ONLY] = field(default_factory=Schedule)
    shadow: Annotated[float, Field(ge=0, le=1), OPERATOR_ONLY] = 0.05
    shadow_traces: Annotated[Text | None, OPERATOR_ONLY] = None
    max_running: Annotated[int, Field(ge=0, le=1_000_000), OPERATOR_ONLY] = 48
    patience_s: Annotated[float, Field(ge=0, le=3600), OPERATOR_ONLY] = 5.0

    @property
    def certificates(self) -> tuple[str, ...]:
        return (self.certificate,) if isinstance(self.certificate, str) else tuple(self.certificate or ())

    def __post_init__(self) -> None:
        if bool(self.certificate) + (self.rule is not None) + self.record != 1:
            raise RequestError("stopping takes one of certificate, rule and record; give one")


@dataclass
class CommonOptions:
    """Options of every policy that commits as it goes; a policy itself never sees them.

    Attributes:
        stopping: how a request is ended early; None lets it think to the end.
        risk: what is tolerated, by the names of risks; a number is that of `lost_correct`. Picks the certificate with
            the highest alpha among those that promise all of it.
    """

    stopping: StoppingOptions | None = None
    risk: Level | dict[str, Level] | None = None

    def __post_init__(self) -> None:
        if self.risk is not None and (self.stopping is None or not self.stopping.certificates):
            raise RequestError("risk picks among certificates; give stopping some")
        if unknown := sorted(self.tolerated.keys() - RISKS.keys()):
            raise RequestError(f"risk {shown(unknown[0])} is not known; there are {', '.join(RISKS)}")

    @property
    def tolerated(self) -> Mapping[str, float]:
        """Named; empty where the request names none."""
        return self.risk if isinstance(self.risk, dict) else {} if self.risk is None else {"lost_correct": self.risk}


@dataclass
class Stopping(Policy):
    """A policy whose requests may be ended by a rule.

    Attributes:
        inner: the policy.
        name: of the inner policy.
        certificates: in service; all requests of a runtime share them.
        tolerated: as in `CommonOptions`.
    """

    inner: Policy
    name: str
    options: StoppingOptions
    certificates: ServedCertificates
    tolerated: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        raise NotImplementedError("it wraps another policy; see `stopped`")

    @property
    def engines(self) -> tuple[str, ...]:
        return self.inner.engines

    @property
    def optional_engines(self) -> tuple[str, ...]:
        return self.inner.optional_engines

    @property
    def replaceable_engines(self) -> tuple[str, ...]:
        return self.inner.replaceable_engines

    @property
    def tools(self) -> tuple[str, ...]:
        return self.inner.tools

    @property
    def num_streams(self) -> int:
        """A probe runs beside what the inner policy writes."""
        return self.inner.num_streams + 1

    @property
    def has_one_author(self) -> bool:
        return self.inner.has_one_author

    @property
    def gives_logprobs(self) -> bool:
        return self.inner.gives_logprobs

    @property
    def reads_context(self) -> bool:
        return self.inner.reads_context

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**self.inner.settings, "stopping": asdict(self.options), "risk": dict(self.tolerated)}

    def check(self, engines: Mapping[str, Engine]) -> None:
        self.inner.check(engines)
        files = self.options.certificates
        try:
            known = self.certificates.together(files)
        except CalibrationError as error:
            raise ConfigError(f"policy {self.name}: {error}") from None
        for file, one in zip(files, known, strict=True):
            model = one.certificate.fingerprints.model
            served = engines[self._role].model_fingerprint
            if model not in ("", served):
                raise ConfigError(
                    f"policy {self.name}: {file} was certified for another model ({model[:12]}, engine "
                    f"{engines[self._role].name!r} is {served[:12]}); certify on traces of this one"
                )

    def accept(self, request: Request, engines: Mapping[str, Engine]) -> None:
        self.inner.accept(request, engines)
        for file in self.options.certificates:
            with suppress(CalibrationError):  # the request will think to the end
                self.certificates.read(file)  # which a gateway must know of, though a replica solves

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        engine = engines[self._role]
        try:
            terms = self._terms(request, engines)
        except CalibrationError as error:
            reason = str(error)
            engines.at_limit(lambda: {"stopping": _fallback(reason)}, lambda: {"stopping": reason})
            solve = structured if is_written_apart(self.inner, request) else answered
            async with aclosing(solve(self.inner, request, engines)) as events:
                async for event in events:
                    yield _with_fallback(event, reason)
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
        # absent where they do nothing: certificates are older than they are
        penalties = {name: float(value) for name, value in asdict(request.penalties).items()}
        cuts: dict[str, Any] = {"top_k": request.top_k, "min_p": float(request.min_p)}
        cuts = {name: cut for name, cut in cuts.items() if cut}
        cuts |= {} if request.penalties == NO_PENALTIES else {"penalties": penalties}
        return Fingerprints(
            model=engines[self._role].model_fingerprint,
            tokenizer=tokenizer.fingerprint,
            template=_template_fingerprint(tokenizer),
            engine=canonical({role: engine.fingerprint for role, engine in engines.items()}),
            sampling=canonical({"temperature": float(request.temperature), "top_p": float(request.top_p), **cuts}),
            schedule=(schedule or self.options.schedule).to_json(),
            probes={PROBE: tuple(suffix or tokenizer.encode(self.options.suffix))},
            policy=canonical({"name": self.name, "options": dict(self.inner.settings)}),
            max_tokens=request.limits.max_tokens,
        )

    @property
    def _role(self) -> str:
        """Of the engine that is probed: the one whose answer it would be."""
        return "target" if "target" in self.engines else self.engines[0]

    def _terms(self, request: Request, engines: Mapping[str, RequestEngine]) -> Terms:
        """Raises: CalibrationError: why the request must think to the end."""
        options, engine = self.options, engines[self._role]
        if request.structure:
            raise CalibrationError("the answer has a structure, which one that a probe asks for has not")
        if Capability.LOGPROBS not in engine.capabilities:
            raise CalibrationError(f"engine {engine.name!r} returns no log-probabilities, so nothing can be probed")
        suffix = tuple(engine.tokenizer.encode(options.suffix))
        patience_s = None if options.record else options.patience_s
        if not options.certificates:
            return Terms(options.rule, options.schedule, suffix, options.max_running, patience_s)
        if request.tools:
            raise CalibrationError("the request has tools, and what was certified had none")
        if request.thinking_tokens is not None:
            raise CalibrationError("the request limits its thinking, and what was certified did not")
        if request.committed:  # a rule that remembers would decide otherwise than in replay
            raise CalibrationError("the request continues after committed steps, whose signals are not known")
        served = self.certificates.pick(options.certificates, self.tolerated)
        recorded = served.certificate.fingerprints
        schedule = Schedule.from_json(recorded.schedule) if recorded.schedule else options.schedule
        suffix = recorded.probes.get(PROBE, suffix)
        fingerprints = self.fingerprints(request, engines, schedule, suffix)
        verdict = served.check(fingerprints, request.cache_salt)
        # drawn anew and in secret: no caller can choose what the certificate is judged by
        is_shadow = secrets.randbelow(1 << 53) < verdict.shadow(options.shadow) * (1 << 53)
        file = options.shadow_traces if is_shadow else None
        shadows = (shadow_traces(file), fingerprints) if file else None
        rule = served.certificate.rule
        return Terms(rule, schedule, suffix, options.max_running, patience_s, served, is_shadow, shadows)


def stopped(policy: Policy, name: str, common: CommonOptions, certificates: ServedCertificates) -> Policy:
    """`policy` under what its options say of stopping.

    Raises:
        RequestError: it commits nothing before all of it is written.
    """
    if common.stopping is None:
        return policy
    if not policy.commits_as_it_goes:
        raise RequestError(f"{name} commits nothing before all of it is written: there is nothing to stop")
    return Stopping(policy, name, common.stopping, certificates, common.tolerated)


@lru_cache(maxsize=32)
def _template_fingerprint(tokenizer: Tokenizer) -> str:
    """Of what it makes of conversations of each kind; None of those that it refuses."""
    made: list[list[int] | None] = []
    for roles in _CONVERSATIONS:
        try:
            made.append(list(tokenizer.chat([Message(role, "?") for role in roles])))
        except RequestError:
            made.append(None)
    return hashlib.sha256(canonical(made).encode()).hexdigest()


def _with_fallback(event: PolicyEvent, reason: str) -> PolicyEvent:
    if not isinstance(event, Stop):
        return event
    details = {**event.details, "stopping": _fallback(reason)}
    return replace(event, details=details, warnings={**event.warnings, "stopping": reason})


def _fallback(reason: str) -> dict[str, str]:
    return {"action": "go_on", "fallback": reason}
