"""How much a candidate's vote counts, learned from questions with known answers.

The model is a conditional logit: an answer's mass is the exponential of the evidence of its trials, "none is right"
has a mass of its own, and the weights are those under which the right answers are most likely. For independent
candidates this has the form of Bayes' rule: evidence adds up, and a vote is the log odds of being right plus the log of
the number of wrong answers. It is learned whole, and not from a regression of "this trial is right", because the shares
are then probabilities as they stand, also where trials of a question are right or wrong together; to stop early and
to abstain need that.

Features count only if that is better on questions not learned from by more than noise; else each vote is one.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from reasonrt.calibration.programs.questions import Question, num_trials
from reasonrt.calibration.programs.tables import Array, VoteTable, replay, scaled, shares_of, vote_tables
from reasonrt.errors import CalibrationError
from reasonrt.programs.features import FEATURES
from reasonrt.programs.weights import Coefficient, Gate, Weights

LEAST_QUESTIONS: Final = 50
MOST_LOST: Final = 0.005
"""Right answers per question that stopping early may cost, on the questions that it is learned from."""

_FOLDS = 5
_PENALTY = 1.0  # of squared slopes; against hundreds of questions it matters only where features say nothing
_LEAST_VOTE = 0.01  # below, agreement would count against an answer
_GATE = 2.0  # standard errors
_SETTLED_AT = tuple(share / 100 for share in range(99, 49, -1))


def fit_weights(questions: Sequence[Question], *, model: str = "", task: str = "", seed: int = 0) -> Weights:
    """Weights for `answer_mass`, and the share at which candidates are enough.

    Args:
        questions: at least 50, each with the same number of trials; others than those to certify on.
        model: the engine's `model_fingerprint`.
        task: the kind of questions, in words.
        seed: of the folds.

    Raises:
        CalibrationError: too few questions, not the same number of trials of each, or none has the right answer.
    """
    if len(questions) < LEAST_QUESTIONS:
        raise CalibrationError(f"{len(questions)} questions are too few, it takes {LEAST_QUESTIONS}; record more")
    k = num_trials(questions)
    tables = vote_tables(questions)
    table = tables[-1]
    if not np.any(table.gold >= 0):
        raise CalibrationError(
            f"no trial of {len(questions)} questions has the right answer; take easier ones, or look at their kind"
        )
    gate = _gate(table, seed)
    weights = _fit(table, with_features=gate.answer_mass - gate.plurality > _GATE * gate.noise)
    weights = replace(weights, gate=gate, model=model, k=k, task=task, n=len(questions))
    return replace(weights, settled_at=_settled_at(tables, weights))


def _gate(table: VoteTable, seed: int) -> Gate:
    """Both votes on the same questions, each question by weights that were learned without it."""
    n = len(table)
    fold = np.random.default_rng(seed).permutation(n) % _FOLDS
    by_mass = np.zeros(n, dtype=bool)
    for held_out in range(_FOLDS):
        weights = _fit(table[np.flatnonzero(fold != held_out)], with_features=True)
        rows = np.flatnonzero(fold == held_out)
        by_mass[rows] = table[rows].judge(weights)[1]
    by_votes = table.winners(table.camps.sum(axis=1))[1]
    difference = by_mass.astype(float) - by_votes
    return Gate(float(by_votes.mean()), float(by_mass.mean()), float(difference.std() / math.sqrt(n)))


def _fit(table: VoteTable, with_features: bool) -> Weights:
    """The most likely weights, by penalised maximum likelihood."""
    from scipy.optimize import minimize

    is_trial = table.camps.any(axis=2)
    known = table.features[is_trial] if with_features else np.empty((0, len(FEATURES)))  # [num_trials, num_features]
    columns = [column for column in range(len(FEATURES)) if _varies(known[:, column])]
    means = [float(np.nanmean(known[:, column])) for column in columns]
    scales = [float(np.nanstd(known[:, column])) for column in columns]
    features = scaled(table.features[:, :, columns], np.array(means), np.array(scales))
    n = len(table)
    truth = np.where(table.gold >= 0, table.gold, table.camps.shape[2])  # the camp, or none
    is_true = np.zeros((n, table.camps.shape[2] + 1))
    is_true[np.arange(n), truth] = 1
    penalties = np.array([_PENALTY / 100, _PENALTY / 100, *[_PENALTY] * len(columns)])

    def loss(parameters: Array) -> tuple[float, Array]:
        shares = shares_of(table.totals(parameters[0] + features @ parameters[2:]), parameters[1])
        missing = is_true - shares
        per_trial = (table.camps * missing[:, None, :-1]).sum(axis=2)
        gradient = np.array([per_trial.sum(), missing[:, -1].sum(), *np.tensordot(per_trial, features, 2)])
        likelihood = np.log(np.maximum(shares[np.arange(n), truth], 1e-300)).sum()
        return float(parameters @ (penalties * parameters) / 2 - likelihood), penalties * parameters - gradient

    bounds = [(_LEAST_VOTE, None), (None, None), *[(None, None)] * len(columns)]
    start = np.array([1.0, 0.0, *[0.0] * len(columns)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x.tolist()
    names = list(FEATURES)
    coefficients = {
        names[column]: Coefficient(mean, scale, slope)
        for column, mean, scale, slope in zip(columns, means, scales, found[2:], strict=True)
    }
    return Weights(found[0], found[1], coefficients)


def _varies(values: Array) -> bool:
    known = values[~np.isnan(values)]
    return bool(len(known)) and float(known.std()) > 1e-9


def _settled_at(tables: Sequence[VoteTable], weights: Weights) -> float | None:
    """The least share that costs at most `MOST_LOST`, as do all above it; None where even the largest costs more.

    What it costs is judged with its noise: losses less gains, and one standard error.
    """
    whole = replay(tables, weights, stops_early=False).is_right
    settled_at = None
    for at in _SETTLED_AT:
        early = replay(tables, replace(weights, settled_at=at)).is_right
        lost, gained = int((whole & ~early).sum()), int((early & ~whole).sum())
        if lost - gained + math.sqrt(lost + gained + 1) > MOST_LOST * len(whole):
            break
        settled_at = at
    return settled_at
