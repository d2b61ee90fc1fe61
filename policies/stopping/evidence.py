"""The evidence against a certificate in service: one for each, over all processes that serve under it and all restarts.

Whoever decides keeps it (`KeptEvidence`): a runtime by itself, or the gateway of a server, in a file. Replicas report
their votes there, and hear the verdict with each request (`ReportedEvidence`).
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from pydantic import TypeAdapter

from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.certificate import Certificate
from reasonrt.policies.stopping.drift import DriftMonitor
from reasonrt.policies.stopping.evidence_file import EvidenceFile, InUseError
from reasonrt.policies.stopping.files import FILES, canonical
from reasonrt.types import Message

SCHEMA: Final = "reasonrt.evidence/1"
WINDOW = 10_000  # votes: within so many, a question has one
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Vote:
    """What one shadowed request tells: whether stopping would have changed its own full answer.

    Attributes:
        certificate: its SHA-256.
        question: a digest of what was asked, as `digest` makes it.
    """

    certificate: str
    question: str
    departed: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evidence says of a certificate now.

    Attributes:
        refusal: why requests think to the end; None while it holds.
        suspicion: in [0, 1], as `DriftMonitor.suspicion`.
    """

    refusal: str | None = None
    suspicion: float = 0.0

    def shadow(self, least: float) -> float:
        """The share of requests to shadow: `least` without suspicion, and towards all of them as it grows.

        What is drawn more often is decided the sooner, in requests; the draws remain independent of what comes of them.
        """
        return float(least ** (1 - self.suspicion))


class Evidence(Protocol):
    """What one process knows of the votes on a certificate."""

    @property
    def verdict(self) -> Verdict: ...

    def add(self, vote: Vote) -> None: ...

    def close(self) -> None: ...


@dataclass
class _Kept:
    """What a file begins with."""

    monitor: DriftMonitor
    questions: list[str]
    num_departed: int
    schema: Literal["reasonrt.evidence/1"] = field(default=SCHEMA)

    def __post_init__(self) -> None:
        if len(self.monitor.sums) != len(DriftMonitor.RISES):
            raise CalibrationError(f"it weighs {len(self.monitor.sums)} rises, this version {len(DriftMonitor.RISES)}")


class KeptEvidence:
    """All votes on one certificate.

    Attributes:
        monitor: fed by the votes. Nobody knows the right answers there, so it watches how often stopping departs from
            the full answer, and its limit is what that was at most on the certified problems; alpha, where lost answers
            are what was certified and it is more.
        num_departed: of the votes.

    Args:
        file: where they outlive this process; None keeps them here alone.
    """

    def __init__(self, certificate: Certificate, file: EvidenceFile | None = None) -> None:
        alphas = {finding.risk: finding.alpha for finding in certificate.findings}
        limit = max(alphas.get("lost_correct", 0.0), certificate.unlabelled.upper_bound)
        self.monitor = DriftMonitor(min(limit, 0.99), certificate.delta)
        self.num_departed = 0
        self._sha256, self._file = certificate.sha256, file
        self._questions: OrderedDict[str, None] = OrderedDict()  # of the last votes
        self._num_lines = 0
        self._problem: CalibrationError | None = None
        if file is not None:
            self._open(file)

    @property
    def verdict(self) -> Verdict:
        if isinstance(self._problem, InUseError) and self._file is not None:
            self._open(self._file)  # a server that is replaced by another one ends after that has started
        if self._problem is not None:
            return Verdict(str(self._problem))
        if self.monitor.alarm:
            return Verdict(
                f"stopping changed more than {self.monitor.alpha:.3g} of the answers of requests that ran to the end; "
                "the certificate no longer holds, certify anew"
            )
        return Verdict(suspicion=self.monitor.suspicion)

    def add(self, vote: Vote) -> None:
        """Count a vote, if it is the first of its question among the last ones: who asks again has no second vote."""
        if vote.question in self._questions:
            return
        was_well = not self.monitor.alarm
        self._count(vote.question, vote.departed)
        if self.monitor.alarm and was_well:
            _log.warning(
                "certificate %.12s: stopping departs from the full answer more often than %.3g; back to full thinking",
                self._sha256,
                self.monitor.alpha,
            )
        if self._file is not None and self._problem is None:
            self._save(self._file, vote)

    def close(self) -> None:
        """Votes that still come are counted, and forgotten with this process."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def restore(self, values: Sequence[Any], where: str) -> None:
        """Count what the file `where` has kept.

        Raises:
            CalibrationError: it was kept by another version.
        """
        kept = FILES.validate(_KEPT, values[0], where)
        self.monitor, self.num_departed = kept.monitor, kept.num_departed
        self._questions = OrderedDict.fromkeys(kept.questions)
        for value in values[1:]:
            self._count(*FILES.validate(_VOTE, value, where))
        self._num_lines = len(values)

    def _count(self, question: str, departed: bool) -> None:
        self._questions[question] = None
        if len(self._questions) > WINDOW:
            self._questions.popitem(last=False)
        self.num_departed += departed
        self.monitor.add(departed)

    def _open(self, file: EvidenceFile) -> None:
        was = self._problem
        try:
            if values := file.open():
                self.restore(values, str(file.path))
            else:
                self._replace(file)
            self._problem = None
        except CalibrationError as error:
            self._problem = error
            if type(error) is not type(was):
                _log.warning("certificate %.12s: %s; requests think to the end", self._sha256, error)

    def _save(self, file: EvidenceFile, vote: Vote) -> None:
        try:
            is_full = self._num_lines > WINDOW
            if is_full or not file.add((vote.question, vote.departed)):
                if not is_full:
                    _log.warning("%s is lost; it is written anew, and nothing of it is forgotten", file.path)
                self._replace(file)
            self._num_lines += 1
        except CalibrationError as error:
            self._problem = error
            _log.warning("certificate %.12s: %s; requests think to the end", self._sha256, error)

    def _replace(self, file: EvidenceFile) -> None:
        kept = _Kept(self.monitor, list(self._questions), self.num_departed)
        file.replace(_KEPT.dump_python(kept))
        self._num_lines = 1


@dataclass
class GatewayLink:
    """What a replica and its gateway have told each other.

    Attributes:
        verdicts: by the SHA-256 of certificates, as last heard.
        votes: not yet taken to the gateway.
    """

    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    votes: list[Vote] = field(default_factory=list)

    def take(self) -> list[Vote]:
        taken, self.votes = self.votes, []
        return taken


class ReportedEvidence:
    """In a replica: the gateway counts the votes, and decides."""

    def __init__(self, sha256: str, link: GatewayLink) -> None:
        self._sha256, self._link = sha256, link

    @property
    def verdict(self) -> Verdict:
        unknown = Verdict("the gateway keeps no evidence of this certificate; let both read the same file")
        return self._link.verdicts.get(self._sha256, unknown)

    def add(self, vote: Vote) -> None:
        self._link.votes.append(vote)

    def close(self) -> None:
        pass


def digest(messages: Sequence[Message]) -> str:
    """The same for the same messages in every process."""
    asked = canonical([(message.role, message.content) for message in messages])
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


_KEPT: TypeAdapter[_Kept] = TypeAdapter(_Kept)
_VOTE: TypeAdapter[tuple[str, bool]] = TypeAdapter(tuple[str, bool])
