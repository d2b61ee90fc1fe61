"""What a calibration found, what it promises and for what: a JSON file that shows when it was edited by hand.

`certify` makes it, and `verify` recomputes it from its traces: `reasonrt.calibration.stopping.certification`.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from reasonrt.errors import CalibrationError, shown
from reasonrt.policies.stopping.attempt import Attempt
from reasonrt.policies.stopping.files import FILES, canonical
from reasonrt.policies.stopping.risks import RISKS
from reasonrt.policies.stopping.rules import StoppingRule
from reasonrt.policies.stopping.traces import Fingerprints

SCHEMA: Final = "reasonrt.certificate/3"
_FILE = replace(FILES, most_bytes=1 << 22)
_MOST_PROBLEMS = 10**7


@dataclass(frozen=True, slots=True)
class Finding:
    """One risk of the chosen rule.

    Attributes:
        risk: its name.
        alpha: its limit.
        n: problems that count for it.
        k: losses among them.
        p_value: of "the risk is at least alpha".
        upper_bound: of this rule and this risk alone, at the level that the certificate was tested at: Clopper-Pearson
            or, where problems may be added, of a confidence sequence.
    """

    risk: str
    alpha: float
    n: int
    k: int
    p_value: float
    upper_bound: float


@dataclass(frozen=True, slots=True)
class Saving:
    """Tokens saved, probes counted, as a share of the tokens of thinking to the end.

    Attributes:
        net: on the problems of the certificate; negative where probes cost more than they saved.
        low, high: a 95 % interval.
    """

    net: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Group:
    """One row of the table. The promise is for all problems together; a row is what was seen, not a promise."""

    group: str
    num_problems: int
    findings: tuple[Finding, ...]
    saving: Saving


@dataclass(frozen=True, slots=True)
class Certificate:
    """With probability at least 1 - delta over the problems it was made from, each risk of `rule` is below its limit.

    That is for new problems drawn as those were, answered by what `fingerprints` names; and it holds for all
    certificates from these problems together, as far as `attempt` goes.

    Attributes:
        rule: the cheapest certified one.
        findings: one for each risk, as they were asked for.
        delta: the probability that the promise is wrong, shared by all tries on these problems.
        attempt: which of them this is, and what was certified together with it.
        growing: whether it holds however often it is certified again while problems are added.
        test: the multiple test, a name in `reasonrt.calibration.stopping.multiple_testing.TESTS`.
        order: every rule of the family, in the order tested.
        p_values: along `order`; of several risks the largest.
        num_certified: so many rules of the family were certified.
        num_problems: in the certify split.
        unlabelled: `lost_correct` of the chosen rule against the model's own full answers. It is not what is promised;
            it is what can be watched where nobody knows the right answers (`drift.DriftMonitor`).
        splits: SHA-256 of the traces of each split: "certify", and where there were any "order" and "train".
        signature: of `sha256`, in hexadecimal; no part of what is hashed. See `signature.py`.
    """

    rule: StoppingRule
    findings: tuple[Finding, ...]
    delta: float
    attempt: Attempt
    growing: bool
    test: str
    order: tuple[StoppingRule, ...]
    p_values: tuple[float, ...]
    num_certified: int
    num_problems: int
    saving: Saving
    groups: tuple[Group, ...]
    unlabelled: Finding
    splits: Mapping[str, str]
    fingerprints: Fingerprints
    schema: Literal["reasonrt.certificate/3"] = SCHEMA
    signature: str | None = None

    def __post_init__(self) -> None:
        worst = max((finding.p_value for finding in self.findings), default=1.0)
        tested = [*zip(self.order, self.p_values, strict=False)]
        for holds, message in (
            (bool(self.findings), "has no findings"),
            (0 < self.delta < 1, f"has delta {self.delta:g}, which must be in (0, 1)"),
            (
                all(map(_is_possible, (*self.findings, self.unlabelled))),
                "has a finding that no one can have made",
            ),
            (
                all(finding.p_value <= self.tested_at for finding in self.findings),
                f"has a p-value of its rule above {self.tested_at:.3g}, what its try was tested at",
            ),
            (self.rule in self.order, "certifies a rule that it has not tested"),
            (len(self.p_values) == len(self.order), f"has {len(self.p_values)} p-values of {len(self.order)} rules"),
            (all(0 <= value <= 1 for value in self.p_values), "has a p-value outside of [0, 1]"),
            (
                1 <= self.num_certified <= sum(value <= self.tested_at for value in self.p_values),
                f"counts {self.num_certified} certified rules",
            ),
            (
                any(_close(worst, value) for rule, value in tested if rule == self.rule),
                f"has the p-value {worst:.3g} for its rule, and another along its order",
            ),
        ):
            if not holds:
                raise CalibrationError(f"the certificate {message}; certify anew")

    @property
    def risk(self) -> str:
        """Of the first finding, as are `alpha`, `n` and `k`."""
        return self.findings[0].risk

    @property
    def alpha(self) -> float:
        return self.findings[0].alpha

    @property
    def n(self) -> int:
        return self.findings[0].n

    @property
    def k(self) -> int:
        return self.findings[0].k

    @property
    def tested_at(self) -> float:
        """The part of delta that it spends: what every p-value of a certified rule is below."""
        return self.attempt.tested_at(self.delta)

    @property
    def sha256(self) -> str:
        return _sha256(asdict(self))

    def to_json(self) -> str:
        signed = {} if self.signature is None else {"signature": self.signature}
        return canonical(_hashed(asdict(self)) | signed | {"sha256": self.sha256})

    @classmethod
    def from_json(cls, text: str, where: str = "the certificate") -> "Certificate":
        """Raises: CalibrationError: it is no certificate, or not as it was written."""
        value = FILES.parse_json(text, where)
        if not isinstance(value, dict) or "sha256" not in value:
            raise CalibrationError(f"{where} has no sha256; only certify makes certificates")
        if value.pop("sha256") != _sha256(value):
            raise CalibrationError(f"{where} was changed after it was made: its sha256 does not fit; certify anew")
        if (found := value.get("schema")) != SCHEMA:
            raise CalibrationError(
                f"{where} has the schema {shown(found)}, this version reads {SCHEMA!r}; certify anew"
            )
        return FILES.validate(_CERTIFICATE, value, where)

    def write(self, path: Path) -> None:
        FILES.write(path, self.to_json() + "\n")

    @classmethod
    def read(cls, path: Path) -> "Certificate":
        return cls.from_json(_FILE.read_text(path), str(path))


def check_matches(certificate: Certificate, fingerprints: Fingerprints) -> None:
    """Raises: CalibrationError: what is to be served differs from what was certified; the message names the field."""
    is_monotone = not any(RISKS[finding.risk].is_conditional for finding in certificate.findings)
    for field in fields(Fingerprints):
        certified, served = getattr(certificate.fingerprints, field.name), getattr(fingerprints, field.name)
        if field.name == "is_cut_off":
            continue  # of the traces, not of a request
        if field.name == "max_tokens" and is_monotone and _is_within(served, certificate.fingerprints):
            continue  # a request that ends sooner, or as soon, loses no answer that the traces had
        if canonical(certified) != canonical(served):
            raise CalibrationError(
                f"the certificate is for {field.name} {shown(certified)}, this is {shown(served)}; certify on traces "
                "of this one"
            )


def normal(certificate: Certificate) -> Certificate:
    """The same as it would be read back: an int in the place of a float would change its hash."""
    return FILES.validate(_CERTIFICATE, asdict(certificate), "the certificate")


def first_difference(a: Certificate, b: Certificate) -> str | None:
    """The name of the first field in which they differ by more than rounding."""
    left, right = asdict(replace(a, signature=b.signature)), asdict(b)
    return next((name for name in left if not _close(left[name], right[name])), None)


def _is_within(served: int | None, certified: Fingerprints) -> bool:
    is_whole = certified.max_tokens is None or not certified.is_cut_off  # more room than they took changes no trace
    return is_whole or (served is not None and certified.max_tokens is not None and served <= certified.max_tokens)


def _is_possible(finding: Finding) -> bool:
    return (
        finding.risk in RISKS
        and 0 < finding.alpha < 1
        and 0 <= finding.k <= finding.n <= _MOST_PROBLEMS
        and (1 - 1e-6) * _binomial_tail(finding.k, finding.n, finding.alpha) <= finding.p_value + 1e-300
        and finding.p_value <= 1
        and 0 < finding.upper_bound <= 1  # no number of problems shows that nothing is ever lost
    )


def _binomial_tail(k: int, n: int, alpha: float) -> float:
    """P(Bin(n, alpha) <= k), summed from k or the mode down, whichever is less: what no p-value can be below.

    Without scipy, which serving does not load.
    """
    first = min(k, math.floor((n + 1) * alpha))
    term = total = math.exp(
        math.lgamma(n + 1) - math.lgamma(first + 1) - math.lgamma(n - first + 1)
        + first * math.log(alpha) + (n - first) * math.log1p(-alpha)
    )  # fmt: skip
    for i in range(first, 0, -1):
        term *= i / (n - i + 1) * (1 - alpha) / alpha
        total += term
        if term <= 1e-17 * total:
            break
    return min(1.0, total)


def _sha256(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(_hashed(value)).encode()).hexdigest()


def _hashed(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in value.items() if name != "signature"}


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_close(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_close, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-9 * max(1.0, abs(a))
    return bool(a == b)


_CERTIFICATE: TypeAdapter[Certificate] = TypeAdapter(Certificate)
