"""Routers from recorded steps: a feature router by gradient boosting, and the curve of a router model's score.

Everything that is reported is measured on problems that the measured router has not seen (cross-fitting by problem).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reasonrt.calibration.routers.report import router_report
from reasonrt.calibration.routers.step_pairs import RecordedProblem
from reasonrt.calibration.trees import as_trees
from reasonrt.errors import CalibrationError
from reasonrt.routers.features import features
from reasonrt.routers.learned import DECIMALS, RouterFile

FOLDS = 5
LEAST_PAIRS = 200
Array = NDArray[np.float64]


def train_feature_router(
    records: Sequence[RecordedProblem], models: Mapping[str, str], seed: int = 0
) -> tuple[RouterFile, Array]:
    """Train a router that predicts a step's advantage from its features.

    Args:
        records: what `record_pairs` recorded.
        models: `draft` and `target` to their fingerprints.

    Returns:
        The router, and its cross-fitted prediction for each pair, float64 `[pairs]`, in the order of `advantages`.

    Raises:
        CalibrationError: too few pairs, or not one on which the target is better.
    """
    numbers = np.array(
        [features(transcript, pair.drafted) for record in records for transcript, pair in record.situations()]
    )
    targets = advantages(records)
    _check(targets)
    predicted = np.empty_like(targets)
    for train, test in _folds(records):
        predicted[test] = _boosted(numbers[train], targets[train], seed).predict(numbers[test])
    predicted = predicted.round(DECIMALS)
    model = _boosted(numbers, targets, seed)
    report = router_report(predicted, targets, _problems(records))
    return RouterFile("features", dict(models), as_trees(model), report=report), predicted


def fit_model_router(
    records: Sequence[RecordedProblem], scores: Array, models: Mapping[str, str]
) -> tuple[RouterFile, Array]:
    """Fit a router that asks a model, from the model's score of each pair.

    Args:
        scores: of draft steps, float64 `[pairs]`, by a model that has not seen these problems.
        models: `draft`, `target` and `router` to their fingerprints.

    Returns:
        As `train_feature_router`: the curve is cross-fitted too.
    """
    targets = advantages(records)
    _check(targets)
    predicted = np.empty_like(targets)
    for train, test in _folds(records):
        predicted[test] = _isotonic(scores[train], targets[train]).predict(scores[test])
    predicted = predicted.round(DECIMALS)
    curve = _isotonic(scores, targets)
    points = tuple(tuple(map(float, column)) for column in (curve.X_thresholds_, curve.y_thresholds_))
    report = router_report(predicted, targets, _problems(records))
    return RouterFile("engine", dict(models), curve=(points[0], points[1]), report=report), predicted


def advantages(records: Sequence[RecordedProblem]) -> Array:
    """The measured advantage of every pair, float64 `[pairs]`."""
    return np.array([pair.advantage for record in records for _, pair in record.situations()])


def _check(targets: Array) -> None:
    if len(targets) < LEAST_PAIRS:
        raise CalibrationError(
            f"{len(targets)} recorded steps are too few for a router, which takes {LEAST_PAIRS} or more; run it again "
            "with more problems, what is recorded is kept"
        )
    if not np.any(targets > 0):
        raise CalibrationError("the target is better on none of the recorded steps; there is nothing to route")


def _problems(records: Sequence[RecordedProblem]) -> NDArray[np.int64]:
    """The problem of each pair, by its number."""
    return np.repeat(np.arange(len(records)), [len(record.pairs) for record in records])


def _folds(records: Sequence[RecordedProblem]) -> Any:
    from sklearn.model_selection import GroupKFold

    problems = _problems(records)
    folds = min(FOLDS, len(set(problems.tolist())))
    return GroupKFold(folds, shuffle=True, random_state=0).split(problems, groups=problems)


def _boosted(numbers: Array, targets: Array, seed: int) -> Any:
    from sklearn.ensemble import GradientBoostingRegressor

    # shallow and many: few leaves each, so that a prediction stays within microseconds
    model = GradientBoostingRegressor(
        n_estimators=150, learning_rate=0.05, max_depth=3, subsample=0.5, min_samples_leaf=20, random_state=seed
    )
    return model.fit(numbers, targets)


def _isotonic(scores: Array, targets: Array) -> Any:
    from sklearn.isotonic import IsotonicRegression

    return IsotonicRegression(out_of_bounds="clip").fit(scores, targets)
