"""Traces of served traffic: shadowed requests, recorded while they run to their end, in a file to certify on.

Nobody knows their right answers, so they certify `lost_correct` alone: what is bounded is how often stopping departs
from the model's own full answer, and no right answer is lost without that.
"""

import fcntl
import logging
import os
from dataclasses import asdict
from functools import cache
from pathlib import Path

from reasonrt.errors import CalibrationError
from reasonrt.files import append_whole, open_log
from reasonrt.policies.stopping.files import FILES, canonical
from reasonrt.policies.stopping.traces import TRACE, Fingerprints, Trace, header_of

_log = logging.getLogger(__name__)


class ShadowTraces:
    """A file of traces that grows; `read_traces` reads it, and several processes may add to it.

    It takes what was generated as its first trace was, `max_tokens` included, and each question once: what is certified
    on it holds for different questions, as this traffic asks them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_bytes, self._header, self._names = 0, "", set[str]()
        self._is_well = True

    def add(self, trace: Trace, fingerprints: Fingerprints) -> bool:
        """Append a trace, unless it was made otherwise or its question is there. Returns whether it was.

        A file that cannot be read or written is named once in the log.
        """
        header = canonical(header_of(fingerprints))
        try:
            with open(open_log(self._path), "rb", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._catch_up(file.fileno())
                if trace.names & self._names or header != (self._header or header):
                    return False
                lines = [canonical(asdict(trace))] if self._header else [header, canonical(asdict(trace))]
                append_whole(file.fileno(), "".join(f"{line}\n" for line in lines).encode())
            self._is_well = True
        except (OSError, CalibrationError) as error:
            if self._is_well:
                _log.warning("cannot record shadows in %s: %s", self._path, error)
            self._is_well = False
            return False
        return True

    def _catch_up(self, number: int) -> None:
        """Read what has been added since; half a line at the end is one that its process died in, and is cut off."""
        size = os.fstat(number).st_size
        if size < self._read_bytes:  # it is another file
            self._read_bytes, self._header, self._names = 0, "", set()
        added = os.pread(number, size - self._read_bytes, self._read_bytes)
        whole = added.rfind(b"\n") + 1
        os.ftruncate(number, self._read_bytes + whole)
        for line in added[:whole].splitlines():
            value = FILES.parse_json(line.decode(errors="replace"), "a line of it")
            if self._header:
                self._names |= FILES.validate(TRACE, value, "a line of it").names
            else:
                self._header = canonical(value)
        self._read_bytes += whole


@cache
def shadow_traces(file: str) -> ShadowTraces:
    """The file of this name; all requests of this process share it."""
    return ShadowTraces(Path(file))
