"""The journal: a run may be killed at any byte, and nothing is lost or done twice."""

import errno
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.errors import EvalError
from reasonrt.evals.journal import FORMAT, Journal, Record

SETTINGS = {"task": "zoo", "limits": {"max_tokens": 5}}

ARMS = {"target": {"options": {"word": "ä"}}}


def record(index: int, text: str = "") -> Record:
    return Record("target", f"p{index}", "gcd/1", gold="1", share_s=0.5, text=text, engine_tokens={"target": index})


@settings(deadline=None)
@given(st.data())
def test_killed_at_any_byte_it_goes_on_with_each_problem_once(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        with Journal(out, SETTINGS, Record, ARMS) as journal:
            for index in range(8):
                journal.add(record(index, "ä\n"))
        content = journal.path.read_bytes()
        journal.path.write_bytes(content[: data.draw(st.integers(0, len(content)))])

        with Journal(out, SETTINGS, Record, ARMS) as journal:
            for index in range(8):
                if f"p{index}" not in {record.problem for record in journal.records}:
                    journal.add(record(index))
        with Journal(out, SETTINGS, Record, ARMS) as journal:
            problems = [known.problem for known in journal.records]

        assert sorted(problems) == [f"p{index}" for index in range(8)]


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    written = [record(1, "ü \u2028 \n \ud800"), record(2)]
    with Journal(tmp_path, SETTINGS, Record) as journal:
        for known in written:
            journal.add(known)

    with Journal(tmp_path, SETTINGS, Record) as journal:
        assert journal.records == written


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"task": "gcd"}, "task 'zoo', this one has 'gcd'"),
        ({"limits": {"max_tokens": 6}}, "limits.max_tokens 5, this one has 6"),
        ({"limits": {"max_tokens": 5, "deadline_s": 1.5}}, "limits.deadline_s None, this one has 1.5"),
        ({"more": "x" * 100}, "more None, this one has 'xxx"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, changed: dict[str, Any], difference: str) -> None:
    Journal(tmp_path, SETTINGS, Record).__exit__(None, None, None)

    with pytest.raises(EvalError, match=f"is of a run with {difference}.*give another --out") as caught:
        Journal(tmp_path, SETTINGS | changed, Record)
    assert len(str(caught.value)) < 200 + len(str(tmp_path))


def test_arm_may_join_a_run_and_is_bound_from_then_on(tmp_path: Path) -> None:
    first, second = {"target": {"k": 1}}, {"draft": {"k": 2}}
    with Journal(tmp_path, SETTINGS, Record, first) as journal:
        journal.add(record(1))
    with Journal(tmp_path, SETTINGS, Record, first | second) as journal:
        assert len(journal.records) == 1
        journal.add(record(2))
    content = journal.path.read_bytes()

    for arms in ({"draft": {"k": 3}}, first | {"draft": {"k": 3}, "new": {}}):
        with pytest.raises(EvalError, match="is of a run of draft with k 2, this one has 3; give another --out"):
            Journal(tmp_path, SETTINGS, Record, arms)
    assert journal.path.read_bytes() == content
    with Journal(tmp_path, SETTINGS, Record, second) as journal:
        assert len(journal.records) == 2


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ({"settings": SETTINGS}, "None"),
        ({"format": "reasonrt-journal/99", "settings": SETTINGS, "other": 1}, "'reasonrt-journal/99'"),
    ],
)
def test_journal_of_another_version_is_refused_with_both_versions(
    tmp_path: Path, head: dict[str, Any], found: str
) -> None:
    content = json.dumps(head) + '\n{"of": "another shape"}\n'
    (tmp_path / "journal.jsonl").write_text(content)

    with pytest.raises(EvalError, match=f"has format {found}, this version reads '{FORMAT}'; give another --out"):
        Journal(tmp_path, SETTINGS, Record)
    assert (tmp_path / "journal.jsonl").read_text() == content


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text("my diary\n")

    with pytest.raises(EvalError, match="no journal of ours"):
        Journal(tmp_path, SETTINGS, Record)
    assert (tmp_path / "journal.jsonl").read_text() == "my diary\n"


