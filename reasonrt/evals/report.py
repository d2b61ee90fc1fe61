"""What an evaluation found: rows per policy, paired differences, groups, and one plot."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from reasonrt.evals.journal import Record
from reasonrt.evals.statistics import mcnemar_p_value, paired_difference_interval, wilson_interval
from reasonrt.plots import COLOURS, label, picture

TARGET, DRAFT = "target", "draft"
"""The policy that others are compared with, and the one that writes alone what others speculate with."""

_READ = ("generated", "prefilled")

_RATIO = ("ratio_to_target", "ratio_to_target_low", "ratio_to_target_high")


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
            "warnings": self._warnings(records),
            **self._against_target(label),
        }

    @staticmethod
    def _warnings(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
        """By what did not take place: in how many problems, and the reason in the first of them."""
        found: dict[str, dict[str, Any]] = {}
        for record in records:
            for part, reason in record.warnings.items():
                found.setdefault(part, {"n": 0, "reason": reason})["n"] += 1
        return found

    def _against_target(self, label: str) -> dict[str, Any]:
        if label == TARGET or not self.seconds_pairs(label, TARGET):
            return {}
        ratio = dict(zip(_RATIO, self.seconds_ratio(label, TARGET), strict=True))
        reason = self._why_slower(label) if ratio["ratio_to_target_low"] > 1 else ""
        return ratio | ({"does_not_pay": reason} if reason else {})

    def _why_slower(self, label: str) -> str:
        """Why speculation takes longer than the target alone, as `reasonrt plan` reckons; empty of other policies."""
        from reasonrt.calibration.speedup import break_even_share  # needs numpy
        from reasonrt.policies.speculation.costs import Speed

        tallies = [record.details for record in self.of(label) if "escalations" in record.details]
        steps = sum(tally["steps"] for tally in tallies)
        if not steps:
            return ""
        if not self.of(DRAFT):
            return "evaluate `draft` as well to learn why"
        draft_s, target_s = self._s_per_token(DRAFT), self._s_per_token(TARGET)
        alone = self.of(TARGET)
        plan = {kind: sum(record.usage.get(TARGET, {}).get(kind, 0) for record in alone) / len(alone) for kind in _READ}
        least = break_even_share(
            Speed(draft_s), Speed(target_s), tokens=plan["generated"], prompt_tokens=plan["prefilled"]
        )
        costs = f"a token takes the draft {draft_s / target_s:.2f} of what it takes the target"
        if least is None:
            return f"{costs}: too much, whatever the target is spared"
        spared = 1 - sum(tally["escalations"] for tally in tallies) / steps
        if spared >= least:
            enough = f"the target was not asked about {spared:.0%} of the text, {least:.0%} would be enough"
            return f"{costs}, and {enough}: the rest goes into waiting and reading"
        return f"{costs}: the target must not be asked about {least:.0%} of the text, and was not about {spared:.0%}"

    def _s_per_token(self, role: str) -> float:
        """Wall clock per token of an engine that writes alone, with as many problems running concurrently."""
        records = self.of(role)
        return sum(record.share_s for record in records) / max(1, sum(record.tokens for record in records))

    def seconds_pairs(self, label: str, against: str) -> list[tuple[float, float]]:
        """Seconds of the wall clock that either took for each problem that both have done."""
        known = {record.problem: record.share_s for record in self.of(against)}
        return [(record.share_s, known[record.problem]) for record in self.of(label) if record.problem in known]

    def seconds_ratio(self, label: str, against: str) -> tuple[float, float, float]:
        """How many times as long `label` takes as `against`, on the problems that both have done; with its 95 %
        interval, over draws of the problems with replacement."""
        import numpy as np

        pairs = np.array(self.seconds_pairs(label, against))
        drawn = pairs[np.random.default_rng(0).integers(0, len(pairs), (2000, len(pairs)))].sum(1)
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
        return float(pairs[:, 0].sum() / pairs[:, 1].sum()), float(low), float(high)

    def seconds_interval(self, label: str) -> tuple[float, float]:
        """The 95 % interval of its seconds per problem, over draws of the problems with replacement."""
        import numpy as np

        seconds = np.array([record.share_s for record in self.of(label)])
        drawn = seconds[np.random.default_rng(0).integers(0, len(seconds), (2000, len(seconds)))].mean(1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        return float(low), float(high)

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
    """Accuracy against seconds per problem, both with their 95 % intervals, as a picture."""
    rows = report.rows()
    with picture(path) as (axes,):
        marks = []
        for row, colour in zip(rows, COLOURS * 9, strict=False):
            seconds, accuracy = row["seconds_per_problem"], 100 * row["accuracy"]
            up = [[accuracy - 100 * row["accuracy_low"]], [100 * row["accuracy_high"] - accuracy]]
            low, high = report.seconds_interval(row["policy"])
            axes.errorbar(
                seconds, accuracy, up, [[seconds - low], [high - seconds]], "o", color=colour, capsize=3, lw=1
            )
            marks.append((seconds, accuracy, row["policy"], colour))
        axes.set(xlabel="seconds per problem", ylabel="right, %", ylim=(0, 102), xlim=(0, None))
        axes.set_title(_message(report.task, rows), loc="left")
        label(axes, marks, rise=9)


def _message(task: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """What the picture shows, in a sentence: of the policy that takes least of the target's time, if any is faster."""
    n = f"n = {rows[0]['n'] if rows else 0}, 95 % intervals"
    faster = [row for row in rows if row.get("ratio_to_target_high", 1) < 1 and row["policy"] != DRAFT]
    target = next((row for row in rows if row["policy"] == TARGET), None)
    if not faster or target is None:
        return f"task {task} ({n})"
    best = min(faster, key=lambda row: float(row["ratio_to_target"]))
    right = f"{best['accuracy']:.0%} right against {target['accuracy']:.0%}"
    return f"{best['policy']} takes {best['ratio_to_target']:.2f} of the target's time, {right}\n{task}, {n}"
