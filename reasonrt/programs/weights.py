"""What calibration has learned about a model's candidates: a JSON file that shows when it was edited by hand.

`reasonrt calibrate programs` makes it, by `reasonrt.calibration.programs`.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from reasonrt.errors import CalibrationError, shown
from reasonrt.files import FileKind
from reasonrt.programs.features import FEATURES

SCHEMA: Final = "reasonrt.program-weights/1"
_FILE: Final = FileKind(CalibrationError, "name another file, or calibrate anew", most_bytes=1 << 20)
LIMIT: Final = 4.0
"""A feature counts as if it were at most so many scales from its mean: no single one outweighs all other trials."""


@dataclass(frozen=True, slots=True)
class Coefficient:
    """How one feature counts.

    Attributes:
        mean, scale: of the feature on the trials of the calibration; scale > 0.
        slope: evidence per `scale` above the mean, in natural logarithms, up to `LIMIT` scales.
    """

    mean: float
    scale: float
    slope: float


@dataclass(frozen=True, slots=True)
class Gate:
    """Why the features count, or do not: right answers per question, on questions not learned from.

    Attributes:
        plurality, answer_mass: of the two votes.
        noise: standard error of the difference.
    """

    plurality: float
    answer_mass: float
    noise: float


@dataclass(frozen=True, slots=True)
class ProgramCertificate:
    """With probability at least 1 - delta over the questions it was made from, P(wrong | answered) is below alpha.

    That is for new questions drawn as those were, of which those are answered whose winning share is at least
    `abstain_below`. The risk is `selective_error`.

    Attributes:
        abstain_below: a share, in (0, 1).
        n: questions that were answered, of those to certify on.
        k: wrong ones among them.
        p_value: of "the risk is at least alpha".
        coverage: share of the questions that were answered.
        stops_early: whether candidates were drawn only until `is_settled`, as is then to be served.
        number: of the tries on its questions, as the ledger counts them, which share delta; None where no ledger was
            kept, and the promise is for questions on which nothing else is tried.
    """

    abstain_below: float
    alpha: float
    delta: float
    n: int
    k: int
    p_value: float
    coverage: float
    stops_early: bool
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """The evidence that a trial gives for its answer, in natural logarithms, and what was decided with it.

    Attributes:
        vote: of any trial for its answer, > 0.
        none_right: log mass of "no trial has the right answer"; an answer without any evidence has 0.
        coefficients: by the names in `features.FEATURES`; without one, features count for nothing.
        gate: None where nothing was compared.
        settled_at: candidates are no longer added once the winning share is at least this; None: only when no outcome
            of the rest could change the answer.
        certificate: None without abstention.
        direct_below_tokens: a context of fewer tokens goes to one direct call, unless there is a certificate; None: not
            known.
        model: the engine's `model_fingerprint`.
        k: candidates per question.
        task: the kind of questions, in words.
        n: questions learned from.
    """

    vote: float
    none_right: float = 0.0
    coefficients: Mapping[str, Coefficient] = field(default_factory=dict)
    gate: Gate | None = None
    settled_at: float | None = None
    certificate: ProgramCertificate | None = None
    direct_below_tokens: int | None = None
    model: str = ""
    k: int = 8
    task: str = ""
    n: int = 0
    schema: Literal["reasonrt.program-weights/1"] = SCHEMA

    def __post_init__(self) -> None:
        unknown = [name for name in self.coefficients if name not in FEATURES]
        if unknown:
            raise CalibrationError(f"unknown feature {shown(unknown[0])}; there are {', '.join(FEATURES)}")
        if not (0 < self.vote < math.inf and math.isfinite(self.none_right)):
            raise CalibrationError(f"a vote must count for its answer: vote > 0, got {self.vote}; calibrate anew")
        if any(not (one.scale > 0 and math.isfinite(one.slope)) for one in self.coefficients.values()):
            raise CalibrationError("a coefficient has a scale of 0 or a slope without bound; calibrate anew")

    @property
    def abstain_below(self) -> float | None:
        """The certificate's."""
        return self.certificate.abstain_below if self.certificate else None

    def evidence(self, features: Sequence[float | None]) -> float:
        """Of one trial for its answer; `features` is a row of `features_of`."""
        evidence = self.vote
        for name, value in zip(FEATURES, features, strict=True):
            if value is not None and (found := self.coefficients.get(name)):
                evidence += found.slope * max(-LIMIT, min(LIMIT, (value - found.mean) / found.scale))
        return evidence

    @property
    def sha256(self) -> str:
        return _sha256(asdict(self))

    def to_json(self) -> str:
        return _canonical(asdict(self) | {"sha256": self.sha256})

    @classmethod
    def from_json(cls, text: str, where: str = "the weights") -> "Weights":
        """Raises: CalibrationError: these are no weights, or not as they were written."""
        value = _FILE.parse_json(text, where)
        if not isinstance(value, dict) or "sha256" not in value:
            raise CalibrationError(f"{where} has no sha256; only `reasonrt calibrate programs` makes weights")
        if value.pop("sha256") != _sha256(value):
            raise CalibrationError(f"{where} was changed after it was made: its sha256 does not fit; calibrate anew")
        if (found := value.get("schema")) != SCHEMA:
            raise CalibrationError(f"{where} has the schema {shown(found)}, not {SCHEMA!r}; calibrate anew")
        return _FILE.validate(_WEIGHTS, value, where)

    def write(self, path: Path) -> None:
        _FILE.write(path, self.to_json() + "\n")

    @classmethod
    def read(cls, path: Path) -> "Weights":
        return cls.from_json(_FILE.read_text(path), str(path))


def check_matches(weights: Weights, model: str, k: int, stops_early: bool = True) -> None:
    """Raises: CalibrationError: what is to be served is not what was calibrated; the message names the difference."""
    certificate = weights.certificate
    if certificate and certificate.stops_early != stops_early:
        was, now = ("on", "off") if certificate.stops_early else ("off", "on")
        raise CalibrationError(f"the certificate is for early stop {was}, this is {now}; turn it {was} or certify anew")
    if weights.model != model:
        raise CalibrationError(
            f"the weights are for the model {shown(weights.model)}, this is {shown(model)}; calibrate on this one"
        )
    if weights.k != k:
        raise CalibrationError(f"the weights are for {weights.k} candidates, this is {k}; take k={weights.k}")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _sha256(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


_WEIGHTS: TypeAdapter[Weights] = TypeAdapter(Weights)
