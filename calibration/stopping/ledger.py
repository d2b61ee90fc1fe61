"""What was tried on which problems: append-only files, written before a result is known.

A set is known by its problems, whatever the file that they stand in: a copy that is renamed, in another order or
extended is the same set. Tries on it are nested: each has all the problems that the ones before it had, and one that
has more uses p-values that hold at any time. So nobody leaves out what was lost, or adds problems until it suits.
"""

import fcntl
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from pydantic import TypeAdapter

from reasonrt.errors import CalibrationError, shown
from reasonrt.files import FileKind, append_whole, open_log, parse_json
from reasonrt.policies.stopping.attempt import Attempt
from reasonrt.policies.stopping.certificate import Certificate
from reasonrt.policies.stopping.files import FILES, canonical
from reasonrt.policies.stopping.traces import Trace, TraceSet

SCHEMA: Final = "reasonrt.ledger/1"
NAME = "ledger.jsonl"
_FILE = FileKind(CalibrationError, "name another ledger (--ledger)")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a try is going to test, said before its result is known.

    Attributes:
        promises: in words, one for each level.
        levels: SHA-256 of everything that decides the test of a level: rules in their order, risks, alphas, test.
        delta: of all certificates from the set together.
        growing: whether it may be looked at again when problems have been added.
    """

    promises: tuple[str, ...]
    levels: tuple[str, ...]
    delta: float
    growing: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a ledger: a try, or another look of a try at growing data.

    Attributes:
        set_id, number: as in `Attempt`.
        split: SHA-256 of the traces.
        problems: what each is known by, shortened hashes.
        model: fingerprint of the model that the traces are of; "" is unknown, and may be any.
        at: when, ISO 8601.
    """

    set_id: str
    number: int
    declared: Declaration
    split: str
    problems: tuple[str, ...]
    model: str
    at: str


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """Problems with what was recorded of each, as a ledger knows them.

    Attributes:
        names: what each problem is known by, whatever its id and its place.
        split: SHA-256 of all that was recorded.
        model: fingerprint of the model that it was recorded of; "" is unknown, and may be any.
        split_of: the same as `split`, of the problems with these names alone.
    """

    names: tuple[str, ...]
    split: str
    model: str
    split_of: Callable[[Collection[str]], str]

    @classmethod
    def of(cls, contents: Sequence[str], model: str, split_of: Callable[[Sequence[int]], str]) -> Self:
        """Problems by their contents: equal ones are one problem, drawn more than once.

        Args:
            split_of: SHA-256 of what was recorded of the problems at these places.
        """
        times = Counter[str]()  # more than once only in what was drawn with replacement, and where no text is known
        names = []
        for content in contents:
            times[content] += 1
            names.append(hashlib.sha256(f"{content} {times[content]}".encode()).hexdigest()[:16])

        def of_part(part: Collection[str]) -> str:
            kept = frozenset(part)
            return split_of([place for place, name in enumerate(names) if name in kept])

        return cls(tuple(names), split_of(range(len(names))), model, of_part)

    @classmethod
    def of_traces(cls, traces: TraceSet) -> Self:
        """Each problem by its text or, where that is not at hand, by its trace."""

        def split_of(places: Sequence[int]) -> str:
            return replace(traces, traces=tuple(traces.traces[place] for place in places)).split.sha256

        return cls.of([trace.content_hash or _content(trace) for trace in traces], traces.fingerprints.model, split_of)


