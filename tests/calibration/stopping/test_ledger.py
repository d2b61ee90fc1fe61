"""The ledger: a set is known by its problems, every try is counted, and no file can be changed unseen."""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reasonrt.calibration import (
    Checkpoint,
    Fingerprints,
    Infeasible,
    Ledger,
    Trace,
    TraceSet,
    certify,
    upper_threshold_rules,
    verify,
)
from reasonrt.calibration.stopping.ledger import Declaration, ProblemSet
from reasonrt.calibration.stopping.synthetic import synthetic_traces
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.traces import problem_hash

RULES = upper_threshold_rules("confidence", [0.9, 0.95, 0.99, 0.999])


def problems(first: int, last: int, model: str = "m") -> TraceSet:
    traces = [
        Trace(f"p{index}", [Checkpoint(8, "7", {"sure": index / 1000})], 10, "7", "7", "", problem_hash(f"q {index}"))
        for index in range(first, last)
    ]
    return TraceSet(tuple(traces), Fingerprints(model=model))


def declared(*levels: str, delta: float = 0.1, growing: bool = False) -> Declaration:
    return Declaration(tuple(f"promise {level}" for level in levels), levels, delta, growing)


def number(file: Path, traces: TraceSet, *levels: str, growing: bool = False) -> int | None:
    return Ledger(file).enter(ProblemSet.of_traces(traces), declared(*levels, growing=growing)).number


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def test_tries_are_counted_and_the_same_again_is_none(file: Path) -> None:
    first = problems(0, 20)

    assert [number(file, first, level) for level in "abacb"] == [1, 2, 1, 3, 2]
    assert number(file, first, "a", "b") == 4  # together they are another test than apart
    assert number(file, problems(20, 40), "a") == 1
    assert len(file.read_text().splitlines()) == 5


