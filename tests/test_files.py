"""The door for files: whatever is behind a name is one line, and soon; what is written is whole or not there."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from reasonrt.calibration.stopping.importers import read_conformal_thinking, read_generic
from reasonrt.calibration.stopping.ledger import Declaration, Ledger, ProblemSet
from reasonrt.calibration.stopping.synthetic import synthetic_traces
from reasonrt.cli.main import main
from reasonrt.config import load_config
from reasonrt.errors import ConfigError, ReasonRTError
from reasonrt.evals.contexts.files import read_problems as read_context_problems
from reasonrt.evals.journal import Journal, Record
from reasonrt.evals.tasks import read_problems
from reasonrt.files import MAX_DEPTH, FileKind, append_whole, open_log, parse_json, parse_yaml, write_whole
from reasonrt.policies.stopping.certificate import Certificate
from reasonrt.policies.stopping.evidence_file import EvidenceFile
from reasonrt.policies.stopping.signature import PublicKeys
from reasonrt.policies.stopping.traces import read_traces
from reasonrt.programs.journal import Journal as ProgramJournal
from reasonrt.programs.weights import Weights
from reasonrt.routers.learned import load_router

TRACES = synthetic_traces("honest", 3)


def read_journal(path: Path) -> None:
    path.rename(path.with_name("journal.jsonl"))
    Journal(path.parent, {"task": "zoo"}, Record)


def enter_ledger(path: Path) -> None:
    Ledger(path).enter(ProblemSet.of_traces(TRACES), Declaration(("p",), ("a",), 0.1, False))


READERS: dict[str, Callable[[Path], Any]] = {
    "configuration": load_config,
    "router": lambda path: load_router(str(path)),
    "certificate": Certificate.read,
    "traces": read_traces,
    "log of another package": read_conformal_thinking,
    "traces of another package": lambda path: read_generic(path, fields={}, checkpoint_fields={}, signals=()),
    "ledger": enter_ledger,
    "evidence": lambda path: EvidenceFile(path, "seed").read(),
    "public key": lambda path: PublicKeys.read([path]),
    "weights of programs": Weights.read,
    "journal of a program search": ProgramJournal.read,
    "journal of an evaluation": read_journal,
    "task": lambda path: read_problems(path, 5),
    "questions": read_context_problems,
}
CONTENTS: dict[str, bytes] = {
    "binary": bytes(range(256)) * 40 + b"\n",
    "zeros": bytes(10_000) + b"\n",
    "UTF-16": '{"a": 1}\n'.encode("utf-16"),
    "Latin-1": '{"ä": "ö"}\n'.encode("latin-1"),
    "half a surrogate": b'{"a": "\xed\xa0\x80"}\n',
    "deep lists": b"[" * 100_000 + b"\n",
    "deep objects": b'{"a":' * 100_000 + b"\n",
    "closed lists": b"[" * 500 + b"]" * 500 + b"\n",
    "deep YAML": b"".join(b" " * depth + b"a:\n" for depth in range(500)),
    "an alias of itself": b"a: &a [*a]\n",
    "aliases by aliases": b"a: &a [x]\n"
    + b"".join(b"%c: &%c [*%c, *%c]\n" % (n + 1, n + 1, n, n) for n in range(97, 120)),
    "twice the same key": b'{"engines": {}, "engines": {}}\n',
    "twice the same key in YAML": b"concurrency: 2\nconcurrency: 3\n",
    "a long number": b'{"a": ' + b"9" * 5000 + b"}\n",
    "a list": b"[1]\n",
    "a number": b"7\n",
    "a text": b'"text"\n',
    "a tag": b"!!python/object/apply:os.system [exit]\n",
    "a very long line": b"x" * 900_000 + b"\n",
    "escapes": b"\x1b[2J\x1b[31m: \x9b\n",
}


def is_refused(read: Callable[[Path], Any], path: Path) -> None:
    begin = time.thread_time()
    with pytest.raises(ReasonRTError) as refused:
        read(path)
    seconds = time.thread_time() - begin

    message = str(refused.value)
    assert message.isprintable()
    assert len(message) <= 1000  # with a name of 255 characters
    assert "; " in message
    assert seconds < 1


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("reader", READERS)
def test_file_that_is_not_what_its_name_says_is_one_line(reader: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENTS[content])

    is_refused(READERS[reader], tmp_path / "file")


def behind(name: str, path: Path) -> Path:
    match name:
        case "nothing":
            pass
        case "a folder":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case "a device without end":
            path.symlink_to("/dev/zero")
        case "a circle of links":
            path.symlink_to(path)
        case "a large file":
            with path.open("wb") as file:
                file.truncate(1 << 40)
        case "a zero byte":
            return Path(f"{path}\0")
        case "a long name":
            return path.with_name("x" * 5000)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "nothing", "a folder", "a pipe", "a device without end", "a circle of links", "a large file", "a zero byte",
        "a long name",
    ],
)  # fmt: skip
@pytest.mark.parametrize("reader", sorted(READERS.keys() - {"journal of an evaluation", "ledger"}))
def test_whatever_is_behind_a_name_is_one_line(reader: str, name: str, tmp_path: Path) -> None:
    is_refused(READERS[reader], behind(name, tmp_path / "file"))


@pytest.mark.parametrize("name", ["a folder", "a pipe", "a device without end", "a circle of links", "a large file"])
def test_what_is_added_to_is_a_file(name: str, tmp_path: Path) -> None:
    is_refused(enter_ledger, behind(name, tmp_path / "ledger.jsonl"))
    is_refused(read_journal, behind(name, tmp_path / "journal.jsonl"))


COMMANDS = [
    ["config", "show", "--config"],
    ["solve", "?", "--config"],
    ["certificate", "show"],
    ["calibrate", "stopping", "--alpha", ".1", "--traces"],
    ["replay"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("content", ["binary", "deep lists", "an alias of itself", "twice the same key", "escapes"])
def test_command_ends_with_one_line_and_exit_code_2(
    command: list[str],
    content: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_bytes(CONTENTS[content])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["reasonrt", *command, "file"])

    with pytest.raises(SystemExit) as ended:
        main()

    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith("error: ")
    assert told.count("\n") == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None, max_examples=40)
@given(JSON)
def test_what_json_and_yaml_can_say_is_read(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_yaml(yaml.safe_dump(value)) == value


@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_depth_is_bounded_and_what_is_within_it_is_read(begin: str, end: str) -> None:
    within = MAX_DEPTH // len(end) - 1

    for parse in (parse_json, parse_yaml):
        parse(begin * within + "1" + end * within)
        for depth in (MAX_DEPTH + 1, 900, 100_000):
            with pytest.raises(ValueError, match="nested deeper than"):
                parse(begin * depth + "1" + end * depth)


@settings(deadline=None, max_examples=50)
@given(size=st.integers(0, 3000), room=st.integers(0, 3000), old=st.none() | st.binary(max_size=20))
def test_file_is_written_whole_or_stays(
    size: int, room: int, old: bytes | None, tmp_path_factory: pytest.TempPathFactory, disk_with: Any
) -> None:
    path = tmp_path_factory.mktemp("x") / "file"
    if old is not None:
        path.write_bytes(old)

    with disk_with(room):
        try:
            write_whole(path, b"n" * size)
            is_written = True
        except OSError:
            is_written = False

    assert is_written == (size <= room)
    assert (path.read_bytes() if path.exists() else None) == (b"n" * size if is_written else old)
    assert [file.name for file in path.parent.iterdir()] == (["file"] if is_written or old is not None else [])


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(1, 1000), max_size=6), room=st.integers(0, 3000))
def test_lines_are_added_whole_or_not_at_all(
    sizes: list[int], room: int, tmp_path_factory: pytest.TempPathFactory, disk_with: Any
) -> None:
    path = tmp_path_factory.mktemp("x") / "file"
    number, expected = open_log(path), b""

    for size in sizes:
        line = b"x" * (size - 1) + b"\n"
        with disk_with(room):
            try:
                append_whole(number, line)
                expected += line
            except OSError:
                assert len(expected + line) > room
        assert path.read_bytes() == expected
    os.close(number)


def test_written_file_is_as_open_as_others_and_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    write_whole(tmp_path / "new", "x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode

    (tmp_path / "new").chmod(0o600)
    (tmp_path / "link").symlink_to("new")
    write_whole(tmp_path / "link", "y")

    assert (tmp_path / "new").read_text() == "y"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_what_is_no_file_is_written_to_as_it_is() -> None:
    write_whole(Path("/dev/null"), "x")

    assert not Path("/dev/null").is_file()


def test_message_names_the_way_out(tmp_path: Path) -> None:
    kind = FileKind(ConfigError, "name another", most_bytes=10)
    (tmp_path / "long").write_text("x" * 11)

    with pytest.raises(ConfigError, match="long has more than 10 bytes; name another"):
        kind.read_text(tmp_path / "long")
    with pytest.raises(ConfigError, match=r"cannot write .*No such file or directory; name another"):
        kind.write(tmp_path / "no" / "file", "x")


def test_a_million_wrong_values_are_soon_one_line() -> None:
    begin = time.thread_time()
    with pytest.raises(ConfigError, match="file: 500,000 values in it are wrong; name another"):
        FileKind(ConfigError, "name another").validate(TypeAdapter(list[int]), ["x"] * 500_000, "file")

    assert time.thread_time() - begin < 1