class Ledger:
    """Files that each hold every try on the sets that were tried under them.

    Several are kept alike: one that travels with the traces, say, and one that knows copies of them elsewhere.
    """

    def __init__(self, *files: Path) -> None:
        # each once and in one order for all, so that nobody who locks them waits for another, or for himself
        self._files = sorted({Path(os.path.realpath(file)) for file in files})

    @classmethod
    def beside(cls, traces_file: Path, file: Path | None = None) -> Self:
        """That in the folder of the traces, and this user's own, which knows copies of them in other folders.

        Args:
            file: in the place of the one in the folder.
        """
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        return cls(file or traces_file.parent / NAME, state / "reasonrt" / NAME)

    def enter(
        self, problems: ProblemSet, declared: Declaration, check: Callable[[Attempt], None] = lambda attempt: None
    ) -> Attempt:
        """Write a try down, unless this very one is there: the same again shows nothing new, and spends nothing.

        Args:
            check: raises where the try would be in vain, which then costs none.

        Raises:
            CalibrationError: a file cannot be written or was changed; or the tries before do not allow this one.
        """
        draft = Entry("", 0, declared, problems.split, problems.names, problems.model, _now())
        with ExitStack() as stack:
            files = [stack.enter_context(closing(_File(path))) for path in self._files]
            known = list(dict.fromkeys(entry for file in files for entry in file.entries))
            before = _tries_on_the_set(known, draft)
            entry = _placed(draft, before, problems)
            attempt = Attempt(entry.set_id, entry.number, declared.levels)
            if entry not in before:
                check(attempt)
            for file in files:
                file.append(each for each in dict.fromkeys((*before, entry)) if each not in file.entries)
        return attempt

    def confirm(self, certificate: Certificate, traces: TraceSet) -> None:
        """Whether the tries on `traces`, which it was certified on, are what the certificate says of them.

        Raises:
            CalibrationError: the ledger has no try that the certificate can come from; or, of one that was made without
                a ledger, any try on its problems; or it was changed.
        """
        attempt = certificate.attempt
        known = [entry for path in self._files if path.exists() for entry in _parse(_FILE.read_bytes(path), path)[0]]
        if attempt.number is None:
            problems = ProblemSet.of_traces(traces)
            if tried := _sets_of(known, problems.names, problems.model):
                num_tries = len({(entry.set_id, entry.number) for entry in known if entry.set_id in tried})
                raise CalibrationError(
                    f"the certificate was made without a ledger, as if nothing else were tried on its problems, and "
                    f"{' and '.join(map(str, self._files))} have {num_tries} tries on them; certify again under these"
                )
            return
        claimed = (attempt.set_id, attempt.number, attempt.levels, certificate.delta, certificate.splits["certify"])
        if claimed not in {(e.set_id, e.number, e.declared.levels, e.declared.delta, e.split) for e in known}:
            raise CalibrationError(
                f"{' and '.join(map(str, self._files))} have no try {attempt.number} like that of the certificate; "
                "give the ledger that it was certified under"
            )


