"""Certificates in service: what became of the requests under each of them, and whether it still holds."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path

from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.certificate import Certificate, check_matches
from reasonrt.policies.stopping.drift import DriftMonitor
from reasonrt.policies.stopping.replay import Outcome
from reasonrt.policies.stopping.risks import lost_correct
from reasonrt.policies.stopping.traces import Fingerprints, Trace

_WINDOW = 10_000  # shadowed requests
_log = logging.getLogger(__name__)


class ServedCertificate:
    """One certificate, over all requests that it is asked for.

    Attributes:
        monitor: fed by the requests that run to their end although the rule would have stopped them. Nobody knows
            the right answers there, so it watches how often stopping departs from the full answer, and its limit is
            what that was at most on the certified problems; alpha, where lost answers are what was certified and it is
            more.
        counts: of requests by what became of them: `go_on`, `answer`, `give_up`, `refused` (the certificate is not for
            them, or no longer holds); of the shadowed ones that `departed`; of probes that were `dropped`.
    """

    def __init__(self, certificate: Certificate) -> None:
        self.certificate, self.sha256 = certificate, certificate.sha256
        alphas = {finding.risk: finding.alpha for finding in certificate.findings}
        limit = max(alphas.get("lost_correct", 0.0), certificate.unlabelled.upper_bound)
        self.monitor = DriftMonitor(min(limit, 0.99), certificate.delta)
        self.counts = Counter[str]()
        self._asked: OrderedDict[Hashable, None] = OrderedDict()

    def check(self, served: Fingerprints) -> None:
        """Raises: CalibrationError: the certificate is not for this, or no longer holds."""
        try:
            check_matches(self.certificate, served)
            if self.monitor.alarm:
                raise CalibrationError(
                    f"stopping changed more than {self.monitor.alpha:.3g} of the answers, by {self.monitor.n} requests "
                    "that ran to their end; the certificate no longer holds, certify anew"
                )
        except CalibrationError as error:
            self.counts["refused"] += 1
            if self.counts["refused"] == 1:
                _log.warning("certificate %.12s: %s; requests think to the end", self.sha256, error)
            raise

    def ran_to_the_end(self, asked: Hashable, trace: Trace, outcome: Outcome) -> None:
        """One shadowed request: what it asked, what it thought, and what the rule would have done.

        Among so many shadowed requests one question counts once: who sends it again and again has one vote.
        """
        if asked in self._asked:
            return
        self._asked[asked] = None
        if len(self._asked) > _WINDOW:
            self._asked.popitem(last=False)
        departed, was_well = lost_correct(trace, outcome), not self.monitor.alarm
        self.counts["departed"] += departed
        if self.monitor.add(departed) and was_well:
            _log.warning(
                "certificate %.12s: stopping departs from the full answer more often than %.3g; back to full thinking",
                self.sha256,
                self.monitor.alpha,
            )


class ServedCertificates:
    """The certificates of one runtime, by their files. A file that has changed is read again and starts anew."""

    def __init__(self) -> None:
        self._by_file: dict[str, tuple[int, ServedCertificate]] = {}
        self._refused: set[str] = set()

    def __iter__(self) -> Iterator[ServedCertificate]:
        """For metrics."""
        return (served for _, served in self._by_file.values())

    def pick(self, files: Sequence[str], tolerated: Mapping[str, float] | None = None) -> ServedCertificate:
        """The first one or, where risks are named, that with the highest alpha of those that promise all of them.

        Raises:
            CalibrationError: none promises so much, or a file holds no certificate as it was made.
        """
        known = [self.read(file) for file in files]
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

    def read(self, file: str) -> ServedCertificate:
        path = Path(file)
        changed_at = path.stat().st_mtime_ns if path.is_file() else -1
        if file not in self._by_file or self._by_file[file][0] != changed_at:
            try:
                self._by_file[file] = changed_at, ServedCertificate(Certificate.read(path))
            except CalibrationError as error:
                if file not in self._refused:
                    _log.warning("%s; requests think to the end", error)
                self._refused.add(file)
                raise
        return self._by_file[file][1]


def _in_words(*promises: Mapping[str, float]) -> str:
    return ", ".join(" and ".join(f"{name} below {level:g}" for name, level in each.items()) for each in promises)
