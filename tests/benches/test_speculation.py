"""The speculation bench on scripted engines: what its rows say, and which settings it goes on with."""

from pathlib import Path

import pytest

from reasonrt import Completion, Request, Runtime
from reasonrt.benches.speculation import alone_speeds, bench_rows, plot_bench, reading_problems
from reasonrt.benches.speculation_arms import SWEEPS, Arm, operating_points
from reasonrt.cli.speculation import bench
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.errors import ConfigError
from reasonrt.evals.journal import Record
from reasonrt.evals.report import Report
from reasonrt.evals.run import PolicySpec, RunSettings, evaluate
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
    assert rows["target"]["accuracy_minus_target"] == 0.0
    rsd = rows["rsd"]
    assert rsd["target_s_per_token"] == pytest.approx(0.002, rel=0.9)
    assert rsd["draft_s_per_token"] < rsd["target_s_per_token"]
    assert (rsd["errors"], rsd["at_once"]) == (0, pytest.approx(1.0, abs=0.1))
    assert rsd["escalation_rate"] == pytest.approx(2 / 5)
    assert 0.4 < rsd["draft_token_share"] < 0.9
    assert rsd["useless_escalation_rate"] == 0.0
    assert rsd["wasted_draft_tokens"] > 0
    assert rsd["speedup_low"] <= rsd["speedup_vs_target"] <= rsd["speedup_high"]
    assert rsd["predicted_speedup"] == pytest.approx(rsd["speedup_vs_target"], rel=0.5)
    assert 0 < rows["rsd, lock-step"]["wasted_draft_tokens"] <= rsd["wasted_draft_tokens"]
    plot_bench(list(rows.values()), report, "toy", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


async def test_rows_are_compared_with_arbitrage_where_it_was_timed(tmp_path: Path) -> None:
    arms = [arm if arm.name != "rsd" else Arm("arbitrage", arm.policy) for arm in ARMS]
    settings = RunSettings("toy", concurrency=1, block=4)
    report = await evaluate(make_runtime(), PROBLEMS, [arm.policy for arm in arms], settings, tmp_path)

    rows = {row["policy"]: row for row in bench_rows(arms, report, report, 1, alone_speeds([report]))}

    low, middle, high = (rows["target"][f"times_arbitrage_s{end}"] for end in ("_low", "", "_high"))
    assert low <= middle <= high
    assert middle == pytest.approx(rows["arbitrage"]["speedup_vs_target"])
    seconds = {name: row["seconds_per_problem"] for name, row in rows.items()}
    assert rows["draft"]["times_arbitrage_s"] == pytest.approx(seconds["draft"] / seconds["arbitrage"])
    assert rows["arbitrage"]["times_arbitrage_s"] == 1.0
    without = bench_rows(ARMS, report, report, 1, alone_speeds([report]))
    assert all("times_arbitrage_s" not in row for row in without)


def test_what_is_read_is_long_whatever_the_questions_are() -> None:
    short, long = (TaskProblem(name, question, "7") for name, question in (("s", "1 + 1 ="), ("l", "so " * 150)))

    read = reading_problems([short, long] * 30)

    assert len(read) == 20
    assert all(len(problem.question.split()) >= 100 for problem in read)
    assert read[1] == long


async def test_row_without_a_problem_in_common_claims_no_difference(tmp_path: Path) -> None:
    runtime, settings = make_runtime(), RunSettings("toy", concurrency=1)
    policies = [arm.policy for arm in ARMS]
    timed = await evaluate(runtime, PROBLEMS[:2], policies, settings, tmp_path / "timed")
    one, other = (Report("toy", timed.labels, [r for r in timed.records if r.problem == p]) for p in ("p0", "p1"))
    apart = Report("toy", timed.labels, [*one.of("target"), *(r for r in other.records if r.label != "target")])

    rows = bench_rows(ARMS, timed, apart, 1, alone_speeds([timed]))

    assert [row["accuracy_minus_target"] for row in rows] == [0.0, None, None, None]


async def test_arms_share_no_prefix_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    salts: dict[str, set[str]] = {}
    complete = Runtime.complete

    async def noted(self: Runtime, request: Request) -> Completion:
        salts.setdefault(f"{request.policy}{request.options}", set()).add(request.cache_salt)
        return await complete(self, request)

    monkeypatch.setattr(Runtime, "complete", noted)
    for at_once in (1, 2):
        settings = RunSettings("toy", concurrency=at_once)
        await evaluate(make_runtime(), PROBLEMS, [arm.policy for arm in ARMS], settings, tmp_path / str(at_once))

    assert len(salts) == len(ARMS)
    assert len(set.union(*salts.values())) == 2 * len(ARMS)


@pytest.mark.parametrize("name", ["target", "draft", "arbitrage, lockstep"])
def test_arms_that_cannot_be_skipped_are_refused_before_anything_runs(name: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot skip the arm '{name}'; it can be any of: .*arbitrage, lock-step"):
        bench(family=["arbitrage"], skip=["target, n-gram", name])


def swept(**accuracy_and_cost: tuple[float, int]) -> Report:
    """Ten problems per setting, of which a share is right, at so many target tokens each."""
    records = [
        Record(label, f"p{i}", "g", "7", 0.1, correct=i < 10 * accuracy, engine_tokens={"target": tokens})
        for label, (accuracy, tokens) in accuracy_and_cost.items()
        for i in range(10)
    ]
    return Report("toy", list(accuracy_and_cost), records)


def test_operating_point_is_the_cheapest_of_the_good_ones_or_else_the_best() -> None:
    first, second = (spec.label for spec in SWEEPS["entropy"])

    both_good = swept(**{"target": (0.8, 100), first: (0.8, 50), second: (0.9, 70)})
    one_good = swept(**{"target": (0.8, 100), first: (0.7, 10), second: (0.8, 70)})
    none_good = swept(**{"target": (0.8, 100), first: (0.6, 90), second: (0.5, 10)})

    assert operating_points(both_good, ["entropy"])["entropy"].label == first
    assert operating_points(one_good, ["entropy"])["entropy"].label == second
    assert operating_points(none_good, ["entropy"])["entropy"].label == first
