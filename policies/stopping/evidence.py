"""The evidence against a certificate in service: one for each, over all processes that serve under it and all restarts.

Whoever decides keeps it (`KeptEvidence`): a runtime by itself, or the gateway of a server, in a file. Replicas report
their votes there, and hear the verdict with each request (`ReportedEvidence`).

A caller chooses what it asks, and so how its votes fall. No caller's votes alone decide what another one is served:
what counts against a certificate for one caller are its own votes, or what stands without those of any single other.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Final, Literal, Protocol

from pydantic import TypeAdapter

from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.certificate import Certificate
from reasonrt.policies.stopping.drift import DriftMonitor
from reasonrt.policies.stopping.evidence_file import EvidenceFile, InUseError
from reasonrt.policies.stopping.files import FILES, canonical
from reasonrt.policies.stopping.traces import problem_hash
from reasonrt.types import Message

SCHEMA: Final = "reasonrt.evidence/2"
WINDOW = 10_000  # questions: within so many, each has one vote of each caller
_MOST_CALLERS = 256  # that are told apart; those that come later count as one
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Vote:
    """What one shadowed request tells: whether stopping would have changed its own full answer.

    Attributes:
        certificate: its SHA-256.
        question: a digest of what was asked, as `digest` makes it.
        caller: whose request it was: its cache salt.
    """

    certificate: str
    question: str
    departed: bool
    caller: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evidence says of a certificate now, to one caller.

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

    def verdict(self, caller: str) -> Verdict: ...

    def add(self, vote: Vote) -> None: ...

    def close(self) -> None: ...


@dataclass
class Caller:
    """The evidence that one caller's votes are told apart in.

    Attributes:
        own: by its votes alone.
        others: by all votes but its own.
    """

    own: DriftMonitor
    others: DriftMonitor


@dataclass
class _Kept:
    """What a file begins with."""

    monitor: DriftMonitor
    callers: dict[str, Caller]
    questions: list[tuple[str, list[str]]]
    num_departed: int
    schema: Literal["reasonrt.evidence/2"] = field(default=SCHEMA)

    def __post_init__(self) -> None:
        for monitor in (self.monitor, *(one for each in self.callers.values() for one in (each.own, each.others))):
            if len(monitor.sums) != len(DriftMonitor.RISES):
                raise CalibrationError(f"it weighs {len(monitor.sums)} rises, this version {len(DriftMonitor.RISES)}")


class KeptEvidence:
    """All votes on one certificate.

    A caller hears an alarm when its own votes raise one, or when for each other caller the votes of all but that one
    do. Either is kept with delta / 2, so that what a caller hears is false with probability at most delta, whatever
    any single other caller asks (docs/adr/0018).

    Attributes:
        monitor: fed by the votes. Nobody knows the right answers there, so it watches how often stopping departs from
            the full answer, and its limit is what that was at most on the certified problems; alpha, where lost answers
            are what was certified and it is more.
        callers: that have voted, by their names.
        num_departed: of the votes in `monitor`.

    Args:
        file: where they outlive this process; None keeps them here alone.
    """

    def __init__(self, certificate: Certificate, file: EvidenceFile | None = None) -> None:
        alphas = {finding.risk: finding.alpha for finding in certificate.findings}
        limit = max(alphas.get("lost_correct", 0.0), certificate.unlabelled.upper_bound)
        self.monitor = DriftMonitor(min(limit, 0.99), certificate.delta / 2)
        self.callers: dict[str, Caller] = {}
        self.num_departed = 0
        self._sha256, self._file = certificate.sha256, file
        self._questions: OrderedDict[str, list[str]] = OrderedDict()  # the last ones, and who has voted on each
        self._num_lines = 0
        self._problem: CalibrationError | None = None
        if file is not None:
            self._open(file)

    def verdict(self, caller: str = "") -> Verdict:
        """What `caller` hears; one that has not voted hears what stands without any single one of those that have."""
        if isinstance(self._problem, InUseError) and self._file is not None:
            self._open(self._file)  # a server that is replaced by another one ends after that has started
        if self._problem is not None:
            return Verdict(str(self._problem))
        against = self._against(caller)
        if against.alarm:
            return Verdict(
                f"stopping changed more than {against.alpha:.3g} of the answers of requests that ran to the end; "
                "the certificate no longer holds, certify anew"
            )
        return Verdict(suspicion=against.suspicion)

    @property
    def alarmed(self) -> tuple[str, ...]:
        """The callers that hear an alarm."""
        silent = {name for name, each in self.callers.items() if not each.others.alarm}
        is_one = len(self.callers) == 1  # for which there are no others
        return tuple(name for name, each in self.callers.items() if each.own.alarm or (silent <= {name} and not is_one))

    def add(self, vote: Vote) -> None:
        """Count a vote, if it is the caller's first on its question among the last ones."""
        caller = self._told_apart(vote.caller)
        if caller in self._questions.get(vote.question, ()):
            return
        before = self.alarmed
        self._count(vote.question, vote.departed, caller)
        if new := set(self.alarmed).difference(before):
            _log.warning(
                "certificate %.12s: stopping departs from the full answer more often than %.3g; "
                "back to full thinking for %s",
                self._sha256,
                self.monitor.alpha,
                "everybody" if len(self.alarmed) == len(self.callers) else ", ".join(sorted(new)),
            )
        if self._file is not None and self._problem is None:
            self._save(self._file, (vote.question, vote.departed, caller))

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
        self.monitor, self.callers, self.num_departed = kept.monitor, kept.callers, kept.num_departed
        self._questions = OrderedDict(kept.questions)
        for value in values[1:]:
            self._count(*FILES.validate(_VOTE, value, where))
        self._num_lines = len(values)

    def _against(self, caller: str) -> DriftMonitor:
        """What speaks most against the certificate of what counts for `caller`."""
        others = (each.others for name, each in self.callers.items() if name != self._told_apart(caller))
        # each of them has to raise its alarm, and the last to do so decides
        counted = [min(others, key=_suspicion, default=self.monitor)]
        if own := self.callers.get(self._told_apart(caller)):
            counted.append(own.own)
        return max(counted, key=_suspicion)

    def _told_apart(self, caller: str) -> str:
        return caller if caller in self.callers or len(self.callers) < _MOST_CALLERS else ""

    def _count(self, question: str, departed: bool, caller: str) -> None:
        """Each monitor counts a question once, whoever of those that it counts has asked it."""
        voters = self._questions.setdefault(question, [])
        if caller not in self.callers:
            own = DriftMonitor(self.monitor.alpha, self.monitor.delta)
            self.callers[caller] = Caller(own, replace(self.monitor, sums=[*self.monitor.sums]))
        if not voters:
            self.num_departed += departed
            self.monitor.add(departed)
        self.callers[caller].own.add(departed)
        for name, each in self.callers.items():
            if name != caller and not {*voters} - {name}:
                each.others.add(departed)
        voters.append(caller)
        if len(self._questions) > WINDOW:
            self._questions.popitem(last=False)

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

    def _save(self, file: EvidenceFile, vote: tuple[str, bool, str]) -> None:
        try:
            is_full = self._num_lines > WINDOW
            if is_full or not file.add(vote):
                if not is_full:
                    _log.warning("%s is lost; it is written anew, and nothing of it is forgotten", file.path)
                self._replace(file)
            self._num_lines += 1
        except CalibrationError as error:
            self._problem = error
            _log.warning("certificate %.12s: %s; requests think to the end", self._sha256, error)

    def _replace(self, file: EvidenceFile) -> None:
        kept = _Kept(self.monitor, self.callers, list(self._questions.items()), self.num_departed)
        file.replace(_KEPT.dump_python(kept))
        self._num_lines = 1


