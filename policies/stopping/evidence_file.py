"""Where evidence outlives its process: a file that comes back as it was written, or not at all."""

import fcntl
import hashlib
import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.files import FILES, canonical

_CHECKSUM_CHARACTERS = 16
_log = logging.getLogger(__name__)


class InUseError(CalibrationError):
    """Another process has it open."""


class EvidenceFile:
    """JSON values, one a line, each after a checksum of itself and of every line before it.

    Half a line at the end is one that its process died in, and is cut off. Whatever else differs from what was written
    is an error, so that nobody begins anew without being told. A lock beside it holds while it is open; it stays when
    the file is closed, and tells that there has been one.

    Args:
        path: in a folder that is there.
        seed: of the checksums: what the values are about.
    """

    def __init__(self, path: Path, seed: str) -> None:
        self.path, self._seed = path, seed
        self._checksum, self._num_bytes = seed, 0  # of what was read
        self._opened = ExitStack()
        self._number = -1  # of the descriptor that lines are added by

    def read(self) -> list[Any]:
        """Everything in it, at least one value, whether or not a process has it open.

        Raises:
            CalibrationError: it is not as it was written, or cannot be read.
        """
        try:
            content = FILES.read_bytes(self.path)
        except OSError as error:
            raise self._trouble(error) from None
        self._checksum, self._num_bytes = self._seed, content.rfind(b"\n") + 1
        values = []
        for number, line in enumerate(content[: self._num_bytes].split(b"\n")[:-1], 1):
            checksum, _, text = line.decode(errors="replace").partition(" ")
            self._checksum = self._next(text)
            if checksum != self._checksum:
                raise CalibrationError(
                    f"{self.path}, line {number}, is not as it was written; bring back the file, or certify anew"
                )
            values.append(FILES.parse_json(text, str(self.path)))
        if not values:
            raise CalibrationError(f"{self.path} is empty; bring back the file, or certify anew")
        return values

    def open(self) -> list[Any]:
        """Everything in it; nothing where there is no file.

        Raises:
            InUseError: another process has it open.
            CalibrationError: it is not as it was written, or cannot be opened.
        """
        with ExitStack() as opened:
            try:
                lock = self.path.with_suffix(".lock")
                has_been = lock.exists()
                fcntl.flock(opened.enter_context(lock.open("ab")), fcntl.LOCK_EX | fcntl.LOCK_NB)
                values = self.read() if self.path.exists() else []
                if values:
                    os.truncate(self.path, self._num_bytes)
                    self._number = os.open(self.path, os.O_WRONLY | os.O_APPEND)
                elif has_been:
                    _log.warning("%s is lost; evidence begins anew", self.path)
            except BlockingIOError:
                raise InUseError(
                    f"{self.path} is in use by another process; stop that one, or give each serve.evidence_folder"
                ) from None
            except OSError as error:
                raise self._trouble(error) from None
            self._opened = opened.pop_all()
        return values

    def close(self) -> None:
        if self._number >= 0:
            os.close(self._number)
        self._number = -1
        self._opened.close()

    def add(self, value: Any) -> bool:
        """One more line; False where the file is no longer there to be added to.

        What has been added outlives this process. It is left to the system when it goes to the disk: a power failure
        may cost the last seconds of it.

        Raises:
            CalibrationError: it cannot be written.
        """
        try:
            if self.path.stat().st_ino != os.fstat(self._number).st_ino:
                return False
            line = self._line(value)
            if os.write(self._number, line) < len(line):
                return False
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._trouble(error) from None
        return True

    def replace(self, value: Any) -> None:
        """The whole file by one line, on the disk before the old one goes.

        Raises:
            CalibrationError: it cannot be written.
        """
        new = self.path.with_suffix(".new")
        self._checksum = self._seed
        try:
            number = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            if self._number >= 0:
                os.close(self._number)
            self._number = number
            with open(number, "wb", closefd=False) as file:
                file.write(self._line(value))
            os.fsync(number)
            new.replace(self.path)
        except OSError as error:
            raise self._trouble(error) from None

    def _line(self, value: Any) -> bytes:
        text = canonical(value)
        self._checksum = self._next(text)
        return f"{self._checksum} {text}\n".encode()

    def _next(self, text: str) -> str:
        return hashlib.sha256(f"{self._checksum} {text}".encode()).hexdigest()[:_CHECKSUM_CHARACTERS]

    def _trouble(self, error: OSError) -> CalibrationError:
        return CalibrationError(
            f"cannot keep evidence in {self.path}: {error.strerror}; mend that, or set serve.evidence_folder"
        )
