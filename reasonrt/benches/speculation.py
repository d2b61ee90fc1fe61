"""The speculation bench: policies against the target alone, on the same problems, engines and cores.

Accuracy and time are measured separately: inflation does not change what a model writes, so accuracy is measured on
many problems without it, and time on fewer with it. Arms take turns by blocks of problems, since machines drift.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reasonrt.benches.agreement import TokenAgreement
from reasonrt.benches.speculation_arms import OURS, TOKENS_AHEAD, Arm
from reasonrt.calibration.speedup import fit_speed
from reasonrt.evals.journal import Record
from reasonrt.evals.report import Report
from reasonrt.evals.tasks import TaskProblem
from reasonrt.policies.speculation.costs import (
    NO_WORK,
    Parts,
    Speed,
    Work,
    predicted_speedup,
    seconds_per_problem,
    token_level_work,
)

_TALLIED = ("steps", "draft_steps", "escalations", "useless_escalations", "router_s", "verifications", "verify_s")
_READ = 20  # problems
_SLOWER = ("times_arbitrage_s", "times_arbitrage_s_low", "times_arbitrage_s_high")


@dataclass(frozen=True, slots=True)
class Pair:
    """What is the same for all rows of a pair.

    Attributes:
        name: of draft and target.
        tokens_ahead: engine to the tokens that it drafts by itself before each pass, where it does.
        token_agreement, step_agreement: see `agreement`; None where they were not measured.
        is_shared: both compute on the same device.
        by_itself: of the engines in `tokens_ahead`, those that draft from the text itself, without a model.
    """

    name: str = ""
    tokens_ahead: Mapping[str, int] = field(default_factory=dict)
    token_agreement: float | None = None
    step_agreement: float | None = None
    is_shared: bool = True
    by_itself: frozenset[str] = frozenset()


def reading_problems(problems: Sequence[TaskProblem]) -> list[TaskProblem]:
    """Questions of a hundred words or more, to measure what reading costs: with one token of answer each."""
    return [
        replace(problem, question="\n".join([problem.question] * math.ceil(100 / len(problem.question.split()))))
        for problem in problems[:_READ]
    ]


def alone_speeds(timed: Sequence[Report]) -> dict[str, Speed]:
    """The speeds of draft and target, from their own arms at each concurrency and from reading `reading_problems`."""
    speeds = {}
    for role in ("draft", "target"):
        arms = [report.of(role) for report in timed]
        speeds[role] = fit_speed([(_mean_s(records), work_of(records, role), _at_once(records)) for records in arms])
    return speeds


def bench_rows(
    arms: Sequence[Arm],
    timed: Report,
    accuracy: Report,
    concurrency: int,
    speeds: Mapping[str, Speed],
    pair: Pair,
) -> list[dict[str, Any]]:
    """One row per arm. Accuracies are those of the accuracy run where it had the same setting, else of this one.
    `times_arbitrage_s` is how many times as long as `arbitrage` an arm takes; absent where that was not timed.

    Args:
        speeds: of draft and target, from `alone_speeds`.
        concurrency: as asked for; `at_once` in a row is what it was on average.
        pair: with the tokens ahead at this concurrency.
    """
    times = {row["policy"]: row for row in timed.rows()}
    target_s = times["target"]["seconds_per_problem"]
    per_token = {f"{role}_s_per_token": _s_per_token(timed.of(role), role) for role in ("target", "draft")}
    ours = next((arm.policy.label for arm in arms if arm.name == OURS), None)
    rows = []
    for arm in arms:
        label = arm.policy.label
        source = accuracy if accuracy.of(label) else timed
        found = next(row for row in source.rows() if row["policy"] == label)
        sums = _sums(timed.of(label))
        measured = times[label]["seconds_per_problem"]
        predicted = _predicted(arm, timed, speeds, pair)
        steps = max(1.0, sums["steps"])
        speedup, speedup_low, speedup_high = timed.seconds_ratio("target", label)
        rows.append(
            {
                "pair": pair.name,
                "policy": arm.name,
                "options": dict(arm.policy.options),
                "concurrency": concurrency,
                "tokens_ahead": max((pair.tokens_ahead.get(role, 0) for role in _targets(timed.of(label))), default=0),
                "token_agreement": pair.token_agreement,
                "step_agreement": pair.step_agreement,
                "at_once": _at_once(timed.of(label)),
                "errors": found["errors"],  # of the problems that accuracy was measured on
                "errors_timed": times[label]["errors"],
                "warnings": times[label]["warnings"],  # what did not take place in how many of the timed problems
                "n": found["n"],
                "accuracy": found["accuracy"],
                "accuracy_low": found["accuracy_low"],
                "accuracy_high": found["accuracy_high"],
                **_against_target(source, label),
                "n_timed": times[label]["n"],
                "seconds_per_problem": measured,
                "seconds_p50": times[label]["seconds_p50"],
                "seconds_p95": times[label]["seconds_p95"],
                "problems_per_second": 1.0 / measured,
                "cpu_s_per_problem": sum(record.cpu_s for record in timed.of(label)) / len(timed.of(label)),
                "speedup_vs_target": speedup,
                "speedup_low": speedup_low,
                "speedup_high": speedup_high,
                **(dict(zip(_SLOWER, timed.seconds_ratio(label, ours), strict=True)) if ours else {}),
                **per_token,
                "predicted_speedup": predicted,
                "draft_token_share": sums["draft_committed"] / max(1.0, sums["committed"]),
                "draft_step_share": sums["draft_steps"] / steps,
                "escalation_rate": sums["escalations"] / steps,
                "useless_escalation_rate": sums["useless_escalations"] / max(1.0, sums["escalations"]),
                "wasted_draft_tokens": sums["draft_wasted"],
                "router_ms_per_step": 1000 * sums["router_s"] / steps,
                "verifications_per_step": sums["verifications"] / steps,
                "verify_ms": 1000 * sums["verify_s"] / max(1.0, sums["verifications"]),
                "overhead_ms_per_step": 1000 * (measured - target_s / predicted) * sums["n"] / sums["steps"]
                if predicted and sums["steps"]
                else None,
                "ways": _ways(timed.of(label)),
                "prefix_hit_rate": _hit_rates(timed.of(label)),
            }
        )
    return rows


def planned_arms(
    alone: Report, speculated: Report, speeds: Mapping[str, Speed], agreement: TokenAgreement, is_shared: bool
) -> list[dict[str, Any]]:
    """What each way is predicted to take, and took where it was run.

    Args:
        alone: draft and target, each by itself.
        speculated: policies that speculate, on the same problems; of one that hands over, the target may speculate by
            itself from there.
        agreement: of the two, from which passes of token-level speculation are replayed.
    """
    own, at_once = alone.of("target"), _at_once(alone.of("target"))
    work = work_of(own, "target")
    target_s = work.seconds(speeds["target"], at_once)
    rows = [_plan_row("target", target_s, target_s, _mean_s(own))]

    def predict(drafted: Work, targeted: Work) -> float:
        parts = Parts(speeds["draft"], speeds["target"], work, drafted, targeted, at_once=at_once, is_shared=is_shared)
        return seconds_per_problem(parts)

    best: tuple[float, int, float] | None = None
    for tokens_ahead in TOKENS_AHEAD:
        name = f"token-level, {tokens_ahead} ahead"
        per_token = agreement.passes_per_token(tokens_ahead)
        if per_token is None:
            rows.append({"way": name, "why_not": agreement.why_not or "nothing was written"})
            continue
        predicted = predict(*token_level_work(work.passes * per_token, work.read, tokens_ahead))
        rows.append(_plan_row(name, predicted, target_s))
        best = min(best or (predicted, tokens_ahead, per_token), (predicted, tokens_ahead, per_token))
    for label in speculated.labels:
        records = speculated.of(label)
        warnings = [record.warnings["speculation"] for record in records if "speculation" in record.warnings]
        if len(warnings) == len(records):
            rows.append({"way": label, "why_not": warnings[0]})
            continue
        drafted, targeted = work_of(records, "draft"), work_of(records, "target")
        rows.append(_plan_row(label, predict(drafted, targeted), target_s, _mean_s(records)))
        if best and any(record.details.get("handed_over") for record in records):
            _, tokens_ahead, per_token = best
            inner, outer = token_level_work(targeted.passes * per_token, targeted.read, tokens_ahead)
            name = f"{label}, {tokens_ahead} ahead"
            rows.append(_plan_row(name, predict(drafted + inner, outer), target_s))
    return rows


def _plan_row(way: str, predicted_s: float, target_s: float, measured_s: float | None = None) -> dict[str, Any]:
    speedup = target_s / predicted_s
    return {"way": way, "predicted_s": predicted_s, "speedup": speedup, "measured_s": measured_s, "why_not": ""}


def _sums(records: Sequence[Record]) -> dict[str, float]:
    """Totals over the problems of one arm."""
    sums = dict.fromkeys(_TALLIED, 0.0)
    for record in records:
        for key in sums:
            sums[key] += record.details.get(key, 0)
    usages = [(name, usage) for record in records for name, usage in record.usage.items()]
    committed = {name: 0.0 for name, _ in usages}
    for name, usage in usages:
        committed[name] += usage["generated"] - usage["discarded"]
    return sums | {
        "n": len(records),
        "committed": sum(committed.values()),
        "draft_committed": committed.get("draft", 0.0),
        "draft_wasted": float(sum(usage["discarded"] for name, usage in usages if name == "draft")),
    }


def _predicted(arm: Arm, timed: Report, speeds: Mapping[str, Speed], pair: Pair) -> float | None:
    """The speed-up predicted from the speeds of both models alone and from what this arm asked of either."""
    records, alone = timed.of(arm.policy.label), timed.of("target")
    if arm.name in ("target", "draft"):
        return None  # their speeds are what it is predicted from
    sums = _sums(records)
    works = [_works(records, role, pair) for role in _targets(records)]
    by_draft, by_target = zip(*works, strict=True) if works else ((), ())
    parts = Parts(
        speeds["draft"],
        speeds["target"],
        work_of(alone, "target"),
        sum(by_draft, work_of(records, "draft")),
        sum(by_target, NO_WORK),
        waits_s=sums["router_s"] / sums["n"],
        at_once=_at_once(alone),
        is_shared=pair.is_shared,
    )
    return predicted_speedup(parts)


def _works(records: Sequence[Record], role: str, pair: Pair) -> tuple[Work, Work]:
    """What the draft inside of an engine, and the engine itself, did per problem: each pass reads what was drafted."""
    work, tokens_ahead = work_of(records, role), pair.tokens_ahead.get(role, 0)
    if not tokens_ahead:
        return NO_WORK, work
    passes = sum(record.usage.get(role, {}).get("passes", 0) for record in records) / len(records)
    drafted, targeted = token_level_work(passes, work.read, tokens_ahead)
    return NO_WORK if role in pair.by_itself else drafted, targeted


def _targets(records: Sequence[Record]) -> list[str]:
    """The engines of the target that an arm asked."""
    asked = {name for record in records for name, usage in record.usage.items() if usage["calls"]}
    return sorted(name for name in asked if name.startswith("target"))


def _ways(records: Sequence[Record]) -> dict[str, int]:
    """How often `auto` went which way."""
    return dict(Counter(record.details["auto"]["way"] for record in records if "auto" in record.details))


def work_of(records: Sequence[Record], role: str) -> Work:
    """What an engine did per problem: a pass for each generated token, that of a verification among them."""
    usages = [record.usage.get(role, {}) for record in records]
    generated, read = (sum(usage.get(kind, 0) for usage in usages) for kind in ("generated", "prefilled"))
    return Work(generated / len(records), read / len(records))


def _mean_s(records: Sequence[Record]) -> float:
    return sum(record.share_s for record in records) / len(records)


def _s_per_token(records: Sequence[Record], role: str) -> float:
    """Wall clock per token of a model that writes alone, with the same number of concurrent problems."""
    return _mean_s(records) / work_of(records, role).passes


def _at_once(records: Sequence[Record]) -> float:
    """Concurrent problems, on average: towards the end of a block they become fewer."""
    return max(1.0, sum(record.seconds for record in records) / sum(record.share_s for record in records))


def _against_target(report: Report, label: str) -> dict[str, float | None]:
    for pair in report.paired():
        if {pair["policy"], pair["against"]} == {"target", label}:
            sign = 1 if pair["policy"] == label else -1
            low, high = sorted((sign * pair["difference_low"], sign * pair["difference_high"]))
            return {
                "accuracy_minus_target": sign * pair["difference"],
                "accuracy_minus_target_low": low,
                "accuracy_minus_target_high": high,
            }
    nothing = 0.0 if label == "target" else None  # the target itself, or no problem in common
    return dict.fromkeys(("accuracy_minus_target", "accuracy_minus_target_low", "accuracy_minus_target_high"), nothing)


def _hit_rates(records: Sequence[Record]) -> dict[str, float]:
    """Per engine, the share of prompt tokens that came from its prefix cache."""
    totals: dict[str, list[int]] = {}
    for record in records:
        for name, usage in record.usage.items():
            total = totals.setdefault(name, [0, 0])
            total[0] += usage["cached"]
            total[1] += usage["cached"] + usage["prefilled"]
    return {name: cached / max(1, asked) for name, (cached, asked) in totals.items()}
