"""The arms of `bench programs` on a recording that is small enough to be worked out by hand."""

from dataclasses import asdict
from typing import Any

import pytest

from reasonrt.benches.programs import arms_of
from reasonrt.evals.contexts import ContextProblem
from reasonrt.evals.program_recording import RecordedQuestion
from reasonrt.evals.statistics import wilson_interval
from reasonrt.programs.trials import Evidence, Status, Trial
from reasonrt.programs.weights import Coefficient, ProgramCertificate, Weights

SURE, UNSURE = (0.9,), (0.2,)
CONFIDENCE = {"confidence": Coefficient(mean=-0.9, scale=0.75, slope=3.0)}


def trial(index: int, answer: str | None, confidences: tuple[float, ...], num_tokens: int) -> Trial:
    return Trial(
        index,
        Status.FAILED if answer is None else Status.FINAL,
        answer,
        confidences=confidences,
        num_tokens=num_tokens,
        evidence=(Evidence(0, 1, 3, "ab"),),
        num_sub_calls=2,
        num_sub_tokens=5,
    )


FIRST = [  # the first one and the most are wrong, the sure ones right
    trial(0, "8", UNSURE, 100),
    trial(1, "8", UNSURE, 200),
    trial(2, "8.0", UNSURE, 300),
    trial(3, "7", SURE, 40),
    trial(4, "7", SURE, 50),
]
SECOND = [  # two camps of two; VC * Len is closest to zero for a wrong one
    trial(0, "3", SURE, 100),
    trial(1, "5", SURE, 10),
    trial(2, "3", UNSURE, 100),
    trial(3, None, (), 70),
    trial(4, "5", UNSURE, 100),
]
THIRD = [trial(index, "1", SURE, 10) for index in range(5)]  # all agree after two
NOTHING = [trial(index, None, (), 10) for index in range(5)]


def recorded(name: str, trials: list[Trial], answer: str, **fields: Any) -> tuple[RecordedQuestion, ContextProblem]:
    usual: dict[str, Any] = {
        "usage": {"target": {"generated": 600, "prefilled": 10, "cached": 80, "calls": 9}},
        "seconds": 3.0,
        "direct": answer,
        "direct_usage": {"target": {"generated": 4, "prefilled": 1000, "cached": 20, "calls": 1}},
        "direct_seconds": 0.5,
        "task": "numbers",
        "num_characters": 4020,
    }
    known = usual | fields
    record = RecordedQuestion(
        problem=name,
        group="",
        context_tokens=1000,
        question="?",
        answer=answer,
        kind="number",
        trials=[asdict(each) for each in trials],
        trace_hash="0",
        **known,
    )
    assert record.candidates() == trials
    problem = ContextProblem(name, known["task"], "?", (), answer, "number", "", known["num_characters"])
    return record, problem


QUESTIONS = [
    recorded("a", FIRST, "7", direct="8"),
    recorded("b", SECOND, "3"),
    recorded("c", THIRD, "1", task="words", num_characters=31_900),
    recorded("d", NOTHING, "1", task="words", num_characters=32_100),
]


def rows(weights: Weights | None = None, task: str = "all") -> dict[str, dict[str, Any]]:
    records, problems = zip(*QUESTIONS, strict=True)
    return {row["arm"]: row for row in arms_of(records, problems, weights) if row["task"] == task}


def test_each_arm_is_right_where_it_is_by_hand() -> None:
    right = {arm: row["accuracy"] * 4 for arm, row in rows(Weights(1.0, 0.0, CONFIDENCE)).items()}

    assert right == {
        "direct": 3,  # all but the first
        "rlm": 2,  # the first candidate: of the second and the third
        "self_consistency@5": 2,  # of equals the first
        "srlm@5": 1,  # in the second, ln(.9) * 10 is above ln(.9) * 100
        "plurality, stops early": 2,
        "answer_mass": 3,
        "oracle@5": 3,
    }


def test_interval_and_number_belong_to_the_accuracy() -> None:
    for row in rows().values():
        assert row["n"] == 4
        assert (row["accuracy_low"], row["accuracy_high"]) == wilson_interval(round(row["accuracy"] * 4), 4)


def test_tokens_are_those_of_the_candidates_that_an_arm_takes() -> None:
    found = {arm: row["tokens_per_question"] for arm, row in rows().items()}
    whole = ((100 + 200 + 300 + 40 + 50) + (100 + 10 + 100 + 70 + 100) + 50 + 50 + 20 * 5) / 4

    assert found == {
        "direct": 4,
        "rlm": (100 + 100 + 10 + 10 + 4 * 5) / 4,
        "self_consistency@5": whole,
        "srlm@5": whole,
        # three of the first and the third, all of the others: their two camps stay level
        "plurality, stops early": (600 + 15 + 380 + 25 + 30 + 15 + 50 + 25) / 4,
        "oracle@5": whole,
    }


def test_sub_calls_are_counted_and_time_is_given_where_it_was_measured() -> None:
    found = rows()

    assert found["rlm"]["sub_calls_per_question"] == 2
    assert found["srlm@5"]["sub_calls_per_question"] == 10
    assert found["direct"]["sub_calls_per_question"] == 0
    assert {arm: row["seconds_per_question"] for arm, row in found.items()} == {
        "direct": 0.5, "rlm": None, "self_consistency@5": 3, "srlm@5": 3, "plurality, stops early": None, "oracle@5": 3,
    }  # fmt: skip
    assert {arm: row["cached_tokens_per_question"] for arm, row in found.items()} == {
        "direct": 20, "rlm": None, "self_consistency@5": 80, "srlm@5": 80, "plurality, stops early": None,
        "oracle@5": 80,
    }  # fmt: skip


def test_tasks_and_lengths_have_rows_of_their_own() -> None:
    records, problems = zip(*QUESTIONS, strict=True)
    found = [(row["task"], row["context_characters"], row["n"]) for row in arms_of(records, problems)]

    assert found.count(("all", None, 4)) == 6
    assert found.count(("numbers", 4000, 2)) == 6
    assert found.count(("words", 32_000, 2)) == 6
    assert len(found) == 18


def test_abstention_is_no_right_answer_and_is_counted() -> None:
    certificate = ProgramCertificate(0.97, 0.1, 0.1, 100, 1, 0.01, 0.5, stops_early=True)
    row = rows(Weights(1.0, 0.0, CONFIDENCE, certificate=certificate))["answer_mass"]

    assert row["abstained"] == pytest.approx(0.5)  # the question without answers, and one of two camps
    assert row["accuracy"] == pytest.approx(0.5)


def test_without_a_direct_call_there_is_no_such_arm() -> None:
    records, problems = zip(*[recorded("a", FIRST, "7", direct=None)], strict=True)

    assert "direct" not in {row["arm"] for row in arms_of(records, problems)}
