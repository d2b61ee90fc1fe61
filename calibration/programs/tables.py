"""The votes of many questions as arrays: what `draw` does with each, for all of them together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reasonrt.calibration.programs.questions import Question, num_trials
from reasonrt.programs.features import FEATURES, own_features, relative_lengths
from reasonrt.programs.selection import START
from reasonrt.programs.trials import Status, Trial
from reasonrt.programs.values import Value, value_of
from reasonrt.programs.weights import LIMIT, Weights

Array = NDArray[np.float64]


@dataclass(frozen=True)
class VoteTable:
    """The voting trials of n questions; those of one stand by index, and rows beyond them are empty.

    Attributes:
        features: [n, k, num_features], nan where a trial lacks one.
        camps: [n, k, k], 1 where a trial has the value of its question's camp of that number; camps by first trial.
        gold: [n], the camp that is right, -1 where none is.
        num_left: trials of each question that are not in the table.
    """

    features: Array
    camps: Array
    gold: NDArray[np.int64]
    num_left: int = 0

    def __getitem__(self, rows: NDArray[np.int64]) -> "VoteTable":
        return VoteTable(self.features[rows], self.camps[rows], self.gold[rows], self.num_left)

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def is_camp(self) -> NDArray[np.bool_]:
        """[n, k], whether a question has a camp of that number."""
        return np.asarray(self.camps.any(axis=1))

    def evidence(self, weights: Weights) -> Array:
        """[n, k]: `Weights.evidence` of each trial."""
        evidence = np.full(self.features.shape[:2], weights.vote)
        for column, name in enumerate(FEATURES):
            if one := weights.coefficients.get(name):
                evidence += one.slope * scaled(self.features[:, :, column], one.mean, one.scale)
        return evidence

    def totals(self, evidence: Array) -> Array:
        """[n, k]: the evidence for each camp; -inf where there is none."""
        return np.where(self.is_camp, (self.camps * evidence[:, :, None]).sum(axis=1), -np.inf)

    def winners(self, totals: Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """[n] each: the camp with the most, of equals the first, and whether it is right."""
        best = totals.argmax(axis=1)
        return best, np.asarray((best == self.gold) & self.is_camp[:, 0])

    def judge(self, weights: Weights) -> tuple[Array, NDArray[np.bool_]]:
        """[n] each: the winning share of `answer_mass`, 0 where nothing voted, and whether that answer is right."""
        totals = self.totals(self.evidence(weights))
        best, is_right = self.winners(totals)
        shares = shares_of(totals, weights.none_right)
        return shares[np.arange(len(self)), best], is_right

    def is_sound(self) -> NDArray[np.bool_]:
        """[n], whether no outcome of the trials that are left could change the plurality."""
        votes = np.sort(self.camps.sum(axis=1), axis=1)
        return np.asarray(votes[:, -1] > votes[:, -2] + self.num_left)


@dataclass(frozen=True)
class Replayed:
    """What `draw` chooses for each of n questions.

    Attributes:
        shares: [n], the winning one, 0 where nothing voted.
        is_right: [n], whether that answer is right.
        num_drawn: [n], trials that it took.
    """

    shares: Array
    is_right: NDArray[np.bool_]
    num_drawn: NDArray[np.int64]


def vote_tables(questions: Sequence[Question]) -> list[VoteTable]:
    """Of the first three trials by index of each question, the first four, and so on to all.

    Raises:
        CalibrationError: they have not the same number of trials.
    """
    k = num_trials(questions)
    votes = [_votes(question) for question in questions]
    golds = [value_of(question.gold, question.kind) for question in questions]
    return [_vote_table(votes, golds, num_drawn, k) for num_drawn in range(START, k + 1)]


def replay(tables: Sequence[VoteTable], weights: Weights, stops_early: bool = True) -> Replayed:
    """`draw` by `answer_mass`, where `tables` are those of `vote_tables`."""
    judged = [table.judge(weights) for table in tables]
    shares, is_right = (np.array(column) for column in zip(*judged, strict=True))
    stops = np.zeros(shares.shape, dtype=bool)
    stops[-1] = True
    if stops_early and weights.settled_at is not None:
        stops |= shares >= weights.settled_at
    if stops_early and not weights.coefficients:
        stops |= np.array([table.is_sound() for table in tables])
    last, rows = stops.argmax(axis=0), np.arange(shares.shape[1])
    return Replayed(shares[last, rows], is_right[last, rows], last + tables[0].camps.shape[1])


@dataclass(frozen=True, slots=True)
class _Vote:
    position: int  # among the trials of its question, by index
    trial: Trial
    value: Value
    own_features: tuple[float | None, ...]


def _votes(question: Question) -> list[_Vote]:
    by_index = sorted(question.trials, key=lambda trial: trial.index)
    values = [
        value_of(trial.answer, question.kind) if trial.status is Status.FINAL and trial.answer is not None else None
        for trial in by_index
    ]
    return [
        _Vote(position, trial, value, own_features(trial))
        for position, (trial, value) in enumerate(zip(by_index, values, strict=True))
        if value is not None
    ]


def _vote_table(votes: Sequence[Sequence[_Vote]], golds: Sequence[Value | None], num_drawn: int, k: int) -> VoteTable:
    features = np.full((len(votes), num_drawn, len(FEATURES)), np.nan)
    camps = np.zeros((len(votes), num_drawn, num_drawn))
    gold = np.full(len(votes), -1)
    for row, (own, right) in enumerate(zip(votes, golds, strict=True)):
        drawn = [vote for vote in own if vote.position < num_drawn]
        numbers: dict[Value, int] = {}
        for place, vote in enumerate(drawn):
            camps[row, place, numbers.setdefault(vote.value, len(numbers))] = 1
        gold[row] = numbers.get(right, -1)
        if drawn:
            lengths = relative_lengths([vote.trial for vote in drawn])
            rows = [(*vote.own_features, length) for vote, length in zip(drawn, lengths, strict=True)]
            features[row, : len(drawn)] = np.array(rows, dtype=float)
    return VoteTable(features, camps, gold, k - num_drawn)


def scaled(features: Array, means: Array | float, scales: Array | float) -> Array:
    """As `Weights.evidence` counts them: within `LIMIT`, and 0 where a trial lacks one."""
    return np.asarray(np.nan_to_num(np.clip((features - means) / scales, -LIMIT, LIMIT)))


def shares_of(totals: Array, none_right: float) -> Array:
    """[n, k + 1]: the share of each camp, and of "none is right" last."""
    totals = np.column_stack([totals, np.full(len(totals), none_right)])
    masses = np.exp(totals - totals.max(axis=1, keepdims=True))
    return np.asarray(masses / masses.sum(axis=1, keepdims=True))
