"""The speculation bench: policies against the target alone, on the same problems, engines and cores.

Accuracy and time are measured separately: inflation does not change what a model writes, so accuracy is measured on
many problems without it, and time on fewer with it. Arms take turns by blocks of problems, since machines drift.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reasonrt.benches.speculation_arms import OURS, SWEEPS, Arm
from reasonrt.calibration.speedup import Parts, Speed, Work, fit_speed, predicted_speedup
from reasonrt.evals.journal import Record
from reasonrt.evals.report import Report
from reasonrt.evals.tasks import TaskProblem
from reasonrt.files import write_figure

_TALLIED = ("steps", "draft_steps", "escalations", "useless_escalations", "router_s", "verifications", "verify_s")
_READ = 20  # problems
_SLOWER = ("times_arbitrage_s", "times_arbitrage_s_low", "times_arbitrage_s_high")


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
        speeds[role] = fit_speed([(_mean_s(records), _work(records, role), _at_once(records)) for records in arms])
    return speeds


def bench_rows(
    arms: Sequence[Arm],
    timed: Report,
    accuracy: Report,
    concurrency: int,
    speeds: Mapping[str, Speed],
    is_shared: bool = True,
) -> list[dict[str, Any]]:
    """One row per arm. Accuracies are those of the accuracy run where it had the same setting, else of this one.
    `times_arbitrage_s` is how many times as long as `arbitrage` an arm takes; absent where that was not timed.

    Args:
        speeds: of draft and target, from `alone_speeds`.
        concurrency: as asked for; `at_once` in a row is what it was on average.
        is_shared: both compute on the same device.
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
        predicted = _predicted(arm, timed, speeds, is_shared)
        steps = max(1.0, sums["steps"])
        speedup, speedup_low, speedup_high = timed.seconds_ratio("target", label)
        rows.append(
            {
                "policy": arm.name,
                "options": dict(arm.policy.options),
                "concurrency": concurrency,
                "at_once": _at_once(timed.of(label)),
                "errors": found["errors"],  # of the problems that accuracy was measured on
                "errors_timed": times[label]["errors"],
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
                if predicted
                else None,
                "prefix_hit_rate": _hit_rates(timed.of(label)),
            }
        )
    return rows


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


def _predicted(arm: Arm, timed: Report, speeds: Mapping[str, Speed], is_shared: bool) -> float | None:
    """The speed-up predicted from the speeds of both models alone and from what this arm asked of either."""
    records, alone = timed.of(arm.policy.label), timed.of("target")
    sums = _sums(records)
    if not sums["steps"] or arm.policy.options.get("target", "target") != "target":
        return None  # no speculation at the level of steps, or a target whose speed alone was not fitted
    parts = Parts(
        speeds["draft"],
        speeds["target"],
        _work(alone, "target"),
        _work(records, "draft"),
        _work(records, "target"),
        waits_s=sums["router_s"] / sums["n"],
        at_once=_at_once(alone),
        is_shared=is_shared,
    )
    return predicted_speedup(parts)


def _work(records: Sequence[Record], role: str) -> Work:
    """What an engine did per problem: a pass for each generated token, that of a verification among them."""
    usages = [record.usage.get(role, {}) for record in records]
    generated, read = (sum(usage.get(kind, 0) for usage in usages) for kind in ("generated", "prefilled"))
    return Work(generated / len(records), read / len(records))


def _mean_s(records: Sequence[Record]) -> float:
    return sum(record.share_s for record in records) / len(records)


def _s_per_token(records: Sequence[Record], role: str) -> float:
    """Wall clock per token of a model that writes alone, with the same number of concurrent problems."""
    return _mean_s(records) / _work(records, role).passes


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


def plot_bench(rows: Sequence[dict[str, Any]], sweep: Report, title: str, file: Path) -> None:
    """Accuracy against seconds per problem at the lowest concurrency; swept settings by their target tokens."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))
    lowest = min(row["concurrency"] for row in rows)
    for row in (row for row in rows if row["concurrency"] == lowest):
        left.plot(row["seconds_per_problem"], 100 * row["accuracy"], "o", alpha=0.7, label=row["policy"])
    left.set(xlabel="seconds per problem", ylabel="accuracy, %", title=f"{lowest} at a time")
    left.legend(fontsize=7)
    swept = {row["policy"]: row for row in sweep.rows()}
    for family, specs in SWEEPS.items():
        points = sorted(
            (
                swept[spec.label]["engine_tokens"].get("target", 0) / swept[spec.label]["n"],
                swept[spec.label]["accuracy"],
            )
            for spec in specs
            if spec.label in swept
        )
        if points:
            right.plot([x for x, _ in points], [100 * y for _, y in points], "o-", label=family)
    for name in ("target", "draft", "oracle"):
        if name in swept:
            row = swept[name]
            right.plot(row["engine_tokens"].get("target", 0) / row["n"], 100 * row["accuracy"], "k*")
            right.annotate(name, (row["engine_tokens"].get("target", 0) / row["n"], 100 * row["accuracy"]))
    right.set(xlabel="target tokens per problem", ylabel="accuracy, %", title="Settings swept")
    right.legend(fontsize=7)
    figure.suptitle(title)
    figure.tight_layout()
    write_figure(file, figure, dpi=120)
    plt.close(figure)
