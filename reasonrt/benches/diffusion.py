"""The diffusion bench: residual context against an equally trained control, and what commit merging saves.

Each model is an engine of one runtime, and each of its thresholds an arm; all arms solve the same problems, in turns.
Passes are counted as requests see them: all that denoised or committed something, prompts that fill a pass alone left
out. Tokens are those of the answer, its end included and nothing after it.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from reasonrt.errors import ConfigError, shown
from reasonrt.evals.journal import Record
from reasonrt.evals.report import Report
from reasonrt.evals.run import PolicySpec
from reasonrt.evals.statistics import mean_interval, wilson_interval
from reasonrt.plots import COLOURS, label, picture

CONTROL = "control"
_OFF = ", off"
MANY_TOKENS = 3.0
"""Tokens per pass from which the control is compared at: below it there is little to win."""


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A trained model of the comparison, a folder or zoo:NAME; `arm` is `control`, or a kind of residual context."""

    arm: str
    seed: int
    model: str

    @property
    def role(self) -> str:
        return f"{self.arm}_{self.seed}"


def read_model(text: str) -> BenchModel:
    """`ARM:SEED=MODEL` as a model of the comparison.

    Raises:
        ConfigError: it is spelled otherwise.
    """
    found = re.fullmatch(r"([a-z][a-z0-9_]*):(\d+)=(.+)", text)
    if not found:
        raise ConfigError(f"a model is ARM:SEED=MODEL, such as control:1=runs/zoo/x, got {shown(text)}")
    return BenchModel(found[1], int(found[2]), found[3])


@dataclass(frozen=True, slots=True)
class Arm:
    """One setting of one model."""

    name: str
    seed: int
    threshold: float
    policy: PolicySpec


def arms_of(models: Sequence[BenchModel], thresholds: Sequence[float], ablation: bool = True) -> list[Arm]:
    """Every model at every threshold; with `ablation` the residual ones once more, with the residual switched off."""
    arms = []
    for model in models:
        for threshold in thresholds:
            setting = {"engine": model.role, "threshold": threshold}
            arms.append(Arm(model.arm, model.seed, threshold, PolicySpec("block_diffusion", setting)))
            if ablation and model.arm != CONTROL:
                policy = PolicySpec("block_diffusion", setting | {"residual": False})
                arms.append(Arm(model.arm + _OFF, model.seed, threshold, policy))
    return arms


def arm_rows(arms: Sequence[Arm], report: Report) -> list[dict[str, Any]]:
    """One row for each arm that has solved something."""
    rows = []
    for arm in arms:
        if not (records := report.of(arm.policy.label)):
            continue
        n, right = len(records), sum(record.correct for record in records)
        low, high = wilson_interval(right, n)
        rows.append(
            {
                "arm": arm.name,
                "seed": arm.seed,
                "threshold": arm.threshold,
                "n": n,
                "accuracy": right / n,
                "accuracy_low": low,
                "accuracy_high": high,
                "tokens_per_pass": _spent(records, "generated") / max(1, _spent(records, "passes")),
                "seconds_per_problem": sum(record.share_s for record in records) / n,
                "tokens_per_problem": _spent(records, "generated") / n,
                "errors": sum(bool(record.error) for record in records),
            }
        )
    return rows


def _spent(records: Sequence[Record], what: str) -> int:
    return sum(usage[what] for record in records for usage in record.usage.values())


def compare(arms: Sequence[Arm], report: Report) -> list[dict[str, Any]]:
    """Each other arm against control at each threshold: difference of accuracy, seed by seed and over all.

    `difference_low` and `difference_high` are a 95 % interval over problems, with these models: a problem counts once,
    by the mean over its seeds. `by_seed_low` and `by_seed_high` are one over training seeds. Fewer than two have none.
    """
    rows = {(row["arm"], row["seed"], row["threshold"]): row for row in arm_rows(arms, report)}
    right = {
        (arm.name, arm.seed, arm.threshold): {r.problem: r.correct for r in report.of(arm.policy.label)} for arm in arms
    }
    seeds = {arm.seed for arm in arms}
    found = []
    for name in dict.fromkeys(arm.name for arm in arms if arm.name != CONTROL):
        for threshold in sorted({arm.threshold for arm in arms}):
            needed = [((name, seed, threshold), (CONTROL, seed, threshold)) for seed in sorted(seeds)]
            pairs = [(ours, control) for ours, control in needed if ours in rows and control in rows]
            if not pairs:
                continue
            both = [(rows[ours], rows[control]) for ours, control in pairs]
            by_problem: dict[str, list[float]] = {}
            for ours, control in pairs:
                a, b = right[ours], right[control]
                for problem in sorted(a.keys() & b.keys()):
                    by_problem.setdefault(problem, []).append(float(a[problem]) - b[problem])
            differences = [row["accuracy"] - base["accuracy"] for row, base in both]
            found.append(
                {
                    "arm": name,
                    "threshold": threshold,
                    "seeds": len(both),
                    "control_accuracy": fmean(base["accuracy"] for _, base in both),
                    "control_tokens_per_pass": fmean(base["tokens_per_pass"] for _, base in both),
                    "accuracy": fmean(row["accuracy"] for row, _ in both),
                    "tokens_per_pass": fmean(row["tokens_per_pass"] for row, _ in both),
                    "difference": fmean(differences),
                    "differences": differences,
                    **_interval("difference", [fmean(values) for values in by_problem.values()]),
                    **_interval("by_seed", differences),
                }
            )
    return found


