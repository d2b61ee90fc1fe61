"""Certificates in service: what became of the requests under each of them, and whether it still holds."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.attempt import refuse_apart
from reasonrt.policies.stopping.certificate import Certificate, check_matches
from reasonrt.policies.stopping.evidence import (
    Evidence,
    GatewayLink,
    KeptEvidence,
    ReportedEvidence,
    Verdict,
    Vote,
    digest,
)
from reasonrt.policies.stopping.evidence_file import EvidenceFile
from reasonrt.policies.stopping.replay import Outcome
from reasonrt.policies.stopping.risks import lost_correct
from reasonrt.policies.stopping.signature import PublicKeys
from reasonrt.policies.stopping.traces import Fingerprints, Trace
from reasonrt.types import Request

_log = logging.getLogger(__name__)


class ServedCertificate:
    """One certificate, over all requests of this process that it is asked for.

    Attributes:
        evidence: fed by the requests that run to their end although the rule would have stopped them.
        flaw: why it is not served at all, whatever the evidence says.
        counts: of requests by what became of them: `go_on`, `answer`, `give_up`, `refused` (the certificate is not for
            them, or no longer holds); of probes that were `dropped`.
    """

    def __init__(self, certificate: Certificate, evidence: Evidence) -> None:
        self.certificate, self.sha256 = certificate, certificate.sha256
        self.evidence = evidence
        self.flaw: str | None = None
        self.counts = Counter[str]()
        self._said = set[str]()

    def verdict(self, caller: str) -> Verdict:
        return self.evidence.verdict(caller) if self.flaw is None else Verdict(self.flaw)

    def check(self, served: Fingerprints, caller: str = "") -> Verdict:
        """What the evidence says to `caller`, where the certificate may be served.

        Raises:
            CalibrationError: the certificate is not for this, or no longer holds.
        """
        verdict = self.verdict(caller)
        try:
            if verdict.refusal is not None:
                raise CalibrationError(verdict.refusal)
            check_matches(self.certificate, served)
        except CalibrationError as error:
            self.counts["refused"] += 1
            reason = verdict.refusal or "not for this"  # which has as many forms as there are requests
            if reason not in self._said:
                _log.warning("certificate %.12s: %s; requests think to the end", self.sha256, error)
            self._said.add(reason)
            raise
        return verdict

    def ran_to_the_end(self, request: Request, trace: Trace, outcome: Outcome) -> None:
        """One shadowed request: what it thought, and what the rule would have done."""
        departed = lost_correct(trace, outcome)
        self.evidence.add(Vote(self.sha256, digest(request.messages), departed, request.cache_salt))


class ServedCertificates:
    """The certificates of one runtime, by their files. A file that has changed is read again.

    Evidence is in this process and ends with it, unless `keep` or `report` say otherwise.
    """

    def __init__(self) -> None:
        self._by_file: dict[str, tuple[int, ServedCertificate]] = {}
        self._refused: set[str] = set()
        self._keys = PublicKeys()
        self._evidence: Callable[[Certificate, Path], Evidence] = lambda certificate, file: KeptEvidence(certificate)

    def __iter__(self) -> Iterator[ServedCertificate]:
        """For metrics."""
        return iter({served.sha256: served for _, served in self._by_file.values()}.values())

    def keep(self, folder: Path | None = None, keys: PublicKeys | None = None) -> None:
        """Keep evidence in files: in `folder`, or beside each certificate; and serve what one of `keys` has signed."""
        self.close()

        def kept(certificate: Certificate, file: Path) -> Evidence:
            path = evidence_path(certificate, file, folder)
            return KeptEvidence(certificate, EvidenceFile(path, certificate.sha256))

        self._evidence, self._keys = kept, keys or PublicKeys()

    def report(self, link: GatewayLink) -> None:
        """Leave evidence and keys to a gateway."""
        self.close()
        self._evidence = lambda certificate, file: ReportedEvidence(certificate.sha256, link)

    def verdicts(self, caller: str = "") -> Mapping[str, Verdict]:
        """Of each certificate, by its SHA-256, as its file is now; what a gateway tells its replicas."""
        for file in list(self._by_file):
            with suppress(CalibrationError):  # which has been logged
                self.read(file)
        return {served.sha256: served.verdict(caller) for served in self}

    def count(self, vote: Vote) -> None:
        """A vote from a replica; one on a certificate that is no longer served is left out."""
        for served in self:
            if served.sha256 == vote.certificate:
                served.evidence.add(vote)

    def close(self) -> None:
        """Let go of the files that evidence is in; what is asked for later is opened again."""
        for served in self:
            served.evidence.close()
        self._by_file.clear()

    def pick(self, files: Sequence[str], tolerated: Mapping[str, float] | None = None) -> ServedCertificate:
        """The first one or, where risks are named, that with the highest alpha of those that promise all of them.

        Raises:
            CalibrationError: none promises so much, or as in `together`.
        """
        known = self.together(files)
        if not tolerated:
            return known[0]
        promises = [{finding.risk: finding.alpha for finding in served.certificate.findings} for served in known]
        fitting = [
            (alphas[next(iter(tolerated))], -index)
            for index, alphas in enumerate(promises)
            if all(name in alphas and alphas[name] <= level for name, level in tolerated.items())
        ]
        if not fitting:
            raise CalibrationError(f"no certificate promises {_in_words(tolerated)}; {_in_words(*promises)} are there")
        return known[-max(fitting)[1]]

    def together(self, files: Sequence[str]) -> list[ServedCertificate]:
        """Those that a request may choose among.

        Raises:
            CalibrationError: they do not hold together, or a file holds no certificate as it was made.
        """
        known = [self.read(file) for file in files]
        refuse_apart({file: served.certificate.attempt for file, served in zip(files, known, strict=True)})
        return known

    def read(self, file: str) -> ServedCertificate:
        """Raises: CalibrationError: the file holds no certificate as it was made."""
        path = Path(file)
        changed_at = path.stat().st_mtime_ns if path.is_file() else -1
        if file not in self._by_file or self._by_file[file][0] != changed_at:
            try:
                certificate = Certificate.read(path)
            except CalibrationError as error:
                if file not in self._refused:
                    _log.warning("%s; requests think to the end", error)
                self._refused.add(file)
                raise
            self._serve(file, changed_at, certificate)
        return self._by_file[file][1]

    def _serve(self, file: str, changed_at: int, certificate: Certificate) -> None:
        """Serve what the file holds now; another file may hold the same."""
        known = {served.sha256: served for served in self}
        served = known.get(certificate.sha256)
        served = served or ServedCertificate(certificate, self._evidence(certificate, Path(file)))
        served.flaw = self._keys.flaw(certificate)
        self._by_file[file] = changed_at, served
        for left in set(known.values()).difference(self):
            left.evidence.close()


def evidence_path(certificate: Certificate, file: Path, folder: Path | None) -> Path:
    """Where the evidence against the certificate in `file` is kept."""
    return (folder or file.parent) / f"{certificate.sha256[:16]}.evidence"


def _in_words(*promises: Mapping[str, float]) -> str:
    return ", ".join(" and ".join(f"{name} below {level:g}" for name, level in each.items()) for each in promises)
