"""What program search is worth: ways of choosing on the same recorded candidates, beside a direct call.

One recording per question holds all of its candidates; each arm takes of them what it would have drawn. So arms differ
by how they choose, and by nothing else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reasonrt.calibration.programs.questions import Question, draw
from reasonrt.evals.contexts import ContextProblem, score
from reasonrt.evals.program_recording import RecordedQuestion
from reasonrt.evals.statistics import wilson_interval
from reasonrt.programs.selection import Strategy
from reasonrt.programs.trials import Status, Trial
from reasonrt.programs.weights import Weights

PASSING = 1.0  # of `score`: exact


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One question by one arm."""

    is_right: bool
    tokens: float
    cached_tokens: float | None
    sub_calls: float
    seconds: float | None
    abstained: bool = False


def arms_of(
    records: Sequence[RecordedQuestion], problems: Sequence[ContextProblem], weights: Weights | None = None
) -> list[dict[str, Any]]:
    """One row for each arm, task and length, and one for each arm over all of them (task `all`).

    Tokens are those generated, of candidates and of sub-questions. Seconds and cached tokens are given where an arm is
    what was really run: the direct call, and all candidates.

    Args:
        problems: of the records, in their order.
    """
    pairs = list(zip(records, problems, strict=True))
    rows: list[dict[str, Any]] = []
    for arm in _arms(records, weights):
        outcomes = [(record, _outcome(arm, record, problem, weights)) for record, problem in pairs]
        rows.append(_row(arm, "all", None, [outcome for _, outcome in outcomes]))
        for task, size in sorted({(record.task, _size(record)) for record in records}):
            own = [outcome for record, outcome in outcomes if (record.task, _size(record)) == (task, size)]
            rows.append(_row(arm, task, size, own))
    return rows


def _arms(records: Sequence[RecordedQuestion], weights: Weights | None) -> list[str]:
    k = max(len(record.trials) for record in records)
    direct = ["direct"] if any(record.direct is not None for record in records) else []
    ours = ["answer_mass"] if weights else []
    return [*direct, "rlm", f"self_consistency@{k}", f"srlm@{k}", "plurality, stops early", *ours, f"oracle@{k}"]


def _outcome(arm: str, record: RecordedQuestion, problem: ContextProblem, weights: Weights | None) -> _Outcome:
    trials = record.candidates()
    name = arm.partition("@")[0]
    cached = float(sum(usage["cached"] for usage in record.usage.values()))
    if name == "direct":
        usage = record.direct_usage.values()
        return _Outcome(
            score(problem, record.direct or "") >= PASSING,
            sum(each["generated"] for each in usage),
            sum(each["cached"] for each in usage),
            0,
            record.direct_seconds,
        )
    if name == "oracle":
        is_right = any(
            trial.status is Status.FINAL and score(problem, trial.answer or "") >= PASSING for trial in trials
        )
        return _Outcome(is_right, _tokens(trials), cached, _sub_calls(trials), record.seconds)
    strategy, stops_early = _WAYS[name]
    question = Question(trials, record.answer, record.kind)  # type: ignore[arg-type]
    selection, drawn = draw(question, strategy, weights if name == "answer_mass" else None, stops_early)
    is_all = len(drawn) == len(trials) and strategy != "rlm"
    return _Outcome(
        score(problem, selection.answer or "") >= PASSING,
        _tokens(drawn),
        cached if is_all else None,
        _sub_calls(drawn),
        record.seconds if is_all and not stops_early else None,
        selection.abstained,
    )


_WAYS: dict[str, tuple[Strategy, bool]] = {
    "rlm": ("rlm", True),
    "self_consistency": ("plurality", False),
    "srlm": ("srlm", False),
    "plurality, stops early": ("plurality", True),
    "answer_mass": ("answer_mass", True),
}


def _tokens(trials: Sequence[Trial]) -> float:
    return float(sum(trial.num_tokens + trial.num_sub_tokens for trial in trials))


def _sub_calls(trials: Sequence[Trial]) -> float:
    return float(sum(trial.num_sub_calls for trial in trials))


def _size(record: RecordedQuestion) -> int:
    """The length that was asked for: generators keep it within two in a hundred."""
    return 1000 * round(record.num_characters / 1000)


def _row(arm: str, task: str, size: int | None, outcomes: Sequence[_Outcome]) -> dict[str, Any]:
    n = len(outcomes)
    right = sum(outcome.is_right for outcome in outcomes)
    low, high = wilson_interval(right, n)
    return {
        "arm": arm,
        "task": task,
        "context_characters": size,
        "n": n,
        "accuracy": right / n,
        "accuracy_low": low,
        "accuracy_high": high,
        "tokens_per_question": _mean([outcome.tokens for outcome in outcomes]),
        "cached_tokens_per_question": _mean([outcome.cached_tokens for outcome in outcomes]),
        "sub_calls_per_question": _mean([outcome.sub_calls for outcome in outcomes]),
        "seconds_per_question": _mean([outcome.seconds for outcome in outcomes]),
        "abstained": sum(outcome.abstained for outcome in outcomes) / n,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) and known else None