def _interval(name: str, values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    low, high = mean_interval(values)
    return {f"{name}_low": low, f"{name}_high": high}


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """(tokens per pass, accuracy) of each arm and seed, in ascending order of the former."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in rows:
        found.setdefault((row["arm"], row["seed"]), []).append((row["tokens_per_pass"], row["accuracy"]))
    return {key: sorted(points) for key, points in found.items()}


def area(curve: Sequence[tuple[float, float]], low: float, high: float) -> float:
    """Mean accuracy over tokens per pass in [low, high]: the area under the lines between points, by its width.

    Raises:
        ValueError: the curve does not span the range.
    """
    if not curve[0][0] <= low < high <= curve[-1][0]:
        raise ValueError(f"the curve spans {curve[0][0]:.2f} to {curve[-1][0]:.2f}, not {low:.2f} to {high:.2f}")
    inner = [(x, y) for x, y in curve if low < x < high]
    points = [(low, _at(curve, low)), *inner, (high, _at(curve, high))]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points)) / (high - low)


def _at(curve: Sequence[tuple[float, float]], x: float) -> float:
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[-1][1]


def tokens_per_pass_at(curve: Sequence[tuple[float, float]], accuracy: float) -> float | None:
    """The most tokens per pass at which a curve still has this accuracy; None where it never has."""
    best = None
    for (x0, y0), (x1, y1) in pairwise(curve):
        if y1 >= accuracy:
            best = x1
        elif y0 >= accuracy:
            best = x0 + (x1 - x0) * (y0 - accuracy) / (y0 - y1)
    return curve[0][0] if best is None and curve[0][1] >= accuracy else best


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Areas under accuracy against tokens per pass over the range that all arms span, and tokens per pass at equal
    accuracy, at the control's settings of `MANY_TOKENS` or more."""
    found = curves(rows)
    low = max((curve[0][0] for curve in found.values()), default=0.0)
    high = min((curve[-1][0] for curve in found.values()), default=0.0)
    areas = [
        {"arm": arm, "seed": seed, "area": area(curve, low, high)}
        for (arm, seed), curve in sorted(found.items())
        if low < high
    ]
    equal = []
    for row in rows:
        if row["arm"] != CONTROL or row["tokens_per_pass"] < MANY_TOKENS:
            continue
        for (arm, seed), ours in found.items():
            if arm == CONTROL or seed != row["seed"]:
                continue
            # of both what lies farthest along their lines, else a control that wavers is compared by its worse place
            reached, of_control = (tokens_per_pass_at(curve, row["accuracy"]) for curve in (ours, found[CONTROL, seed]))
            equal.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "threshold": row["threshold"],
                    "accuracy": row["accuracy"],
                    "control_tokens_per_pass": of_control,
                    "tokens_per_pass": reached,
                    "times": reached and of_control and reached / of_control,
                }
            )
    return {"from_tokens_per_pass": low, "to_tokens_per_pass": high, "areas": areas, "equal_accuracy": equal}


def merging_row(report: Report, merged: str, separate: str) -> dict[str, Any]:
    """What merging commits saves, from the same problems with and without it; `identical` counts equal texts."""
    with_it, without = ({record.problem: record for record in report.of(label)} for label in (merged, separate))
    common = sorted(with_it.keys() & without.keys())
    passes = [_spent([arm[problem] for problem in common], "passes") for arm in (with_it, without)]
    tokens = [_spent([arm[problem] for problem in common], "generated") for arm in (with_it, without)]
    return {
        "n": len(common),
        "identical": sum(with_it[problem].text == without[problem].text for problem in common),
        "passes_per_token": passes[0] / tokens[0],
        "passes_per_token_separate": passes[1] / tokens[1],
        "saved": 1 - (passes[0] / tokens[0]) / (passes[1] / tokens[1]),
    }


def plot_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy against tokens per pass: a line for each arm and seed."""
    names = sorted({str(row["arm"]) for row in rows}, key=lambda name: (name != CONTROL, name))
    colours = dict(zip(names, itertools.cycle(COLOURS)))
    with picture(path) as (axes,):
        marks: dict[str, tuple[float, float, str, str]] = {}
        for (arm, _), curve in sorted(curves(rows).items()):
            axes.plot(*zip(*curve, strict=True), marker="o", markersize=3, color=colours[arm], alpha=0.8)
            marks.setdefault(arm, (*max(curve, key=lambda point: point[1]), arm, colours[arm]))
        axes.set(xlabel="tokens per pass", ylabel="right", ylim=(0, None))
        axes.set_title("What more tokens a pass cost in right answers: a line for each training seed", loc="left")
        label(axes, list(marks.values()))
