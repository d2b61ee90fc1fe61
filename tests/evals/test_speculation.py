"""The speculation bench on scripted engines: what its rows say, and which settings it goes on with."""

from pathlib import Path

import pytest

from reasonrt import Runtime
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.evals.journal import Record
from reasonrt.evals.report import Report
from reasonrt.evals.run import PolicySpec, RunSettings, evaluate
from reasonrt.evals.speculation import SWEEPS, Arm, alone_speeds, bench_rows, operating_points, plot_bench
from reasonrt.evals.tasks import TaskProblem

GOOD = "<think>\none\n\ntwo\n\nthree\n\n</think>\n\n\\boxed{7}"
BAD = GOOD.replace("two", "2wo").replace("7", "8")
PROBLEMS = [TaskProblem(f"p{index}", f"question {index}", "7", is_exact=True) for index in range(8)]
ARMS = [
    Arm("target", PolicySpec("target")),
    Arm("draft", PolicySpec("draft")),
    Arm("rsd", PolicySpec("rsd", {"threshold": 0.7})),
    Arm("rsd, lock-step", PolicySpec("rsd", {"threshold": 0.7, "look_ahead": 0})),
]


def make_runtime() -> Runtime:
    return Runtime(
        {
            "draft": ScriptedEngine("draft", continuing(BAD), seconds_per_token=0.0002, chunk_tokens=1),
            "target": ScriptedEngine("target", continuing(GOOD), seconds_per_token=0.002, chunk_tokens=1),
            "reward": ScriptedEngine(
                "reward", "", scores=lambda text: float(not text.rstrip().endswith(("2wo", "8}")))
            ),
        }
    )


async def test_rows_say_who_wrote_what_and_how_fast(tmp_path: Path) -> None:
    runtime = make_runtime()
    settings = RunSettings("toy", concurrency=1, block=4)
    report = await evaluate(runtime, PROBLEMS, [arm.policy for arm in ARMS], settings, tmp_path)

    rows = {row["policy"]: row for row in bench_rows(ARMS, report, report, 1, alone_speeds([report]), is_shared=False)}

    assert rows["target"]["accuracy"] == rows["rsd"]["accuracy"] == 1.0
    assert (rows["draft"]["accuracy"], rows["draft"]["accuracy_minus_target"]) == (0.0, -1.0)
    assert rows["target"]["speedup_vs_target"] == pytest.approx(1.0)
    assert rows["target"]["predicted_speedup"] is None
    rsd = rows["rsd"]
    assert rsd["escalation_rate"] == pytest.approx(2 / 5)
    assert 0.4 < rsd["draft_token_share"] < 0.9
    assert rsd["useless_escalation_rate"] == 0.0
    assert rsd["wasted_draft_tokens"] > 0
    assert rsd["speedup_low"] <= rsd["speedup_vs_target"] <= rsd["speedup_high"]
    assert rsd["predicted_speedup"] == pytest.approx(rsd["speedup_vs_target"], rel=0.5)
    assert 0 < rows["rsd, lock-step"]["wasted_draft_tokens"] <= rsd["wasted_draft_tokens"]
    plot_bench(list(rows.values()), report, "toy", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def swept(**accuracy_and_cost: tuple[float, int]) -> Report:
    """Ten problems per setting, of which a share is right, at so many target tokens each."""
    records = [
        Record(label, f"p{i}", "g", "7", 0.1, correct=i < 10 * accuracy, engine_tokens={"target": tokens})
        for label, (accuracy, tokens) in accuracy_and_cost.items()
        for i in range(10)
    ]
    return Report("toy", list(accuracy_and_cost), records)


def test_operating_point_is_the_cheapest_of_the_good_ones_or_else_the_best() -> None:
    first, second = (spec.label for spec in SWEEPS["rsd"])

    both_good = swept(**{"target": (0.8, 100), first: (0.8, 50), second: (0.9, 70)})
    one_good = swept(**{"target": (0.8, 100), first: (0.7, 10), second: (0.8, 70)})
    none_good = swept(**{"target": (0.8, 100), first: (0.6, 90), second: (0.5, 10)})

    assert operating_points(both_good, ["rsd"])["rsd"].label == first
    assert operating_points(one_good, ["rsd"])["rsd"].label == second
    assert operating_points(none_good, ["rsd"])["rsd"].label == first
