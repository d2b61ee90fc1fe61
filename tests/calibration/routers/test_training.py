"""Routers learned from records with a known rule: they find it, on problems that they have not seen."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reasonrt.calibration.routers.report import captured, plot_routers, router_report
from reasonrt.calibration.routers.step_pairs import RecordedProblem
from reasonrt.calibration.routers.training import advantages, fit_model_router, train_feature_router
from reasonrt.errors import CalibrationError
from reasonrt.routers.features import features
from reasonrt.routers.learned import load_router

MODELS = {"draft": "d", "target": "t"}


def records(num: int = 120, signal: float = 1.0, seed: int = 0) -> list[RecordedProblem]:
    """The draft errs at a tenth of the steps; where it does, it is unsure in `signal` of the cases."""
    rng = random.Random(seed)
    found = []
    for index in range(num):
        pairs = []
        for _ in range(8):
            is_wrong = rng.random() < 0.1
            is_unsure = rng.random() < (signal if is_wrong else 1 - signal)
            logprobs = [-0.01 * rng.random() - (1.5 if is_unsure else 0.0), -0.01]
            pairs.append(
                {
                    "draft": f"{rng.random():.3f}\n\n", "target": "x\n\n", "draft_tokens": 2, "target_tokens": 2,
                    "logprobs": logprobs, "top_logprobs": [[p, -4.0] for p in logprobs],
                    "draft_value": 0.0 if is_wrong else 1.0, "target_value": 1.0,
                    "taken": "target" if is_wrong else "draft",
                }
            )  # fmt: skip
        found.append(RecordedProblem(f"p{index}", f"question {index}", "g", pairs))
    return found


def test_feature_router_finds_the_steps_where_the_draft_errs() -> None:
    learned, predicted = train_feature_router(records(), MODELS)

    assert learned.report is not None
    assert learned.report["auc"] > 0.99
    assert learned.report["captured"]["0.2"] > 0.95
    assert np.corrcoef(predicted, advantages(records()))[0, 1] > 0.9


def test_nothing_is_found_where_there_is_nothing() -> None:
    """Cross-fitting: a router that remembers its problems would look good here."""
    learned, _ = train_feature_router(records(signal=0.5), MODELS)

    assert learned.report is not None
    assert 0.35 < learned.report["auc"] < 0.65


def test_saved_router_says_what_the_trained_one_says(tmp_path: Path) -> None:
    learned, _ = train_feature_router(records(40), MODELS)
    learned.save(tmp_path / "router.json")
    again = load_router(str(tmp_path / "router.json"))
    assert learned.trees is not None
    assert again.trees is not None

    fresh = [
        (features(transcript, pair.drafted), pair.advantage)
        for record in records(5, seed=1)
        for transcript, pair in record.situations()
    ]
    assert [again.trees(numbers) for numbers, _ in fresh] == [learned.trees(numbers) for numbers, _ in fresh]
    assert all((again.trees(numbers) > 0.5) == (advantage > 0) for numbers, advantage in fresh)


def test_curve_of_a_model_router_rises_with_its_score() -> None:
    known = records()
    scores = 0.8 * advantages(known) + 0.1

    learned, predicted = fit_model_router(known, scores, MODELS | {"router": "r"})

    assert learned.curve[1][0] < 0.1 < 0.9 < learned.curve[1][-1]
    assert predicted.min() >= -1e-9
    assert learned.report is not None
    assert learned.report["auc"] == pytest.approx(1.0)


def test_too_little_to_learn_from_is_refused() -> None:
    with pytest.raises(CalibrationError, match="too few for a router"):
        train_feature_router(records(5), MODELS)
    perfect = [replace(record, pairs=[pair | {"draft_value": 1.0} for pair in record.pairs]) for record in records()]
    with pytest.raises(CalibrationError, match="better on none"):
        train_feature_router(perfect, MODELS)


def test_captured_is_one_for_the_oracle_and_the_rate_for_chance() -> None:
    rng = np.random.default_rng(0)
    advantage = (rng.random(20_000) < 0.5).astype(float)

    assert captured(advantage, advantage, 0.2) == pytest.approx(1.0)
    assert captured(rng.random(20_000), advantage, 0.2) == pytest.approx(0.5, abs=0.05)


def test_report_and_plot_hold_every_router(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    advantage = (rng.random(400) < 0.1).astype(float)
    problems = np.repeat(np.arange(50), 8)

    report = router_report(advantage + rng.normal(0, 0.1, 400), advantage, problems)
    plot_routers({"features": rng.random(400)}, advantage, tmp_path / "plot.png")

    assert report["spearman_low"] <= report["spearman"] <= report["spearman_high"]
    assert (tmp_path / "plot.png").stat().st_size > 1000
