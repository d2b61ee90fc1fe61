"""Traces are refused where they could not carry a promise, and come back from a file as they were."""

import json
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.calibration.stopping.synthetic import KINDS, synthetic_traces
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.traces import (
    Checkpoint,
    Fingerprints,
    Split,
    Trace,
    TraceSet,
    problem_hash,
    read_traces,
    refuse_overlap,
    split_traces,
    write_traces,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Checkpoint(100, "1", {"sure": float("nan")}), "signal 'sure' is nan at 100 tokens"),
        (lambda: Checkpoint(100, "1", {"sure": float("inf")}), "signal 'sure' is inf"),
        (lambda: Checkpoint(-1, "1"), "lies at -1 tokens"),
        (lambda: Checkpoint(1, "1", {}, -2), "spent -2 tokens"),
        (lambda: Trace("", [], 10, "1"), "no problem_id"),
        (lambda: Trace("p", [], 0, "1"), "full_tokens of problem 'p' is 0"),
        (lambda: Trace("p", [Checkpoint(5, ""), Checkpoint(5, "")], 10, "1"), "go from 5 to 5 tokens"),
        (lambda: Trace("p", [Checkpoint(11, "")], 10, "1"), "lies at 11 tokens, beyond its full_tokens 10"),
        (
            lambda: Trace("p", [], 10, "1", gold="1", right=(True, True)),
            "has 2 and 0 grades for 0 checkpoints",
        ),
        (lambda: TraceSet(()), "there are no traces"),
        (lambda: TraceSet((Trace("p", [], 1, ""), Trace("p", [], 2, ""))), "problem 'p' is in the traces twice"),
    ],
)
def test_bad_traces_are_refused_in_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as refused:
        make()

    assert "\n" not in str(refused.value)


def test_the_same_question_under_two_ids_is_found() -> None:
    first, second = (
        Trace(name, [], 10, "1", content_hash=problem_hash(text)) for name, text in [("a", "1 + 1?"), ("b", " 1 +\n1?")]
    )

    with pytest.raises(CalibrationError, match="twice"):
        TraceSet((first, second))
    with pytest.raises(CalibrationError, match="the splits to certify and to train share"):
        refuse_overlap({"certify": TraceSet((first,)).split, "train": TraceSet((second,)).split})


def test_ids_of_two_files_may_be_alike() -> None:
    """As `problems.jsonl/1` of two folders. Where one has no text at hand, the id is all that there is to go by."""

    def split_of(name: str, question: str) -> Split:
        return TraceSet((Trace(name, [], 10, "1", content_hash=problem_hash(question) if question else ""),)).split

    refuse_overlap({"certify": split_of("problems.jsonl/1", "one?"), "train": split_of("problems.jsonl/1", "two?")})
    for question, other in (("one?", ""), ("", "one?"), ("", "")):
        parts = {"certify": split_of("problems.jsonl/1", question), "train": split_of("problems.jsonl/1", other)}
        with pytest.raises(CalibrationError, match=r"share 'problems\.jsonl/1' and 0 more"):
            refuse_overlap(parts)


@given(st.sampled_from(["What is 3 + 4?", "Où est l'été", "How many, in all?"]), st.data())
def test_a_question_is_known_however_it_is_written(question: str, data: st.DataObject) -> None:
    written = data.draw(st.sampled_from([unicodedata.normalize(form, question) for form in ("NFC", "NFD", "NFKD")]))
    for change in data.draw(st.lists(st.sampled_from(CHANGES))):
        written = change(written)

    assert problem_hash(written) == problem_hash(question)


CHANGES: list[Callable[[str], str]] = [
    str.upper,
    str.casefold,
    lambda text: text.replace(" ", "\u00a0"),
    lambda text: text.replace(" ", " \u200b\n"),
    lambda text: f"\ufeff{text}\u2060 ",
    lambda text: text.rstrip("?"),
    lambda text: f"{text}.",
    lambda text: f"{text} ?",
]


@pytest.mark.parametrize("other", ["What is 10!", "What is 10%", "What is 1 0", "What is -10", "What was 10"])
def test_other_questions_stay_other_ones(other: str) -> None:
    assert problem_hash(other) != problem_hash("What is 10")


