"""Which candidate's answer to believe, whether another candidate could still change that, and when to believe none.

Only trials that ended with `Status.FINAL` vote. The strategies:

* `plurality`: the answer of the most trials; of equals, that of the trial that was started first.
* `srlm`: the paper's formula, literally. S is the trials with the plural answer, and `argmax VC * Len` over S is
  believed. All of S say the same, so that this changes the answer only where several answers have the most votes: S is
  then the trials of all of these.
* `answer_mass`: the answer with the most evidence. A trial gives evidence for its answer, in natural logarithms, by
  calibrated weights on its signals; the evidence of trials that agree adds up, as it does for independent witnesses
  (Bayes' rule), and an answer's share is its probability. Without weights every trial gives the same: plurality.
* `rlm`: the first trial, alone.

Source of `srlm`: SRLM, Alizadeh et al. (2026), arXiv 2603.15653.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from reasonrt.programs.features import features_of
from reasonrt.programs.trials import Status, Trial
from reasonrt.programs.values import Kind, Value, value_of
from reasonrt.programs.weights import Weights

Strategy = Literal["plurality", "srlm", "answer_mass", "rlm"]
STRATEGIES: Final[tuple[Strategy, ...]] = get_args(Strategy)
START: Final = 3
"""Candidates to start with, where others may follow: the fewest of which two can disagree with one."""

_SURVIVING = 0.9  # of what the observed answers hold together


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen, and what it rests on.

    Attributes:
        answer: as its trial wrote it; None where no trial has one, and where `abstained`.
        trial_index: of the trial that is believed, also where `abstained`; None where no trial has an answer.
        shares: each answer, as its first trial wrote it, with its share, the largest first. For `answer_mass` with
            weights, its probability, and what is missing to 1 is the probability that no trial is right; else its
            share of the votes.
        scores: what each voting trial counted by, by its index: evidence, VC * Len, or a vote of 1.
        num_votes: voting trials with this answer; 0 where none voted.
        num_final: voting trials.
        is_forced: no trial voted; this is what candidates said that had run out of turns. It is no agreement.
        differs_from_plurality: whether `plurality` would have chosen another answer.
        abstained: the winning share is below the threshold of the certificate.
        surviving: the answers that may still be right: the chosen one, or where `abstained` the fewest that hold nine
            tenths of the share of all.
    """

    strategy: Strategy
    answer: str | None = None
    trial_index: int | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[int, float] = field(default_factory=dict)
    num_votes: int = 0
    num_final: int = 0
    is_forced: bool = False
    differs_from_plurality: bool = False
    abstained: bool = False
    surviving: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The winning one; 0 where none voted."""
        return self.shares[self.surviving[0]] if self.shares else 0.0


def select(
    trials: Iterable[Trial], strategy: Strategy, kind: Kind = "auto", weights: Weights | None = None
) -> Selection:
    """Choose among the trials of one question that have ended.

    Args:
        trials: in any order; equals go to the lowest index.
        kind: how to read their answers.
        weights: for `answer_mass`, and for its abstention; the other strategies never abstain.
    """
    ended = sorted(trials, key=lambda trial: trial.index)
    if strategy == "rlm":
        ended = [trial for trial in ended if trial.index == 0]
    weights = weights if strategy == "answer_mass" else None
    camps = _camps(ended, kind, Status.FINAL)
    if not camps:
        return _forced(ended, strategy, kind, abstains=weights is not None and weights.abstain_below is not None)
    if weights is not None:
        return _by_mass(camps, weights)
    plural = _plural(camps)
    num_final = sum(map(len, camps))
    scores = {trial.index: 1.0 for camp in camps for trial in camp}
    chosen = plural[0]
    if strategy == "srlm":
        tied = sorted((trial for camp in camps if len(camp) == len(plural) for trial in camp), key=_index)
        scores = {trial.index: literal_score(trial) for trial in tied}
        chosen = max(tied, key=literal_score)
    camp = next(camp for camp in camps if chosen in camp)
    return _selection(strategy, chosen, camp, camps, [len(camp) / num_final for camp in camps], scores)


def is_settled(
    trials: Iterable[Trial], num_left: int, strategy: Strategy, kind: Kind = "auto", weights: Weights | None = None
) -> bool:
    """Whether the rest of the candidates can be left out or cancelled.

    Where votes count alike, once no outcome of the rest could overtake the leading answer or draw level with it, so
    that the choice stays what it would have been. With weights, the share at which to stop is learned
    (`Weights.settled_at`), so that the choice seldom changes; it is asked for from the third candidate that ended.

    Args:
        trials: that ended, in whatever way. What is learned holds where candidates are waited for, not where quick
            ones are preferred.
        num_left: candidates of the question that have not ended.
    """
    ended = list(trials)
    if num_left <= 0:
        return True
    if strategy == "rlm":
        return any(trial.index == 0 for trial in ended)
    learned = weights if strategy == "answer_mass" else None
    if learned is None or not learned.coefficients:
        votes = sorted((len(camp) for camp in _camps(ended, kind, Status.FINAL)), reverse=True)
        if votes and votes[0] > (votes[1] if len(votes) > 1 else 0) + num_left:
            return True
    if learned is None or learned.settled_at is None or len(ended) < START:
        return False
    return select(ended, strategy, kind, learned).share >= learned.settled_at


def fewest_to_settle(
    trials: Iterable[Trial], num_left: int, strategy: Strategy, kind: Kind = "auto", weights: Weights | None = None
) -> int:
    """How many more candidates must end before `is_settled` can hold: so many may run concurrently, none in vain.

    Args:
        trials, num_left: as for `is_settled`, which does not hold.
    """
    ended = list(trials)
    if strategy == "rlm":
        return 1
    learned = weights if strategy == "answer_mass" else None
    fewest = num_left
    if learned is None or not learned.coefficients:
        votes = sorted((len(camp) for camp in _camps(ended, kind, Status.FINAL)), reverse=True)
        lead = votes[0] - (votes[1] if len(votes) > 1 else 0) if votes else 0
        fewest = min(fewest, (num_left - lead) // 2 + 1)
    if learned is not None and learned.settled_at is not None:
        fewest = min(fewest, max(1, START - len(ended)))
    return fewest


def literal_score(trial: Trial) -> float:
    """VC * Len of SRLM: never above 0, and near 0 for what is short and sure.

    The paper asks for a confidence in every step, and says nothing of a trial without any; here it comes last.
    """
    if not trial.confidences:
        return -math.inf
    return math.fsum(map(math.log, trial.confidences)) * trial.num_tokens


_Camp = list[Trial]
"""Trials with one value, by index; never empty."""


def _index(trial: Trial) -> int:
    return trial.index


def _camps(trials: Iterable[Trial], kind: Kind, status: Status) -> list[_Camp]:
    """By the lowest index of each, where the trials come by index."""
    camps: dict[Value, _Camp] = {}
    for trial in trials:
        value = value_of(trial.answer, kind) if trial.status is status and trial.answer is not None else None
        if value is not None:
            camps.setdefault(value, []).append(trial)
    return list(camps.values())


def _plural(camps: Sequence[_Camp]) -> _Camp:
    return max(camps, key=len)  # of equals the first


def _by_mass(camps: Sequence[_Camp], weights: Weights) -> Selection:
    voting = [trial for camp in camps for trial in camp]
    in_order = sorted(voting, key=_index)
    rows = features_of(in_order)
    evidence = {trial.index: weights.evidence(row) for trial, row in zip(in_order, rows, strict=True)}
    totals = [math.fsum(evidence[trial.index] for trial in camp) for camp in camps]
    highest = max(*totals, weights.none_right)
    masses = [math.exp(total - highest) for total in totals]
    all_mass = math.fsum([*masses, math.exp(weights.none_right - highest)])
    camp = camps[totals.index(max(totals))]
    chosen = max(camp, key=lambda trial: evidence[trial.index])
    return _selection(
        "answer_mass", chosen, camp, camps, [mass / all_mass for mass in masses], evidence, weights.abstain_below
    )


def _selection(
    strategy: Strategy,
    chosen: Trial,
    camp: _Camp,
    camps: Sequence[_Camp],
    shares: Sequence[float],
    scores: Mapping[int, float],
    abstain_below: float | None = None,
) -> Selection:
    own = next(share for other, share in zip(camps, shares, strict=True) if other is camp)
    named = [(str(other[0].answer), share) for other, share in zip(camps, shares, strict=True) if other is not camp]
    ranked = [(str(camp[0].answer), own), *sorted(named, key=lambda pair: -pair[1])]
    abstained = abstain_below is not None and own < abstain_below
    return Selection(
        strategy=strategy,
        answer=None if abstained else chosen.answer,
        trial_index=chosen.index,
        shares=dict(ranked),
        scores=scores,
        num_votes=len(camp),
        num_final=sum(map(len, camps)),
        differs_from_plurality=camp is not _plural(camps),
        abstained=abstained,
        surviving=_survivors(ranked) if abstained else (ranked[0][0],),
    )


def _survivors(ranked: Sequence[tuple[str, float]]) -> tuple[str, ...]:
    needed = _SURVIVING * math.fsum(share for _, share in ranked)
    surviving: list[str] = []
    held = 0.0
    for answer, share in ranked:
        surviving.append(answer)
        held += share
        if held >= needed:
            break
    return tuple(surviving)


def _forced(trials: Iterable[Trial], strategy: Strategy, kind: Kind, abstains: bool) -> Selection:
    camps = _camps(trials, kind, Status.FORCED)
    if not camps:
        return Selection(strategy, abstained=abstains)
    chosen = _plural(camps)[0]
    return Selection(
        strategy=strategy,
        answer=None if abstains else chosen.answer,
        trial_index=chosen.index,
        is_forced=True,
        abstained=abstains,  # a promise about shares says nothing of an answer without one
        surviving=(str(chosen.answer),),
    )
