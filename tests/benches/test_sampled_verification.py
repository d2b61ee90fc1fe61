"""The bench of sampled verification: its test is wrong as often as it says, and sees what it says it would see."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from reasonrt.benches.sampled_verification import ARMS, DRAFT, compare_runs, powers, verification_rows
from reasonrt.evals.journal import Record
from reasonrt.evals.report import Report


def draw(rng: np.random.Generator, runs: int, chance: float) -> NDArray[np.int64]:
    """Of each run [runs, 12] all answers hang together: half of them are those of one coin."""
    coins, own = rng.random((runs, 1)) < chance, rng.random((runs, 12)) < chance
    return np.where(np.arange(12) % 2, coins, own).astype(np.int64)


def test_it_is_wrong_as_often_as_its_level() -> None:
    rng = np.random.default_rng(0)
    wrong = sum(compare_runs(draw(rng, 8, 0.4), draw(rng, 8, 0.4), rng, 99)[1] <= 0.05 for _ in range(600))

    assert binomtest(wrong, 600, 0.05, alternative="greater").pvalue > 1e-3


def test_it_sees_another_distribution() -> None:
    rng = np.random.default_rng(1)

    distance, p_value = compare_runs(draw(rng, 20, 0.2), draw(rng, 20, 0.8), rng, 999)

    assert p_value == pytest.approx(0.001)
    assert distance > 0.3


def test_runs_that_are_all_equal_are_equal() -> None:
    same = np.zeros((4, 3), dtype=np.int64)

    distance, p_value = compare_runs(same, same, np.random.default_rng(0), 99)

    assert distance == pytest.approx(0.0)
    assert p_value == 1.0


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    """Twelve seeds on ten problems; the draft is right in half of the answers, all others in nine of ten."""
    rng = np.random.default_rng(2)

    def record(label: str, problem: int) -> Record:
        is_right = bool(rng.random() < (0.5 if label == DRAFT.label else 0.9))
        known: dict[str, Any] = {"usage": {"target": {"passes": 7}}, "correct": is_right, "answer": str(int(is_right))}
        return Record(label, f"p{problem}", "", "1", 0.5, **known)

    labels = [arm.label for arm in ARMS]
    return [Report("toy", labels, [record(label, i) for label in labels for i in range(10)]) for _ in range(12)]


def test_rows_compare_each_arm_with_the_target(reports: list[Report]) -> None:
    target, verified, _, draft = verification_rows(reports)

    assert (target["p_value"], target["distance"]) == (None, None)
    assert verified["p_value"] > 0.05
    assert draft["p_value"] < 0.001
    assert (target["n"], target["passes_per_problem"], target["seconds_per_problem"]) == (120, 7.0, 0.5)
    assert draft["accuracy"] < 0.7 < target["accuracy"]


def test_powers_tell_what_it_would_have_seen(reports: list[Report]) -> None:
    found = powers(reports)

    assert found[0.0] < 0.12
    assert found[1.0] > 0.95
    assert found[0.02] < 0.5 < found[0.5]
