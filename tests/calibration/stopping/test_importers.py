"""Logs of others, read as traces."""

import json
from pathlib import Path
from typing import Any

import pytest

from reasonrt.calibration.stopping.importers import read_conformal_thinking, read_generic
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.traces import Checkpoint, Trace, problem_hash


def item(**changes: Any) -> dict[str, Any]:
    points = [
        {"checkpoint_idx": 0, "tokens_used": 100, "predicted_answer": None, "is_correct": False, "confidence": 0.2},
        {
            "checkpoint_idx": 1,
            "tokens_used": 250,
            "predicted_answer": "1/2",
            "is_correct": True,
            "confidence": 0.9,
            "eat_uni": 0.8,
            "entropy_uni": None,
        },
    ]
    start = {"question": "Half of one?", "gold_answer": 0.5, "actual_final_answer": "0.5", "solvable": True}
    return start | {"checkpoints": points} | changes


@pytest.mark.parametrize("shape", [lambda log: log, lambda log: {str(index): x for index, x in enumerate(log)}])
def test_conformal_thinking(tmp_path: Path, shape: Any) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(shape([item(), item(question="Another?", id=7, solvable=False)])))

    first, second = read_conformal_thinking(path)

    assert [point.answer for point in first.checkpoints] == [None, "0.5"]  # graded correct: it is gold's
    assert [point.signals for point in first.checkpoints] == [{"confidence": 0.2}, {"confidence": 0.9, "eat_uni": 0.8}]
    assert (first.full_tokens, first.full_answer, first.gold, first.group) == (250, "0.5", "0.5", "solvable")
    assert first.content_hash == problem_hash("Half of one?")
    assert (second.problem_id, second.group) == ("7", "unsolvable")


def test_conformal_thinking_with_its_other_names(tmp_path: Path) -> None:
    point = {"tokens_used": 5, "predicted_answer": "3", "intermediate_correct": False}
    path = tmp_path / "log.json"
    path.write_text(json.dumps([item(checkpoints=None, intermediate_checks=[point])]))

    (trace,) = read_conformal_thinking(path)

    assert trace.checkpoints == (Checkpoint(5, "3"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("3", "holds no list of items"),
        ('[{"question": "?"}]', "item 0 has no question or no checkpoints"),
        (json.dumps([item(checkpoints=[{"predicted_answer": "1"}])]), "item 0: .*tokens"),
        (json.dumps([item(), item()]), "is in the traces twice"),
        ("[7]", "item 0 holds int in the place of an object"),
    ],
)
def test_logs_that_cannot_be_read_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(content)

    with pytest.raises(CalibrationError, match=message):
        read_conformal_thinking(path)


FIELDS = {"problem_id": "id", "checkpoints": "probes", "full_tokens": "length", "full_answer": "final", "gold": "label"}
POINT_FIELDS = {"tokens": "at", "answer": "said", "probe_tokens": "cost"}


def test_generic(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    probes = [{"at": 64, "said": 3, "cost": 8, "p": 0.5}, {"at": 128, "said": None, "cost": 8, "p": None}]
    path.write_text(json.dumps({"id": 1, "probes": probes, "length": 200, "final": 4, "other": "ignored"}) + "\n")

    (trace,) = read_generic(path, fields=FIELDS, checkpoint_fields=POINT_FIELDS, signals=["p"])

    assert trace == Trace("1", [Checkpoint(64, "3", {"p": 0.5}, 8), Checkpoint(128, None, {}, 8)], 200, "4")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "a", "probes": [], "final": "1"}, "line 1: full_tokens: Field required"),
        ({"id": "a", "probes": [{"said": "1"}], "length": 3, "final": "1"}, "line 1: checkpoints.0.tokens: Field"),
        (
            {"id": "a", "probes": [{"at": 9, "said": "1"}], "length": 3, "final": "1"},
            "line 1: .* beyond its full_tokens",
        ),
        ({"id": "a", "probes": [{"at": 1, "said": "1", "p": "x"}], "length": 3, "final": "1"}, "line 1: .*p: Input"),
    ],
)
def test_generic_lines_that_cannot_be_read_are_refused(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(line))

    with pytest.raises(CalibrationError, match=message):
        read_generic(path, fields=FIELDS, checkpoint_fields=POINT_FIELDS, signals=["p"])
