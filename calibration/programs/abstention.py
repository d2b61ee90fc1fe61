"""Abstention with a promise: the least winning share at which to answer, with P(wrong | answered) certified."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from reasonrt.calibration.programs.questions import Question, num_trials
from reasonrt.calibration.programs.tables import Replayed, replay, vote_tables
from reasonrt.calibration.stopping.bounds import binomial_p_value
from reasonrt.calibration.stopping.ledger import Declaration, Ledger, ProblemSet
from reasonrt.calibration.stopping.multiple_testing import fixed_sequence, pareto_order
from reasonrt.calibration.stopping.sample_size import Infeasible, check_level, least_n
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.attempt import Attempt, share_of_try
from reasonrt.policies.stopping.files import canonical
from reasonrt.programs.weights import ProgramCertificate, Weights

SHARES: Final = tuple(share / 100 for share in range(99, 0, -1))
"""The thresholds that there are to choose from, the most careful first."""


def certify_abstention(
    weights: Weights,
    questions: Sequence[Question],
    *,
    order_on: Sequence[Question],
    alpha: float,
    delta: float,
    stops_early: bool = True,
    ledger: Ledger | None = None,
) -> Weights:
    """The same weights, with the threshold that answers most of those whose `selective_error` is certified.

    With probability at least 1 - delta over the draw of `questions`, the share of wrong answers among those given is
    below alpha, for new questions drawn as those were. Thresholds are tested one after the other, in an order that
    `questions` had no part in, by the exact binomial test, until one fails.

    Args:
        weights: learned from other questions.
        questions: to certify on; used for nothing else before.
        order_on: questions that decide which thresholds to test, and in which order; those that the weights were
            learned from will do.
        alpha: in (0, 1).
        delta: in (0, 1); under a ledger, of all certificates together that are ever tried on these questions.
        stops_early: whether candidates are drawn until `is_settled`, as is then to be served.
        ledger: where this try is written down before its result is known, and from which it has its part of delta.

    Raises:
        Infeasible: no threshold can be certified; the message says why. It is a `CalibrationError`.
        CalibrationError: a value cannot be used, a question is there twice or in both, or has another number of trials
            than the weights; or the ledger does not allow the try.
    """
    check_level("alpha", alpha)
    check_level("delta", delta)
    named = [question.problem for question in questions if question.problem]
    if repeated := len(named) - len(set(named)):
        raise CalibrationError(f"{repeated} questions to certify on are there twice; keep each once")
    if shared := {_content(question) for question in questions} & {_content(question) for question in order_on}:
        raise CalibrationError(f"{len(shared)} questions to certify on also decide the order; split them anew")
    for k in (num_trials(order_on), num_trials(questions)):
        if k != weights.k:
            raise CalibrationError(
                f"the weights are for {weights.k} trials of a question, these have {k}; record as many"
            )
    order = _order(replay(vote_tables(order_on), weights, stops_early), alpha)
    replayed = replay(vote_tables(questions), weights, stops_early)
    number = _enter(ledger, weights, questions, order, alpha, delta, stops_early) if ledger else None
    level = delta if number is None else delta * share_of_try(number)
    counts = [_count(replayed, threshold) for threshold in order]
    p_values = [binomial_p_value(k, n, alpha) for k, n in counts]
    certified = fixed_sequence(p_values, level)
    if not certified:
        raise Infeasible(_why(counts[0] if counts else (0, 0), alpha, level, len(questions)))
    best = max(certified, key=lambda index: counts[index][1])
    k, n = counts[best]
    certificate = ProgramCertificate(
        order[best], alpha, delta, n, k, p_values[best], n / len(questions), stops_early, number
    )
    return replace(weights, certificate=certificate)


def _enter(
    ledger: Ledger,
    weights: Weights,
    questions: Sequence[Question],
    order: Sequence[float],
    alpha: float,
    delta: float,
    stops_early: bool,
) -> int:
    """The number of this try on the questions, which is written down unless it would be in vain."""

    def check(attempt: Attempt) -> None:
        level = attempt.tested_at(delta)
        if len(questions) < least_n(alpha, level):
            raise Infeasible(_why((0, 0), alpha, level, len(questions)))

    def split_of(places: Sequence[int]) -> str:
        return _hashed([_recorded(questions[place]) for place in places])

    votes = replace(weights, certificate=None).sha256
    declared = _hashed([votes, list(order), alpha, stops_early])
    attempt = ledger.enter(
        ProblemSet.of([_content(question) for question in questions], weights.model, split_of),
        Declaration((f"selective_error below {alpha:g}",), (declared,), delta, growing=False),
        check,
    )
    return attempt.number or 1


def _content(question: Question) -> str:
    """What a question is known by, however often it is recorded."""
    return question.problem or _hashed(_recorded(question))


def _recorded(question: Question) -> list[Any]:
    return [[asdict(trial) for trial in question.trials], question.gold, question.kind]


def _hashed(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def _count(replayed: Replayed, threshold: float) -> tuple[int, int]:
    """Wrong answers, and answers."""
    is_answered = replayed.shares >= threshold
    return int((is_answered & ~replayed.is_right).sum()), int(is_answered.sum())


def _order(replayed: Replayed, alpha: float) -> list[float]:
    """The thresholds that nothing beats in both evidence and coverage, the safest first."""
    counts = [_count(replayed, threshold) for threshold in SHARES]
    p_values = [binomial_p_value(k, n, alpha) for k, n in counts]
    return [SHARES[index] for index in pareto_order(p_values, [-n for _, n in counts])]


def _why(first: tuple[int, int], alpha: float, delta: float, num_questions: int) -> str:
    k, n = first
    least = least_n(alpha, delta)
    if n < least:
        return (
            f"selective_error below {alpha:g} at delta {delta:g} takes {least} answered questions, even without a "
            f"wrong one; the first threshold answers {n} of {num_questions}: record more or allow a larger alpha"
        )
    return (
        f"the first threshold is wrong on {k} of {n} answered questions, too many for selective_error below {alpha:g} "
        f"at delta {delta:g}; allow a larger alpha or record more"
    )
