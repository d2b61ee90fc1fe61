"""Signals learned from traces: how likely it is that stopping here loses nothing. Uses scikit-learn.

Source: the features and the regression as in LearnStop, arXiv 2606.30852; in place of the LSTM of Answer Convergence,
arXiv 2506.02536, which reads hidden states.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from reasonrt.calibration.trees import as_trees
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.replay import Outcome
from reasonrt.policies.stopping.risks import Loss
from reasonrt.policies.stopping.rules import Action
from reasonrt.policies.stopping.signals import (
    END_OF_THINKING,
    ENTROPY_AFTER_THINKING,
    Boosted,
    Change,
    Highest,
    Logistic,
    Recorded,
    Signal,
    TokensUsed,
)
from reasonrt.policies.stopping.traces import Trace

_END, _ENTROPY = Recorded(END_OF_THINKING), Recorded(ENTROPY_AFTER_THINKING)
_LEAST_RISK, _RISK_STEP, _NUM_RISKS = 0.001, 1.1, 61
LOOKED_AT: tuple[Signal, ...] = (_END, _ENTROPY, Change(_END), Change(_ENTROPY), Highest(_END), TokensUsed())
"""What two looks of one token each tell, and how far the trace is: none of it takes an answer."""


def learn_signal(traces: Iterable[Trace], signals: Sequence[Signal]) -> Logistic:
    """Logistic regression, at every checkpoint, of "the answer so far is the one that counts" on `signals`.

    The answer that counts is gold where it is known, else the model's own full answer.

    Args:
        traces: the training split; certify on other problems.
        signals: at least one.

    Raises:
        CalibrationError: the answers so far are all right, or all wrong, or no checkpoint has every signal.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = _examples(traces, signals, Trace.is_good)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(known.numbers, known.labels, logisticregression__sample_weight=known.weights)
    scaler, regression = model[0], model[1]
    slopes = regression.coef_[0] / scaler.scale_  # in the units of the signals, so that the scaler is not needed again
    bias = float(regression.intercept_[0] - slopes @ scaler.mean_)
    return Logistic(tuple(signals), tuple(float(slope) for slope in slopes), bias)


def learn_boosted(traces: Iterable[Trace], signals: Sequence[Signal], losses: Sequence[Loss], seed: int = 0) -> Boosted:
    """Boosted trees, at every checkpoint, for "stopping here loses nothing" on `signals`.

    By the loss of `lost_correct`, a problem whose full answer is wrong may be left at any time, and the trees learn to
    tell such problems too.

    Args:
        traces, signals: as in `learn_signal`.
        losses: of the risks that are at stake, at least one.

    Raises:
        CalibrationError: stopping loses everywhere, or nowhere, or no checkpoint has every signal.
    """
    from sklearn.ensemble import GradientBoostingClassifier

    known = _examples(traces, signals, partial(is_safe, losses=losses))
    # small: every rule of the family carries the trees
    model = GradientBoostingClassifier(
        n_estimators=40, learning_rate=0.1, max_depth=3, subsample=0.5, min_samples_leaf=20, random_state=seed
    )
    return Boosted(tuple(signals), as_trees(model.fit(known.numbers, known.labels)))


def is_safe(trace: Trace, index: int, losses: Sequence[Loss]) -> bool:
    """Whether nothing is lost where the trace is stopped at this checkpoint."""
    stop = Outcome(Action.ANSWER, index, trace.checkpoints[index].answer, 0)
    return not any(loss(trace, stop) for loss in losses)


def risk_thresholds(traces: Iterable[Trace], signal: Signal, losses: Sequence[Loss]) -> list[float]:
    """Thresholds on `signal` from no loss on these problems to one in three, each allowing a tenth more.

    Above a threshold there are as many problems with a checkpoint where stopping is not safe; between two of these
    there is nothing to tell rules apart by.
    """
    highest: list[float] = []
    num_problems = 0
    for trace in traces:
        follow = signal.follow()
        values = [follow(checkpoint) for checkpoint in trace.checkpoints]
        unsafe = [
            value for index, value in enumerate(values) if value is not None and not is_safe(trace, index, losses)
        ]
        highest += [max(unsafe)] if unsafe else []
        num_problems += 1
    highest.sort(reverse=True)
    allowed = {0, *(int(_LEAST_RISK * _RISK_STEP**step * num_problems) for step in range(_NUM_RISKS))}
    return [math.nextafter(highest[num], math.inf) for num in sorted(allowed) if num < len(highest)]


class _Examples(NamedTuple):
    """Checkpoints where every signal is known."""

    numbers: Any  # float64 [num_checkpoints, num_signals]
    labels: Any  # bool [num_checkpoints]
    weights: Any  # float64 [num_checkpoints], with which every problem weighs the same, however long its trace is


def _examples(traces: Iterable[Trace], signals: Sequence[Signal], label: Callable[[Trace, int], bool]) -> _Examples:
    """Raises: CalibrationError: there is nothing to tell apart."""
    import numpy as np

    rows: list[list[float]] = []
    labels: list[bool] = []
    weights: list[float] = []
    for trace in traces:
        follows = [signal.follow() for signal in signals]
        for index, checkpoint in enumerate(trace.checkpoints):
            values = [follow(checkpoint) for follow in follows]
            known = [value for value in values if value is not None]
            if len(known) == len(values):
                rows.append(known)
                labels.append(label(trace, index))
                weights.append(1 / len(trace.checkpoints))
    if len(set(labels)) < 2:
        raise CalibrationError(
            f"stopping is good at {sum(labels)} of {len(rows)} checkpoints, which leaves nothing to learn; record more "
            "traces, or take another family"
        )
    return _Examples(np.array(rows), np.array(labels), np.array(weights))
