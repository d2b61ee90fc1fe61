"""The simulated bench: its rows hold together, and what it measures holds on a small scale; in full it is slow."""

from typing import Any

import numpy as np
import pytest

from reasonrt.benches.programs_simulated import (
    CONFIDENCES,
    arm_rows,
    certificate_redraws,
    measure_simulated,
    simulate,
    uninformative_gaps,
)
from reasonrt.programs.trials import Status


def rows(confidence: str, num_questions: int = 600) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in arm_rows(num_questions, 8, confidence, np.random.default_rng(0))}


def test_the_simulation_is_what_it_says() -> None:
    questions = simulate(1000, 8, "informative", np.random.default_rng(0))
    trials = [(trial, trial.answer == question.gold) for question in questions for trial in question.trials]
    said = [[c for trial, right in trials if right is wanted for c in trial.confidences] for wanted in (True, False)]

    assert np.mean([is_right for _, is_right in trials]) == pytest.approx(0.35, abs=0.02)
    assert len({trial.answer for trial, _ in trials}) == 7
    assert {len(trial.confidences) for trial, _ in trials} == set(range(2, 9))
    assert all(trial.status is Status.FINAL and trial.num_tokens > 0 for trial, _ in trials)
    for confidences, (a, b) in zip(said, CONFIDENCES["informative"], strict=True):
        assert np.mean(confidences) == pytest.approx(a / (a + b) + 0.005, abs=0.01)  # rounded up to a hundredth
        assert min(confidences) >= 0.01


def test_equal_seeds_give_equal_questions() -> None:
    first, second, other = (simulate(5, 8, "weak", np.random.default_rng(seed)) for seed in (1, 1, 2))

    assert first == second != other


def test_rows_hold_together() -> None:
    found = rows("informative")

    for row in found.values():
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
        assert row["n"] == 600 or row["arm"] == "answer_mass, abstaining"
        assert (row["task"], row["confidence"]) == ("simulated", "informative")
    assert found["rlm"]["tokens_per_question"] < found["answer_mass, early stop"]["tokens_per_question"]
    assert found["answer_mass"]["tokens_per_question"] == found["plurality"]["tokens_per_question"]
    assert found["plurality, early stop"]["accuracy"] == found["plurality"]["accuracy"]  # it is sound
    assert found["answer_mass, abstaining"]["n"] == round(600 * (1 - found["answer_mass, abstaining"]["abstained"]))
    assert all(row["accuracy"] <= found["oracle@8"]["accuracy"] for row in found.values() if row["abstained"] == 0)


def test_informative_confidence_pays() -> None:
    found = rows("informative")

    assert found["answer_mass"]["accuracy"] >= found["plurality"]["accuracy"] + 0.15
    assert found["answer_mass"]["accuracy"] >= found["srlm"]["accuracy"] + 0.10


def test_uninformative_confidence_costs_nothing() -> None:
    assert uninformative_gaps(400, 8, 3, np.random.default_rng(0))["worst_points"] >= -1.0


def test_a_redraw_that_certifies_nothing_promises_nothing() -> None:
    found = certificate_redraws(3, 8, "uninformative", np.random.default_rng(0), num_population=500)

    assert (found["certified"], found["held"], found["mean_risk"]) == (0, 3, None)


@pytest.mark.slow  # about 20 s; redraws by the hundred are in tests/calibration/programs/test_abstention.py
def test_the_measured_targets() -> None:
    found = measure_simulated(num_questions=1000, redraws=5)
    arms = {(row["confidence"], row["arm"]): row for row in found["rows"]}
    whole, early = arms["informative", "answer_mass"], arms["informative", "answer_mass, early stop"]

    assert whole["accuracy"] >= arms["informative", "plurality"]["accuracy"] + 0.15
    assert whole["accuracy"] >= arms["informative", "srlm"]["accuracy"] + 0.10
    assert early["tokens_per_question"] <= 0.6 * whole["tokens_per_question"]
    assert early["accuracy"] >= whole["accuracy"] - 0.01
    assert found["uninformative"]["worst_points"] >= -1.0
    assert [row["redraws"] for row in found["certificates"]] == [5, 5]
