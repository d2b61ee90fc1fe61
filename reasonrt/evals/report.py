"""What an evaluation found: rows per policy, paired differences, groups, and one plot."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from reasonrt.evals.journal import Record
from reasonrt.evals.statistics import mcnemar_p_value, paired_difference_interval, wilson_interval

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # by Okabe and Ito


class Report:
    """Records of one task by policy label, in the order in which the policies were named."""

    def __init__(self, task: str, labels: Sequence[str], records: Sequence[Record]) -> None:
        self.task, self.labels, self.records = task, list(labels), list(records)

    def of(self, label: str) -> list[Record]:
        return [record for record in self.records if record.label == label]

    def rows(self) -> list[dict[str, Any]]:
        """One row per policy; `seconds_per_problem` is wall clock over problems, which concurrent problems share."""
        return [self._row(label) for label in self.labels if self.of(label)]

    def _row(self, label: str) -> dict[str, Any]:
        import numpy as np

        records = self.of(label)
        n, correct = len(records), sum(record.correct for record in records)
        low, high = wilson_interval(correct, n)
        engine_tokens = Counter[str]()
        for record in records:
            engine_tokens.update(record.engine_tokens)
        seconds = [record.seconds for record in records if not record.error] or [0.0]
        return {
            "task": self.task,
            "policy": label,
            "n": n,
            "accuracy": correct / n,
            "accuracy_low": low,
            "accuracy_high": high,
            "seconds_per_problem": sum(record.share_s for record in records) / n,
            "seconds_p50": float(np.percentile(seconds, 50)),
            "seconds_p95": float(np.percentile(seconds, 95)),
            "tokens_per_problem": sum(record.tokens for record in records) / n,
            "engine_tokens": dict(engine_tokens),
            "errors": sum(bool(record.error) for record in records),
        }

    def paired(self) -> list[dict[str, Any]]:
        """Each pair of policies on the problems that both have done: difference of accuracy with its interval."""
        pairs = []
        for a, b in combinations(self.labels, 2):
            right = {label: {record.problem: record.correct for record in self.of(label)} for label in (a, b)}
            common = right[a].keys() & right[b].keys()
            if not common:
                continue
            outcomes = Counter((right[a][problem], right[b][problem]) for problem in common)
            counts = [outcomes[outcome] for outcome in ((True, True), (True, False), (False, True), (False, False))]
            low, high = paired_difference_interval(*counts)
            pairs.append(
                {
                    "policy": a,
                    "against": b,
                    "n": len(common),
                    "difference": (counts[1] - counts[2]) / len(common),
                    "difference_low": low,
                    "difference_high": high,
                    "p_value": mcnemar_p_value(counts[1], counts[2]),
                }
            )
        return pairs

    def groups(self) -> list[dict[str, Any]]:
        """Accuracy per policy and group, such as `gcd/3`."""
        outcomes: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
        for record in self.records:
            outcomes[record.label, record.group].append(record.correct)
        return [
            {"policy": label, "group": group, "n": len(values), "accuracy": sum(values) / len(values)}
            for (label, group), values in sorted(outcomes.items())
        ]

    def to_json(self) -> dict[str, Any]:
        return {"rows": self.rows(), "paired": self.paired(), "groups": self.groups()}


def plot(report: Report, path: Path) -> None:
    """Accuracy with its interval against seconds per problem, one labelled point per policy, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=160)
    for row, colour in zip(report.rows(), _COLOURS * 9, strict=False):
        seconds, accuracy = row["seconds_per_problem"], 100 * row["accuracy"]
        spread = [[accuracy - 100 * row["accuracy_low"]], [100 * row["accuracy_high"] - accuracy]]
        axes.errorbar(seconds, accuracy, spread, fmt="o", color=colour, capsize=4, markersize=8)
        axes.annotate(row["policy"], (seconds, accuracy), (10, 6), textcoords="offset points", color=colour)
    axes.set_xlabel("seconds per problem")
    axes.set_ylabel("accuracy, %")
    # room for the labels on the right
    axes.set_xlim(0, 1.4 * max((row["seconds_per_problem"] for row in report.rows()), default=1) or 1)
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    rows = report.rows()
    axes.set_title(f"task {report.task}, n = {rows[0]['n'] if rows else 0} per policy, 95 % intervals", loc="left")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
