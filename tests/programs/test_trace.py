"""The trace of a run: what lasts is hashed, and what a clock or a cancellation decides is not."""

import json
from dataclasses import replace
from typing import Any

import pytest

from reasonrt.programs.candidate import Turn
from reasonrt.programs.context import Context
from reasonrt.programs.selection import select
from reasonrt.programs.trace import Trace, trial_as_json
from reasonrt.programs.trials import Evidence, Status, Trial
from reasonrt.types import Document

CONTEXT = Context([Document("the needle is blue", "a.txt"), Document("é")])
TURN = Turn("Look.", 12, "The program ran.", code="x = 1", ending="done", confidence=0.5, seconds=0.25)
TRIAL = Trial(0, Status.FINAL, "blue", (0.5,), 12, evidence=(Evidence(0, 14, 18, "blue"),))


def trace_of(*trials: tuple[Trial, tuple[Turn, ...]], **changes: Any) -> Trace:
    usual: dict[str, Any] = {
        "question": "Which?",
        "context": CONTEXT,
        "strategy": "plurality",
        "selection": select([trial for trial, _ in trials], "plurality"),
        "status": Status.FINAL,
    }
    return Trace.of(**usual | changes, trials=[trial_as_json(trial, turns) for trial, turns in trials])


BASE = trace_of((TRIAL, (TURN,)))


def test_trace_is_plain_json_and_knows_its_hash() -> None:
    value = json.loads(json.dumps(dict(BASE.value)))

    assert value["trace_hash"] == BASE.sha256
    assert value["context"] == [{"name": "a.txt", "characters": 18}, {"name": "document 1", "characters": 1}]
    assert value["answer"] == "blue"
    assert value["shares"] == {"blue": 1.0}
    (trial,) = value["trials"]
    assert trial["status"] == "final"
    assert trial["turns"][0]["code"] == "x = 1"
    assert trial["evidence"][0]["text"] == "blue"


def test_how_long_it_took_changes_nothing() -> None:
    assert trace_of((TRIAL, (replace(TURN, seconds=9.0),))).sha256 == BASE.sha256


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.DEADLINE])
def test_what_a_candidate_did_that_was_cut_off_changes_nothing(status: Status) -> None:
    cut_off = [Trial(1, status, None, (), tokens) for tokens in (5, 500)]

    first, second = [trace_of((TRIAL, (TURN,)), (each, ())) for each in cut_off]

    assert first.sha256 == second.sha256 == BASE.sha256  # it may not even have begun in a replay


@pytest.mark.parametrize(
    "change",
    [
        {"text": "Look!"},
        {"num_tokens": 13},
        {"observation": "It ran."},
        {"code": None},
        {"ending": "raised"},
        {"notes": ("note",)},
        {"calls": ({"name": "grep", "detail": "'a'"},)},
        {"confidence": 0.6},
        {"logprob_tail": -1.0},
    ],
)
def test_whatever_else_a_turn_did_changes_the_hash(change: dict[str, Any]) -> None:
    assert trace_of((TRIAL, (replace(TURN, **change),))).sha256 != BASE.sha256


@pytest.mark.parametrize(
    "change",
    [
        {"question": "Who?"},
        {"strategy": "rlm"},
        {"status": Status.FORCED},
        {"context": Context([Document("the needle is blue", "b.txt"), Document("é")])},
        {"context": Context([Document("the needle is blue!", "a.txt"), Document("é")])},
        {"selection": select([], "plurality")},
    ],
)
def test_what_was_asked_and_chosen_changes_the_hash(change: dict[str, Any]) -> None:
    assert trace_of((TRIAL, (TURN,)), **change).sha256 != BASE.sha256