def test_a_full_disk_is_one_clear_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal(tmp_path, SETTINGS, Record) as journal, monkeypatch.context() as patch:
        journal.add(record(0))
        patch.setattr("os.fsync", no_space)
        with pytest.raises(EvalError, match=r"No space left on device; what was finished is kept"):
            journal.add(record(1))

    with Journal(tmp_path, SETTINGS, Record) as journal:
        assert [known.problem for known in journal.records] == ["p0"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")

    with pytest.raises(EvalError, match=r"cannot use .*taken"):
        Journal(tmp_path / "taken", SETTINGS, Record)


def test_two_runs_do_not_write_one_journal(tmp_path: Path) -> None:
    with Journal(tmp_path, SETTINGS, Record), pytest.raises(EvalError, match="another run is writing"):
        Journal(tmp_path, SETTINGS, Record)


@settings(deadline=None, max_examples=25)
@given(room=st.integers(0, 2500), more=st.integers(0, 2500), text=st.text(max_size=40))
def test_disk_that_is_full_at_any_byte_loses_nothing_that_was_finished(
    room: int, more: int, text: str, disk_with: Any
) -> None:
    finished: list[str] = []

    def work(most_bytes: int) -> None:
        """As far as it goes."""
        try:
            with disk_with(most_bytes), Journal(out, SETTINGS, Record, ARMS) as journal:
                assert [known.problem for known in journal.records] == finished
                for index in range(len(finished), 8):
                    journal.add(record(index, text))
                    finished.append(f"p{index}")
        except EvalError as error:
            assert "File too large" in str(error)  # noqa: PT017 (which may come from anywhere)

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        work(room)
        work(room + more)
        work(1 << 20)

    assert finished == [f"p{index}" for index in range(8)]


def written(folder: Path) -> list[bytes]:
    """The lines of a journal: its head, an arm, and two records."""
    with Journal(folder, SETTINGS, Record, ARMS) as journal:
        for index in range(2):
            journal.add(record(index))
    return journal.path.read_bytes().splitlines()


@pytest.mark.parametrize("num_cut", [0, 1, 30])
def test_head_that_was_lost_is_made_anew_after_asking(tmp_path: Path, num_cut: int) -> None:
    head, *rest = written(tmp_path)
    damaged = b"\n".join([*([head[-num_cut:]] if num_cut else []), *rest, b'{"half'])
    (tmp_path / "journal.jsonl").write_bytes(damaged)
    asked: list[str] = []

    def confirm(question: str) -> bool:
        asked.append(question)
        return True

    with pytest.raises(EvalError, match=r"has lost the line with the settings of its run; take its 2 .* with --yes"):
        Journal(tmp_path, SETTINGS, Record, ARMS)
    assert (tmp_path / "journal.jsonl").read_bytes() == damaged
    with (
        Journal(tmp_path, SETTINGS, Record, ARMS, confirm) as journal,
        pytest.raises(EvalError, match="another run is writing"),
    ):
        Journal(tmp_path, SETTINGS, Record, ARMS)

    assert len(asked) == 1
    assert [known.problem for known in journal.records] == ["p0", "p1"]
    assert (tmp_path / "journal.jsonl").read_bytes().splitlines() == [head, *rest]
    with Journal(tmp_path, SETTINGS, Record, ARMS) as journal:
        journal.add(record(2))


BROKEN = {
    "deep": b"[" * 100_000,
    "deep and closed": b"[" * 200 + b"]" * 200,
    "no record": b'{"label": "x"}',
    "a null": b"null",
    "half": b'{"label": "tar',
    "a long number": b'{"label": ' + b"9" * 5000 + b"}",
    "twice the same key": b'{"label": "x", "label": "y"}',
    "no text": b'"\xff"',
    "an arm without settings": b'{"arm": "draft", "settings": null}',
    "a field of another type": json.dumps(
        {"label": "x", "problem": 7, "group": [], "gold": 1, "share_s": "?"}
    ).encode(),
    "escapes": b"\x1b[2J" * 50_000,
}


@pytest.mark.parametrize("line", BROKEN)
@pytest.mark.parametrize("number", [2, 3, 4])
def test_broken_line_is_named_by_its_number(tmp_path: Path, number: int, line: str) -> None:
    lines = written(tmp_path)
    content = b"\n".join([*lines[: number - 1], BROKEN[line], *lines[number:], b""])
    (tmp_path / "journal.jsonl").write_bytes(content)

    with pytest.raises(EvalError, match=rf"journal\.jsonl, line {number}") as caught:
        Journal(tmp_path, SETTINGS, Record, ARMS)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert (tmp_path / "journal.jsonl").read_bytes() == content


@pytest.mark.parametrize("settings_of_it", [None, [], "x", 7])
def test_head_without_settings_is_named(tmp_path: Path, settings_of_it: object) -> None:
    _, *rest = written(tmp_path)
    head = json.dumps({"format": FORMAT, "settings": settings_of_it}).encode()
    (tmp_path / "journal.jsonl").write_bytes(b"\n".join([head, *rest, b""]))

    with pytest.raises(EvalError, match=r"journal\.jsonl, line 1"):
        Journal(tmp_path, SETTINGS, Record, ARMS)


@pytest.mark.parametrize("content", [b"my diary", b"my diary\nof two days", b'{"half', b"\x00", b"\n\n"])
def test_no_byte_of_another_file_is_cut_off(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.jsonl").write_bytes(content)

    with pytest.raises(EvalError, match="no journal of ours"):
        Journal(tmp_path, SETTINGS, Record)

    assert (tmp_path / "journal.jsonl").read_bytes() == content
