"""The picture of the speculation bench: what an arm takes and what it has right, with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reasonrt.benches.speculation_arms import OURS, SWEEPS
from reasonrt.evals.report import DRAFT, TARGET, Report
from reasonrt.plots import COLOURS, label, picture

_OTHERS = "0.45"


def plot_bench(rows: Sequence[Mapping[str, Any]], sweep: Report, title: str, file: Path) -> None:
    """Accuracy against time at the lowest concurrency, and of swept settings against what the target writes.

    A router has one colour in both panels, in all its variants; what has none is grey.
    """
    colours = dict(zip(dict.fromkeys(map(_router, SWEEPS)), COLOURS * 9, strict=False))
    with picture(file, 2, height=4.8) as (left, right):
        _plot_times(left, rows, colours, title)
        _plot_settings(right, sweep, colours)


def _plot_times(axes: Any, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str], title: str) -> None:
    lowest = min(row["concurrency"] for row in rows)
    own = [row for row in rows if row["concurrency"] == lowest]
    target_s = next(row["seconds_per_problem"] for row in own if row["policy"] == TARGET)
    marks = []
    for row in own:
        colour = colours.get(_router(row["policy"]), _OTHERS)
        seconds, accuracy = row["seconds_per_problem"], 100 * row["accuracy"]
        # of the target's own time there is no ratio to it
        low, high = sorted((target_s / row["speedup_high"], target_s / row["speedup_low"]))
        across = [[max(0.0, seconds - low)], [max(0.0, high - seconds)]]
        axes.errorbar(seconds, accuracy, _upright(row), across, "o", color=colour, capsize=3, lw=1)
        marks.append((seconds, accuracy, row["policy"], colour))
    axes.set(xlabel=f"seconds per problem, {lowest} at a time", ylabel="right, %", xlim=(0, None))
    ours = next((row for row in own if row["policy"] == OURS), None)
    says = f"{OURS} is {ours['speedup_vs_target']:.1f} times as fast as the target alone\n" if ours else ""
    axes.set_title(f"{says}{title}", loc="left")
    label(axes, marks, rise=9)


def _plot_settings(axes: Any, sweep: Report, colours: Mapping[str, str]) -> None:
    swept = {row["policy"]: row for row in sweep.rows()}
    marks = []
    for family, specs in SWEEPS.items():
        known = sorted((swept[spec.label] for spec in specs if spec.label in swept), key=_target_tokens)
        if known:
            marks.append(_plot_line(axes, known, family, colours[_router(family)]))
    for name in (TARGET, DRAFT, "oracle"):
        if name in swept:
            marks.append(_plot_line(axes, [swept[name]], name, _OTHERS))
    axes.set(xlabel="tokens that the target writes per problem", ylabel="right, %", xlim=(-3, None))
    axes.set_title("What each router makes of the tokens that the target writes\nsettings of each family", loc="left")
    label(axes, marks)


def _plot_line(axes: Any, rows: Sequence[Mapping[str, Any]], name: str, colour: str) -> tuple[float, float, str, str]:
    """Settings of one family, from the cheapest; the mark of the last one."""
    places = [(_target_tokens(row), 100 * row["accuracy"]) for row in rows]
    spread = [[_upright(row)[end][0] for row in rows] for end in (0, 1)]
    axes.errorbar(*zip(*places, strict=True), spread, fmt="o-", color=colour, capsize=3, lw=1, ms=4)
    return (*places[-1], name, colour)


def _router(arm: str) -> str:
    """Without the words that tell a variant, as in "rsd (verified), lock-step"."""
    return arm.partition(",")[0].partition(" (")[0]


def _target_tokens(row: Mapping[str, Any]) -> float:
    return float(row["engine_tokens"].get(TARGET, 0) / row["n"])


def _upright(row: Mapping[str, Any]) -> list[list[float]]:
    return [
        [100 * (row["accuracy"] - row["accuracy_low"])],
        [100 * (row["accuracy_high"] - row["accuracy"])],
    ]