@given(seed=st.integers(0, 1000), renames=st.booleans(), grows=st.integers(0, 5), hides=st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_copy_is_the_same_set_however_it_is_made(
    seed: int, renames: bool, grows: int, hides: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Renamed, in another order, extended, with other answers, or without saying which model it is of."""
    file = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    original = problems(0, 20)
    copied = list(problems(0, 20 + grows))
    random.Random(seed).shuffle(copied)
    copied = [replace(t, problem_id=f"{seed} {t.problem_id}" if renames else t.problem_id, gold=None) for t in copied]
    copy = TraceSet(tuple(copied), Fingerprints() if hides else original.fingerprints)

    first = Ledger(file).enter(ProblemSet.of_traces(original), declared("a"))
    second = Ledger(file).enter(ProblemSet.of_traces(copy), declared("b", growing=grows > 0))

    assert (second.number, second.set_id) == (2, first.set_id)


def test_without_a_text_a_problem_is_known_by_its_trace(file: Path) -> None:
    original = TraceSet(tuple(replace(trace, content_hash="") for trace in problems(0, 20)))
    renamed = TraceSet(tuple(replace(trace, problem_id=f"x{trace.problem_id}") for trace in original))

    assert number(file, original, "a") == 1
    assert number(file, renamed, "b") == 2
    assert number(file, TraceSet(tuple(replace(trace, content_hash="") for trace in problems(20, 40))), "a") == 1


def test_another_model_is_another_set(file: Path) -> None:
    assert number(file, problems(0, 20), "a") == 1
    assert number(file, problems(0, 20, model="other"), "a") == 1
    assert number(file, problems(0, 20, model="other"), "b") == 2


def test_a_copy_in_another_folder_is_known_by_the_ledger_that_both_share(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    here, there = (Ledger(tmp_path / name / "ledger.jsonl", own) for name in ("here", "there"))

    here.enter(ProblemSet.of_traces(problems(0, 20)), declared("a"))

    assert there.enter(ProblemSet.of_traces(problems(0, 20)), declared("b")).number == 2
    assert here.enter(ProblemSet.of_traces(problems(0, 20)), declared("c")).number == 3
    assert (tmp_path / "here/ledger.jsonl").read_text() == own.read_text()
    # and the folder by itself tells all tries on its set, wherever they were made
    assert number(tmp_path / "there/ledger.jsonl", problems(0, 20), "d") == 3


def test_beside_the_traces_is_their_folder_and_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    Ledger.beside(tmp_path / "runs" / "traces.jsonl").enter(ProblemSet.of_traces(problems(0, 20)), declared("a"))

    assert (tmp_path / "runs/ledger.jsonl").read_text() == (tmp_path / "state/reasonrt/ledger.jsonl").read_text() != ""


@pytest.mark.parametrize(
    ("again", "message"),
    [
        ((problems(0, 19), declared("b")), "1 of the 20 problems of earlier tries are left out"),
        ((problems(1, 21), declared("b", growing=True)), "1 of the 20 problems of earlier tries are left out"),
        ((problems(0, 25), declared("b")), "5 problems were added to 20 that an earlier try had looked at"),
        ((problems(0, 20), declared("b", delta=0.2)), "share delta 0.1, this one has 0.2"),
        ((problems(0, 60), declared("b", growing=True)), "of 2 sets that were certified on apart"),
    ],
)
def test_tries_that_would_break_the_promise_are_refused(
    again: tuple[TraceSet, Declaration], message: str, file: Path
) -> None:
    number(file, problems(0, 20), "a")
    number(file, problems(40, 60), "a")
    before = file.read_text()

    with pytest.raises(CalibrationError, match=message) as refused:
        Ledger(file).enter(ProblemSet.of_traces(again[0]), again[1])

    assert "\n" not in str(refused.value)
    assert file.read_text() == before


def test_looks_at_growing_data_are_one_try(file: Path) -> None:
    assert [number(file, problems(0, size), "a", growing=True) for size in (20, 40, 60, 40)] == [1, 1, 1, 1]
    assert len(file.read_text().splitlines()) == 3  # the look at 40 again was no other look
    assert number(file, problems(0, 60), "b", growing=True) == 2
    with pytest.raises(CalibrationError, match="40 problems were added to 20"):  # the size was chosen after looks
        number(file, problems(0, 60), "c")


def test_a_look_at_growing_data_keeps_the_old_traces(file: Path) -> None:
    number(file, problems(0, 20), "a", growing=True)
    first, *others = problems(0, 40)
    recorded_again = TraceSet((replace(first, full_answer="8"), *others), Fingerprints(model="m"))

    with pytest.raises(CalibrationError, match="problems of the earlier look have other traces now"):
        number(file, recorded_again, "a", growing=True)


def test_concurrent_tries_get_numbers_of_their_own(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"

    def enter(index: int) -> int | None:
        files = (one, other) if index % 2 else (other, one)
        return Ledger(*files).enter(ProblemSet.of_traces(problems(0, 20)), declared(str(index))).number

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(enter, range(24)))

    assert sorted(map(str, numbers)) == sorted(map(str, range(1, 25)))
    assert one.read_text() == other.read_text()


def test_concurrent_processes_get_numbers_of_their_own(file: Path) -> None:
    code = """
import sys
from pathlib import Path
from reasonrt.calibration import Ledger, Trace, TraceSet
from reasonrt.calibration.stopping.ledger import Declaration, ProblemSet
problems = ProblemSet.of_traces(TraceSet((Trace("p", (), 10, "7", content_hash="q"),)))
for index in range(20):
    level = f"{sys.argv[2]} {index}"
    print(Ledger(Path(sys.argv[1])).enter(problems, Declaration((level,), (level,), 0.1, False)).number)
"""
    command = [sys.executable, "-c", code, str(file)]
    processes = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in ("a", "b")]

    numbers = [int(line) for process in processes for line in process.communicate()[0].split()]

    assert sorted(numbers) == list(range(1, 41))


@given(cut=st.integers(1, 400))
@settings(max_examples=25, deadline=None)
def test_half_a_line_at_the_end_is_a_try_that_was_never_made(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    number(file, problems(0, 20), "a")
    number(file, problems(0, 20), "b")
    file.write_bytes(file.read_bytes()[:-cut])

    next_one = number(file, problems(0, 20), "c")

    assert next_one == (3 if cut == 1 else 2)  # without its line end alone, the line is whole
    assert [number(file, problems(0, 20), level) for level in ("a", "c")] == [1, next_one]


@given(share=st.floats(0, 1), byte=st.sampled_from(b'0a"{ \n'))
@settings(max_examples=40, deadline=None)
def test_no_character_can_be_changed(share: float, byte: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    for level in "abc":
        number(file, problems(0, 5), level)
    content = bytearray(file.read_bytes())
    place = int(share * (len(content) - 2))  # the last line end may go: the line is whole without it
    assume(content[place] != byte)
    content[place] = byte
    file.write_bytes(content)

    with pytest.raises(CalibrationError, match=r"ledger\.jsonl") as refused:
        number(file, problems(0, 5), "d")
    assert "\n" not in str(refused.value)


def without(lines: Sequence[str], place: int) -> str:
    return "".join(f"{line}\n" for index, line in enumerate(lines) if index != place)


def test_a_line_that_was_taken_out_is_missed(file: Path) -> None:
    for level in "abc":
        number(file, problems(0, 20), level)
    lines = file.read_text().splitlines()

    for place in (0, 1):
        file.write_text(without(lines, place))
        with pytest.raises(CalibrationError, match=f"line {place + 1} was changed, or lines before it were"):
            number(file, problems(0, 20), "d")


def test_the_last_line_taken_out_of_one_file_is_in_the_other(tmp_path: Path) -> None:
    files = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    for level in "abc":
        Ledger(*files).enter(ProblemSet.of_traces(problems(0, 20)), declared(level))
    files[0].write_text(without(files[0].read_text().splitlines(), 2))

    assert Ledger(*files).enter(ProblemSet.of_traces(problems(0, 20)), declared("d")).number == 4
    assert files[0].read_text() == files[1].read_text()


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    cases = [
        (tmp_path / "file" / "ledger.jsonl", "Not a directory|File exists"),
        (tmp_path / "folder", "Is a directory"),
    ]
    if os.geteuid():  # root may write everywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        cases.append((tmp_path / "closed" / "ledger.jsonl", "Permission denied"))

    for path, why in cases:
        with pytest.raises(CalibrationError, match=f"cannot write the ledger .*({why}).*--ledger") as refused:
            number(path, problems(0, 20), "a")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_full_disk_is_one_line_and_the_try_was_not_made(file: Path, disk_with: Any, room: int) -> None:
    number(file, problems(0, 20), "a")
    content = file.read_bytes()

    with (
        disk_with(len(content) + room),
        pytest.raises(CalibrationError, match=r"cannot write the ledger .*File too large"),
    ):
        number(file, problems(0, 20), "b")

    assert file.read_bytes() == content
    assert number(file, problems(0, 20), "c") == 2


def test_what_is_no_ledger_is_refused(file: Path) -> None:
    for content in ("{}\n", "[]\n", "nothing\n", "[" * 100_000 + "\n", '{"schema": "reasonrt.ledger/0"}\n'):
        file.write_text(content)
        with pytest.raises(CalibrationError, match=r"ledger\.jsonl, line 1"):
            number(file, problems(0, 20), "a")


TRACES = synthetic_traces("honest", 200)


def test_a_try_is_written_down_before_its_result_is_known(file: Path) -> None:
    """So one that fails has spent its part, and what is known without a look has not."""
    ledger = Ledger(file)
    with pytest.raises(Infeasible, match="takes at least 59 problems, even without a loss; there are 50: record more"):
        certify(TRACES.traces[:50], RULES, risk="lost_correct", alpha=0.05, delta=0.1, ledger=ledger)
    with pytest.raises(CalibrationError, match="unknown risk"):
        certify(TRACES, RULES, risk="error", alpha=0.05, delta=0.1, ledger=ledger)
    assert not file.exists()

    with pytest.raises(Infeasible, match="the first rule of the order lost"):
        certify(TRACES, RULES[::-1], risk="lost_correct", alpha=0.02, delta=0.1, ledger=ledger)
    certificate = certify(TRACES, RULES, risk="lost_correct", alpha=0.1, delta=0.1, ledger=ledger)

    assert (certificate.attempt.number, certificate.tested_at) == (2, 0.025)
    assert certificate.p_values[certificate.num_certified - 1] <= 0.025


def test_a_try_whose_part_of_delta_is_too_small_for_the_problems_is_in_vain_and_costs_none(file: Path) -> None:
    """60 problems without a loss would be enough for the first try at alpha 5 %; a second one takes 72."""
    ledger = Ledger(file)
    with suppress(Infeasible):
        certify(TRACES.traces[:60], RULES, risk="lost_correct", alpha=0.05, delta=0.1, ledger=ledger)
    before = file.read_bytes()

    with pytest.raises(Infeasible, match=r"at delta 0\.025 takes at least 72 problems, .* there are 60"):
        certify(TRACES.traces[:60], RULES[::-1], risk="lost_correct", alpha=0.05, delta=0.1, ledger=ledger)
    assert file.read_bytes() == before


def test_a_certificate_verifies_under_its_ledger_alone(file: Path, tmp_path: Path) -> None:
    ledger = Ledger(file)
    certify(TRACES, RULES[1:], risk="lost_correct", alpha=0.1, delta=0.1, ledger=ledger)
    certificate = certify(TRACES, RULES, risk="lost_correct", alpha=0.1, delta=0.1, ledger=ledger)

    verify(certificate, TRACES, ledger)
    verify(certificate, TRACES)
    with pytest.raises(CalibrationError, match=r"none\.jsonl have no try 2 like that of the certificate"):
        verify(certificate, TRACES, Ledger(tmp_path / "none.jsonl"))
    bare = certify(TRACES, RULES, risk="lost_correct", alpha=0.1, delta=0.1)
    verify(bare, TRACES, Ledger(tmp_path / "none.jsonl"))
    with pytest.raises(CalibrationError, match=r"without a ledger.*ledger\.jsonl have 2 tries on them"):
        verify(bare, TRACES, ledger)
    first = replace(certificate, attempt=replace(certificate.attempt, number=1))
    with pytest.raises(CalibrationError, match="have no try 1 like that"):
        verify(first, TRACES, ledger)
    with pytest.raises(CalibrationError, match="the traces give another findings"):  # tested at another level
        verify(first, TRACES)
    with pytest.raises(CalibrationError, match="of another test than its try has declared"):
        verify(replace(certificate, attempt=replace(certificate.attempt, levels=("0",))), TRACES)


def test_growing_data_may_be_certified_again_at_no_cost(file: Path) -> None:
    ledger = Ledger(file)
    how: dict[str, Any] = {"risk": "lost_correct", "alpha": 0.1, "delta": 0.1, "growing": True, "ledger": ledger}

    found = [certify(TRACES.traces[:size], RULES, **how) for size in (100, 200)]

    assert [certificate.tested_at for certificate in found] == [0.05, 0.05]
    assert found[1].num_problems == 200
    assert found[1].findings[0].upper_bound < 0.1
    verify(found[1], TRACES, ledger)
    with pytest.raises(CalibrationError, match="the traces give another"):
        verify(replace(found[1], growing=False), TRACES)
