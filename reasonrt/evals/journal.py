"""What an evaluation has finished, on disk: one JSON line per problem and policy, in one file per run.

The first line holds the format and the run's settings; each arm of a comparison has a line with its own, written when
it joins the run. A line is on the disk whole or not at all, also where the disk is full; an unfinished one, which a
kill leaves at the end, is removed when the journal is opened again. So a run can be stopped at any byte and continues
with nothing done twice.
"""

import base64
import fcntl
import json
import os
import zlib
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from pydantic import TypeAdapter

from reasonrt.errors import EvalError, shown
from reasonrt.files import FileKind, append_whole, open_log, parse_json, write_whole


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
        cpu_s: as `share_s`, of the CPU time of all processes; 0 where several policies ran concurrently.
        packed: the whole text, where the run keeps texts; `whole_text` unpacks it.
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
    cpu_s: float = 0.0
    packed: str = ""

    @property
    def whole_text(self) -> str:
        """With its thinking; empty where it was not kept."""
        return zlib.decompress(base64.b64decode(self.packed)).decode() if self.packed else ""

    @property
    def tokens(self) -> int:
        return sum(self.engine_tokens.values())


def pack(text: str) -> str:
    """A text as `Record.packed` holds it: compressed, in base64."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


R = TypeVar("R", bound=Any)
Confirm = Callable[[str], bool]
FORMAT: Final = "reasonrt-journal/2"
_FILE: Final = FileKind(EvalError, "remove the line, or give another --out", most_bytes=1 << 30)
_SETTINGS: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_BEGINNING: Final = json.dumps({"format": FORMAT}).encode()[:-1]


def refuse(question: str) -> bool:
    """The answer of nobody."""
    return False


class Journal(Generic[R]):
    """The journal of one run, open for writing.

    Args:
        folder: its file is `journal.jsonl` in it.
        settings: what binds it to its run.
        kind: the dataclass of a line.
        arms: name to what binds the records of that arm; arms may join a run later.
        confirm: asked whether records that have lost the line with their settings are of this run.
        no_longer: settings that have bound journals of earlier versions, and bind none now.

    Raises:
        EvalError: the file belongs to a run with other settings, or an arm of it had others; or it is of another
            version, or cannot be read or written.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        kind: type[R],
        arms: Mapping[str, Any] | None = None,
        confirm: Confirm = refuse,
        no_longer: Collection[str] = (),
    ) -> None:
        self.path, self._kind, self._confirm = folder / "journal.jsonl", TypeAdapter(kind), confirm
        self._no_longer = no_longer
        self.records: list[R] = []
        with ExitStack() as opened:  # closed again unless all of this succeeds
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._number = open_log(self.path)
                opened.callback(os.close, self._number)
                fcntl.flock(self._number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._recover(_as_read({"": settings, **(arms or {})}))
            except BlockingIOError:
                raise EvalError(f"another run is writing {self.path}; wait for it or give another --out") from None
            except OSError as error:
                raise EvalError(f"cannot use {self.path}: {error.strerror}; give another --out") from None
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def add(self, record: R) -> None:
        """Write one record, whole or not at all."""
        self._write(asdict(record))
        self.records.append(record)

    def _write(self, *values: dict[str, Any]) -> None:
        try:
            append_whole(self._number, b"".join(json.dumps(value).encode() + b"\n" for value in values))
        except OSError as error:
            raise EvalError(
                f"cannot write {self.path}: {error.strerror}; what was finished is kept, make room and run it again"
            ) from None

    def _recover(self, parts: dict[str, Any]) -> None:
        content = _FILE.read_bytes(self.path)
        whole = content.rfind(b"\n") + 1
        if not whole and not _BEGINNING.startswith(content[: len(_BEGINNING)]):
            raise EvalError(f"{self.path} is no journal of ours; give another --out")
        lines = content[:whole].split(b"\n")[:-1]
        known = self._read_all(lines) if lines else {}
        if lines and "" not in known:
            self._put_a_head(parts[""], lines)
            known[""] = parts[""]
        elif whole < len(content):
            os.ftruncate(self._number, whole)
        for name, part in parts.items():
            if name in known and (difference := _first_difference(known[name], part)):
                key, then, now = difference
                raise EvalError(
                    f"{self.path} is of a run {f'of {name} ' if name else ''}with {key} {shown(then)}, "
                    f"this one has {shown(now)}; give another --out"
                )
        new = [_line(name, part) for name, part in parts.items() if name not in known]
        if new:
            self._write(*new)

    def _read_all(self, lines: list[bytes]) -> dict[str, Any]:
        """Take the records; return the settings of each arm, and under "" those of the run, where it has them."""
        known = self._read_head(lines[0])
        rest = lines[1:] if known or not self._is_ours(lines[0]) else lines
        if not known and not any(map(self._is_ours, rest)):
            raise EvalError(f"{self.path}, line 1, is no journal of ours; give another --out")
        for number, line in enumerate(rest, len(lines) - len(rest) + 1):
            where = f"{self.path}, line {number}"
            value = _FILE.parse_json(line, where)
            if isinstance(value, dict) and "arm" in value:
                known[str(value["arm"])] = _FILE.validate(_SETTINGS, value.get("settings"), where)
            else:
                self.records.append(_FILE.validate(self._kind, value, where))
        return known

    def _read_head(self, line: bytes) -> dict[str, Any]:
        """The settings of the run; nothing where the line is no head."""
        try:
            head = parse_json(line)
        except ValueError:
            return {}
        if not isinstance(head, dict) or "arm" in head or not ({"format", "settings"} & head.keys()):
            return {}
        if (found := head.get("format")) != FORMAT:
            raise EvalError(f"{self.path} has format {shown(found)}, this version reads {FORMAT!r}; give another --out")
        settings = _FILE.validate(_SETTINGS, head.get("settings"), f"{self.path}, line 1")
        return {"": {name: value for name, value in settings.items() if name not in self._no_longer}}

    def _is_ours(self, line: bytes) -> bool:
        try:
            value = parse_json(line)
            is_arm = isinstance(value, dict) and value.keys() == {"arm", "settings"}
            return is_arm or self._kind.validate_python(value) is not None
        except ValueError:
            return False

    def _put_a_head(self, settings: dict[str, Any], lines: list[bytes]) -> None:
        num_records = len(self.records)
        lost = f"{self.path} has lost the line with the settings of its run"
        if not self._confirm(f"{lost}; are its {num_records} records of this run?"):
            raise EvalError(f"{lost}; take its {num_records} records as of this run with --yes, or give another --out")
        kept = lines if self._is_ours(lines[0]) else lines[1:]
        write_whole(self.path, b"\n".join((json.dumps(_line("", settings)).encode(), *kept, b"")))
        number = open_log(self.path)
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.dup2(number, self._number, inheritable=False)  # the lock is of the open file, which both now are
        os.close(number)


def _line(name: str, settings: Any) -> dict[str, Any]:
    """Of an arm or, without a name, of the run."""
    return {"arm": name, "settings": settings} if name else {"format": FORMAT, "settings": settings}


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
