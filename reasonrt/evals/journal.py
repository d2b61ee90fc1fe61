"""What an evaluation has finished, on disk: one JSON line per problem and policy, in one file per run.

The first line holds the format and the run's settings; each arm of a comparison has a line with its own, written when
it joins the run. A line is written immediately and whole; an unfinished one, which a kill leaves at the end, is removed
when the journal is opened again. So a run can be stopped at any byte and continues with nothing done twice.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from reasonrt.errors import EvalError


@dataclass(frozen=True, slots=True)
class Record:
    """One problem solved, or failed, by one policy.

    Attributes:
        label: of the policy with its options.
        seconds: from its start to its end, while others ran concurrently.
        share_s: its share of the wall clock, which is divided at each moment among those that run.
        engine_tokens: generated, by engine.
        error: the message, where it failed; then it counts as wrong.
        details: what the policy found out, from its `Stop`.
        warnings: what was asked of it and did not take place, and why.
    """

    label: str
    problem: str
    group: str
    gold: str
    share_s: float
    correct: bool = False
    answer: str = ""
    text: str = ""
    seconds: float = 0.0
    engine_tokens: dict[str, int] = field(default_factory=dict)
    finish_reason: str = "error"
    error: str = ""
    usage: dict[str, dict[str, int]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(self.engine_tokens.values())


R = TypeVar("R", bound=Any)
FORMAT = "reasonrt-journal/2"


class Journal(Generic[R]):
    """The journal of one run, open for writing.

    Args:
        folder: its file is `journal.jsonl` in it.
        settings: what binds it to its run.
        kind: the dataclass of a line.
        arms: name to what binds the records of that arm; arms may join a run later.

    Raises:
        EvalError: the file belongs to a run with other settings, or an arm of it had others; or it is of another
            version, or cannot be read or written.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], kind: type[R], arms: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self._kind = folder / "journal.jsonl", kind
        self.records: list[R] = []
        with ExitStack() as opened:  # closed again unless all of this succeeds
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._file: BufferedRandom = opened.enter_context(self.path.open("a+b"))
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._recover(_as_read({"": settings, **(arms or {})}))
            except BlockingIOError:
                raise EvalError(f"another run is writing {self.path}; wait for it or give another --out") from None
            except OSError as error:
                raise EvalError(f"cannot use {self.path}: {error.strerror}; give another --out") from None
            opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, record: R) -> None:
        """Write one record, whole or not at all."""
        self._write(asdict(record))
        self.records.append(record)

    def _write(self, value: dict[str, Any]) -> None:
        at = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(json.dumps(value).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._take_back(at)
            raise EvalError(
                f"cannot write {self.path}: {error.strerror}; what was finished is kept, make room and run it again"
            ) from None

    def _take_back(self, at: int) -> None:
        os.ftruncate(self._file.fileno(), at)
        try:
            self._file.close()  # it still holds what was not written
        except OSError:
            os.truncate(self.path, at)

    def _recover(self, parts: dict[str, Any]) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file.fileno(), whole)
        lines = content[:whole].splitlines()
        known = self._read(lines) if lines else {}
        for name, part in parts.items():
            if name in known and (difference := _first_difference(known[name], part)):
                key, then, now = difference
                raise EvalError(
                    f"{self.path} is of a run {f'of {name} ' if name else ''}with {key} {_short(then)}, "
                    f"this one has {_short(now)}; give another --out"
                )
        for name, part in parts.items():
            if name not in known:
                self._write({"arm": name, "settings": part} if name else {"format": FORMAT, "settings": part})

    def _read(self, lines: list[bytes]) -> dict[str, Any]:
        """Take the records; return the settings of each arm, and under "" those of the run."""
        try:
            head, *rest = map(json.loads, lines)
            if head.get("format") == FORMAT:
                arms = [line for line in rest if "arm" in line]
                self.records = [self._kind(**line) for line in rest if "arm" not in line]
                return {"": head["settings"]} | {line["arm"]: line["settings"] for line in arms}
            if "settings" not in head:
                raise KeyError("settings")
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise EvalError(f"{self.path} is no journal of ours ({error}); give another --out") from None
        raise EvalError(
            f"{self.path} has format {_short(head.get('format'))}, this version reads {FORMAT!r}; give another --out"
        )


def _as_read(value: Mapping[str, Any]) -> dict[str, Any]:
    """The value as it is when it has been written as JSON and read again."""
    return dict(json.loads(json.dumps(value, default=str)))


def _first_difference(known: Any, given: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The innermost key at which two values differ, with dots, and both values there."""
    if not isinstance(known, dict) or not isinstance(given, dict):
        return None if known == given else (key, known, given)
    for name in sorted(known.keys() | given.keys()):
        inner = f"{key}.{name}" if key else name
        if difference := _first_difference(known.get(name), given.get(name), inner):
            return difference
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