@dataclass
class GatewayLink:
    """What a replica and its gateway have told each other.

    Attributes:
        verdicts: by callers, and by the SHA-256 of certificates, as last heard.
        votes: by their numbers, from 1 on; those that the gateway is not known to have counted.
        num_votes: that there have been.
    """

    verdicts: MutableMapping[str, Mapping[str, Verdict]] = field(default_factory=dict)
    votes: dict[int, Vote] = field(default_factory=dict)
    num_votes: int = 0

    def add(self, vote: Vote) -> None:
        self.num_votes += 1
        self.votes[self.num_votes] = vote

    def after(self, number: int) -> list[tuple[int, Vote]]:
        """Votes with a higher number, in order."""
        return [(own, vote) for own, vote in self.votes.items() if own > number]

    def forget(self, number: int) -> None:
        """The votes up to this one are counted."""
        self.votes = dict(self.after(number))


class ReportedEvidence:
    """In a replica: the gateway counts the votes, and decides."""

    def __init__(self, sha256: str, link: GatewayLink) -> None:
        self._sha256, self._link = sha256, link

    def verdict(self, caller: str = "") -> Verdict:
        unknown = Verdict("the gateway keeps no evidence of this certificate; let both read the same file")
        return self._link.verdicts.get(caller, {}).get(self._sha256, unknown)

    def add(self, vote: Vote) -> None:
        self._link.add(vote)

    def close(self) -> None:
        pass


def digest(messages: Sequence[Message]) -> str:
    """The same for the same questions in every process, as `problem_hash` knows them: `end?` and `end` are one."""
    asked = canonical([(message.role, problem_hash(message.content)) for message in messages])
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


_KEPT: TypeAdapter[_Kept] = TypeAdapter(_Kept)
_VOTE: TypeAdapter[tuple[str, bool, str]] = TypeAdapter(tuple[str, bool, str])
_suspicion = attrgetter("suspicion")