class _File:
    """One file of a ledger, which nobody else writes to until it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._number = open_log(path)
            fcntl.flock(self._number, fcntl.LOCK_EX)
        except OSError as error:
            raise _cannot_write(path, error) from None
        try:
            content = _FILE.read_bytes(path)
            self.entries, self._sha256, torn = _parse(content, path)
        except BaseException:
            self.close()
            raise
        if torn:
            _log.warning("%s ended in half a line, of a try that was never made; it is cut off", path)
            os.ftruncate(self._number, len(content) - len(torn))
        self._missing = b"\n" if content and not torn and not content.endswith(b"\n") else b""  # an editor took it

    def close(self) -> None:
        os.close(self._number)

    def append(self, entries: Iterable[Entry]) -> None:
        """On the disk when it returns."""
        lines = []
        for entry in entries:
            value = {"schema": SCHEMA, **asdict(entry)}
            self._sha256 = _link(self._sha256, value)
            lines.append(f"{canonical(value | {'sha256': self._sha256})}\n".encode())
        try:
            append_whole(self._number, b"".join((self._missing, *lines)) if lines else b"")
        except OSError as error:
            raise _cannot_write(self._path, error) from None


def _tries_on_the_set(known: Sequence[Entry], draft: Entry) -> list[Entry]:
    """What is known of the set that `draft` is on; nothing where all of its problems are new."""
    sets = _sets_of(known, draft.problems, draft.model)
    if len(sets) > 1:
        raise CalibrationError(
            f"these problems are of {len(sets)} sets that were certified on apart, whose promises cannot be joined; "
            "certify on one of them, or on new problems"
        )
    before = [entry for entry in known if entry.set_id in sets]
    if other := [entry.declared.delta for entry in before if entry.declared.delta != draft.declared.delta]:
        raise CalibrationError(
            f"the tries on these problems share delta {other[0]:g}, this one has {draft.declared.delta:g}; take that, "
            "or certify on new problems"
        )
    return before


def _sets_of(known: Iterable[Entry], problems: Iterable[str], model: str) -> set[str]:
    """Those that hold any of these problems, answered by the same model."""
    names = frozenset(problems)
    return {entry.set_id for entry in known if _may_be_one(entry.model, model) and names & set(entry.problems)}


def _placed(draft: Entry, before: Sequence[Entry], problems: ProblemSet) -> Entry:
    """`draft` with its number among the tries on its set, or the entry that it repeats."""
    if not before:
        return replace(draft, set_id=draft.split, number=1)
    declared_before = [entry for entry in before if entry.declared.levels == draft.declared.levels]
    if same := [entry for entry in declared_before if entry.split == draft.split]:
        return same[0]
    seen = frozenset().union(*(entry.problems for entry in before))
    if left_out := seen - set(draft.problems):
        raise CalibrationError(
            f"{len(left_out)} of the {len(seen)} problems of earlier tries are left out, which may be those that were "
            "lost; certify on all of them, or on new ones"
        )
    looked_at = min(len(entry.problems) for entry in before)
    if not draft.declared.growing and (added := len(draft.problems) - looked_at):
        raise CalibrationError(
            f"{added} problems were added to {looked_at} that an earlier try had looked at; what is added after a look "
            "takes p-values that hold at any time (growing=True, --growing), or certify on new problems alone"
        )
    number = 1 + max(entry.number for entry in before)
    if draft.declared.growing and declared_before:
        last = max(declared_before, key=lambda entry: len(entry.problems))
        if problems.split_of(last.problems) != last.split:
            raise CalibrationError(
                "problems of the earlier look have other traces now; a look at growing data keeps the old ones"
            )
        number = last.number
    return replace(draft, set_id=before[0].set_id, number=number)


def _content(trace: Trace) -> str:
    return canonical([trace.full_tokens, trace.full_answer, [asdict(checkpoint) for checkpoint in trace.checkpoints]])


def _may_be_one(model: str, other: str) -> bool:
    return model == other or "" in (model, other)


def _cannot_write(path: Path, error: OSError) -> CalibrationError:
    return CalibrationError(
        f"cannot write the ledger {path}: {error.strerror}; name another (--ledger in the place of the one beside the "
        "traces, XDG_STATE_HOME for your own)"
    )


def _parse(content: bytes, path: Path) -> tuple[list[Entry], str, bytes]:
    """The entries, the hash of the last one, and half a line at the end."""
    *lines, torn = content.split(b"\n")
    if _is_json(torn):
        lines, torn = [*lines, torn], b""
    entries, sha256 = [], ""
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        value = FILES.parse_json(line.decode(errors="replace"), where)
        stated = value.pop("sha256", None) if isinstance(value, dict) else None
        sha256 = _link(sha256, value)
        if stated != sha256:
            raise CalibrationError(
                f"{where} was changed, or lines before it were, after it was written; restore the ledger, or certify "
                "on new problems under another"
            )
        if (found := value.pop("schema", None)) != SCHEMA:
            raise CalibrationError(
                f"{where} has the schema {shown(found)}, this version reads {SCHEMA!r}; name another"
            )
        entries.append(FILES.validate(_ENTRY, value, where))
    return entries, sha256, torn


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def _link(before: str, value: Any) -> str:
    """The hash of a line, which depends on all lines before it."""
    return hashlib.sha256((before + canonical(value)).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


_ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)