def test_file_round_trip(tmp_path: Path) -> None:
    prints = Fingerprints(model="m", engine="vllm 0.32", probes={"answer": (151668, 90)})
    traces = TraceSet(synthetic_traces("wavering", 20).traces, prints)

    write_traces(tmp_path / "t.jsonl", traces)
    again = read_traces(tmp_path / "t.jsonl")

    assert again == traces
    assert again.split == traces.split


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("{", "line 1 is no JSON"),
        (
            '{"schema": "reasonrt.traces/2"}',
            "the schema 'reasonrt.traces/3' but 'reasonrt.traces/2'; record it again",
        ),
        ('{"schema": "other/1"}', "does not begin with the schema 'reasonrt.traces/3'"),
        ('{"schema": "reasonrt.traces/3"}\n{"problem_id": "p"}', "line 2: checkpoints: Field required"),
        (
            '{"schema": "reasonrt.traces/3"}\n{"problem_id": "p", "full_tokens": 9, "full_answer": "", "checkpoints":'
            '[{"tokens": 5, "answer": "", "signals": {"sure": NaN}}]}',
            "line 2: signal 'sure' is nan",
        ),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(content)

    with pytest.raises(CalibrationError, match=message):
        read_traces(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot read"):
        read_traces(tmp_path / "none")


def test_split_hash_depends_on_content_alone() -> None:
    traces = synthetic_traces("honest", 10)
    first = traces.traces[0]
    changed = replace(first, checkpoints=[*first.checkpoints[:-1], replace(first.checkpoints[-1], answer="edited")])

    assert TraceSet(traces.traces[::-1]).split == traces.split
    assert TraceSet((changed, *traces.traces[1:])).split.sha256 != traces.split.sha256


def test_numbers_of_numpy_hash_as_plain_ones() -> None:
    plain = Trace("p", [Checkpoint(5, "1", {"sure": 1.0}, 3)], 10, "1")
    numbers: list[Any] = [np.int64(5), np.int64(3), np.int64(10), np.float32(1)]
    five, three, ten, one = numbers
    numpy = Trace("p", [Checkpoint(five, "1", {"sure": one}, three)], ten, "1")

    assert TraceSet((plain,)).split == TraceSet((numpy,)).split


@given(st.integers(0, 1000))
def test_splits_are_disjoint_and_do_not_move_when_traces_are_added(seed: int) -> None:
    traces = synthetic_traces("honest", 60)
    parts = split_traces(traces, (0.3, 0.2, 0.5), seed)

    refuse_overlap({str(index): part.split for index, part in enumerate(parts)})
    assert sum(map(len, parts)) == 60
    earlier = split_traces(TraceSet(traces.traces[:50]), (0.3, 0.2, 0.5), seed)
    for before, after in zip(earlier, parts, strict=True):
        assert {trace.problem_id for trace in before} <= {trace.problem_id for trace in after}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_populations_are_reproducible(kind: str) -> None:
    assert synthetic_traces(kind, 5, 3).split == synthetic_traces(kind, 5, 3).split
    assert not synthetic_traces(kind, 5, 3).split.names & synthetic_traces(kind, 5, 4).split.names


def test_lines_are_json(tmp_path: Path) -> None:
    write_traces(tmp_path / "t.jsonl", synthetic_traces("honest", 2))

    header, first, _ = map(json.loads, (tmp_path / "t.jsonl").read_text().splitlines())

    assert header["schema"] == "reasonrt.traces/3"
    assert "confidence" in first["checkpoints"][0]["signals"]


def test_a_trace_keeps_what_the_grader_said(tmp_path: Path) -> None:
    points = [Checkpoint(1, "0.3"), Checkpoint(2, r"50\%"), Checkpoint(3, "1/2"), Checkpoint(4, None)]
    graded = Trace("p", points, 5, "0.5", "50%")

    assert graded.right == (False, True, True, False, True)
    assert graded.kept == (False, False, True, False)
    assert [graded.is_good(index) for index in range(4)] == [False, True, True, False]
    bare = replace(graded, gold=None)
    assert [bare.is_good(index) for index in range(4)] == [False, False, True, False]
    assert bare.is_counted

    otherwise = replace(graded, right=(True, False, False, False, False))  # by another grader, another year
    write_traces(tmp_path / "t.jsonl", TraceSet((otherwise,)))

    assert read_traces(tmp_path / "t.jsonl").traces == (otherwise,)
    assert not otherwise.is_counted


def test_who_labels_traces_later_has_them_graded(tmp_path: Path) -> None:
    """Such as those of served traffic: were nothing right in them, nothing could be lost."""
    bare = Trace("p", [Checkpoint(1, "7"), Checkpoint(2, "8")], 3, "8")
    write_traces(tmp_path / "t.jsonl", TraceSet((bare,)))
    header, line = (tmp_path / "t.jsonl").read_text().splitlines()
    (tmp_path / "t.jsonl").write_text(f"{header}\n{json.dumps(json.loads(line) | {'gold': '8'})}\n")

    for labelled in (replace(bare, gold="8"), *read_traces(tmp_path / "t.jsonl")):
        assert labelled.right == (False, True, True)
        assert labelled.is_counted


def test_exact_answers_are_graded_without_algebra() -> None:
    algebra, exact = (Trace("p", [Checkpoint(1, "2+1")], 2, "3", "3", is_exact=is_exact) for is_exact in (False, True))

    assert (algebra.right, algebra.kept) == ((True, True), (True,))
    assert (exact.right, exact.kept) == ((False, True), (False,))
