"""The speculation bench on scripted engines: what its rows say, and which settings it goes on with."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt import Completion, Limits, Request, Runtime
from reasonrt.benches.agreement import TokenAgreement, step_agreement, token_agreement
from reasonrt.benches.speculation import Pair, alone_speeds, bench_rows, planned_arms, reading_problems
from reasonrt.benches.speculation_arms import (
    BY_LOAD,
    SWEEPS,
    Arm,
    left_out,
    operating_points,
    timing_arms,
    token_level,
    tokens_ahead_of,
)
from reasonrt.benches.speculation_plot import plot_bench
from reasonrt.cli.speculation import bench
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine, continuing
from reasonrt.errors import ConfigError
from reasonrt.evals.journal import Record
from reasonrt.evals.report import Report
from reasonrt.evals.run import PolicySpec, RunSettings, evaluate
from reasonrt.evals.tasks import TaskProblem
from reasonrt.policies.speculation.costs import Speed

GOOD = "<think>\none\n\ntwo\n\nthree\n\n</think>\n\n\\boxed{7}"
BAD = GOOD.replace("two", "2wo").replace("7", "8")
PROBLEMS = [TaskProblem(f"p{index}", f"question {index}", "7", is_exact=True) for index in range(8)]
ARMS = [
    Arm("target", PolicySpec("target")),
    Arm("draft", PolicySpec("draft")),
    Arm("rsd", PolicySpec("rsd", {"threshold": 0.7})),
    Arm("rsd, lock-step", PolicySpec("rsd", {"threshold": 0.7, "look_ahead": 0})),
]
SECONDS_PER_TOKEN = {"draft": 0.0002, "target": 0.002, "reward": 0.0}


def make_runtime() -> Runtime:
    draft_s, target_s = SECONDS_PER_TOKEN["draft"], SECONDS_PER_TOKEN["target"]
    return Runtime(
        {
            "draft": ScriptedEngine("draft", continuing(BAD), seconds_per_token=draft_s, chunk_tokens=1),
            "target": ScriptedEngine("target", continuing(GOOD), seconds_per_token=target_s, chunk_tokens=1),
            "reward": ScriptedEngine(
                "reward", "", scores=lambda text: float(not text.rstrip().endswith(("2wo", "8}")))
            ),
        }
    )


def as_if_idle(report: Report) -> Report:
    """As on a machine on which nothing but the tokens of the engines takes time."""

    def timed(record: Record) -> Record:
        seconds = sum(SECONDS_PER_TOKEN[name] * tokens for name, tokens in record.engine_tokens.items())
        return replace(record, seconds=seconds, share_s=seconds, details=record.details | {"router_s": 0.0})

    return Report(report.task, report.labels, [timed(record) for record in report.records])


async def test_rows_say_who_wrote_what_and_how_fast(tmp_path: Path) -> None:
    runtime = make_runtime()
    settings = RunSettings("toy", concurrency=1, block=4)
    measured = await evaluate(runtime, PROBLEMS, [arm.policy for arm in ARMS], settings, tmp_path)
    assert all(record.share_s > 0 for record in measured.records)
    assert sum(record.cpu_s for record in measured.records) > 0
    report = as_if_idle(measured)

    pair = Pair("toy", {}, 0.9, 0.8, is_shared=False)
    rows = {row["policy"]: row for row in bench_rows(ARMS, report, report, 1, alone_speeds([report]), pair)}

    assert {(row["pair"], row["token_agreement"], row["step_agreement"]) for row in rows.values()} == {
        ("toy", 0.9, 0.8)
    }
    cpu_s = [record.cpu_s for record in report.of("target")]
    assert rows["target"]["cpu_s_per_problem"] == pytest.approx(sum(cpu_s) / len(PROBLEMS))
    assert rows["target"]["accuracy"] == rows["rsd"]["accuracy"] == 1.0
    assert (rows["draft"]["accuracy"], rows["draft"]["accuracy_minus_target"]) == (0.0, -1.0)
    assert rows["target"]["speedup_vs_target"] == pytest.approx(1.0)
    assert rows["target"]["predicted_speedup"] is None
    assert rows["target"]["accuracy_minus_target"] == 0.0
    rsd = rows["rsd"]
    assert (rsd["target_s_per_token"], rsd["draft_s_per_token"]) == pytest.approx((0.002, 0.0002))
    assert (rsd["errors"], rsd["at_once"]) == (0, pytest.approx(1.0))
    assert rsd["escalation_rate"] == pytest.approx(2 / 5)
    assert 0.4 < rsd["draft_token_share"] < 0.9
    assert rsd["useless_escalation_rate"] == 0.0
    assert rsd["wasted_draft_tokens"] > 0
    assert rsd["speedup_vs_target"] > 1
    assert 0.999 * rsd["speedup_low"] < rsd["speedup_vs_target"] < 1.001 * rsd["speedup_high"]
    assert rsd["predicted_speedup"] == pytest.approx(rsd["speedup_vs_target"])
    assert 0 < rows["rsd, lock-step"]["wasted_draft_tokens"] <= rsd["wasted_draft_tokens"]
    plot_bench(list(rows.values()), report, "toy", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


async def test_rows_are_compared_with_arbitrage_where_it_was_timed(tmp_path: Path) -> None:
    arms = [arm if arm.name != "rsd" else Arm("arbitrage", arm.policy) for arm in ARMS]
    settings = RunSettings("toy", concurrency=1, block=4)
    report = await evaluate(make_runtime(), PROBLEMS, [arm.policy for arm in arms], settings, tmp_path)

    rows = {row["policy"]: row for row in bench_rows(arms, report, report, 1, alone_speeds([report]), Pair())}

    low, middle, high = (rows["target"][f"times_arbitrage_s{end}"] for end in ("_low", "", "_high"))
    assert low <= middle <= high
    assert middle == pytest.approx(rows["arbitrage"]["speedup_vs_target"])
    seconds = {name: row["seconds_per_problem"] for name, row in rows.items()}
    assert rows["draft"]["times_arbitrage_s"] == pytest.approx(seconds["draft"] / seconds["arbitrage"])
    assert rows["arbitrage"]["times_arbitrage_s"] == 1.0
    without = bench_rows(ARMS, report, report, 1, alone_speeds([report]), Pair())
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

    rows = bench_rows(ARMS, timed, apart, 1, alone_speeds([timed]), Pair())

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


def test_arms_that_are_not_named_are_left_out() -> None:
    roles = list(token_level([4, 16]))

    left = left_out(
        ["arbitrage", "hand-over"], roles, ["auto"], ["auto", "target, 16 ahead", f"hand-over, to {BY_LOAD}"]
    )

    points = {family: SWEEPS[family][0] for family in ("arbitrage", "hand-over")}
    timed = [arm.name for arm in timing_arms(points, roles, left)]
    assert timed == ["target", "draft", "target, 16 ahead", f"hand-over, to {BY_LOAD}"]
    with pytest.raises(ConfigError, match=r"cannot single out the arm 'target, 8 ahead'; it can be any of: .*auto"):
        left_out(["arbitrage"], roles, (), ["target, 8 ahead"])


def test_tokens_ahead_follow_the_load_where_vllm_is_told_so() -> None:
    engines = token_level([4])

    assert [tokens_ahead_of(engines["target, 4 ahead"], n) for n in (1, 8, 32)] == [4, 4, 4]
    assert [tokens_ahead_of(engines[BY_LOAD], n) for n in (1, 8, 32)] == [16, 8, 4]
    assert engines[BY_LOAD]["num_speculative_tokens"] == 16


@given(
    st.lists(st.booleans(), min_size=1, max_size=60),
    st.integers(1, 20),
)
def test_passes_of_token_level_speculation_are_replayed(agrees: list[bool], ahead: int) -> None:
    """Against the plain rule: a pass takes the drafted tokens up to the first that differs, and one of its own."""
    runs, begin = [], 0
    for place, agreed in enumerate([*agrees, False]):
        if not agreed:
            runs.append(place - begin)
            begin = place + 1
    passes = place = 0
    while place <= len(agrees):
        drafted = agrees[place : place + ahead]
        place += next((n for n, agreed in enumerate(drafted) if not agreed), len(drafted)) + 1
        passes += 1

    replayed = TokenAgreement(tuple(runs), len(agrees)).passes_per_token(ahead)

    assert replayed == pytest.approx(passes / len(agrees))


async def test_agreement_of_a_pair_counts_tokens_and_values_of_steps(tmp_path: Path) -> None:
    runtime = make_runtime()
    length = len(GOOD.replace("\n\n", "|"))

    tokens = await token_agreement(runtime, PROBLEMS, Limits())
    steps = await step_agreement(runtime, PROBLEMS, 640, tmp_path)

    assert tokens.share == pytest.approx((length + 1 - 2) / (length + 1))  # with the end token; two characters differ
    assert tokens.num_tokens == len(PROBLEMS) * (length + 1)
    assert steps == pytest.approx(4 / 5)  # a wrong step in the middle does no harm to a script, a wrong answer does


async def test_agreement_across_vocabularies_is_not_claimed() -> None:
    class Other(CharacterTokenizer):
        fingerprint = "another"

    runtime = make_runtime()
    runtime.engines["draft"].tokenizer = Other()  # type: ignore[misc]

    found = await token_agreement(runtime, PROBLEMS, Limits())

    assert found.share is found.passes_per_token(4) is None
    assert "different vocabularies" in found.why_not


async def test_a_plan_has_every_way_with_its_time_or_why_not(tmp_path: Path) -> None:
    runtime = make_runtime()
    specs = [PolicySpec("rsd", {"threshold": 0.7}), PolicySpec("rsd", {"threshold": 0.7, "hand_over": True})]
    settings = RunSettings("toy", concurrency=1, block=4)
    alone = await evaluate(runtime, PROBLEMS, [PolicySpec("target"), PolicySpec("draft")], settings, tmp_path / "alone")
    speculated = await evaluate(runtime, PROBLEMS, specs, settings, tmp_path / "speculated")
    alone, speculated = as_if_idle(alone), as_if_idle(speculated)
    agreement = await token_agreement(runtime, PROBLEMS, Limits())
    speeds = {role: Speed(SECONDS_PER_TOKEN[role]) for role in ("draft", "target")}

    rows = {row["way"]: row for row in planned_arms(alone, speculated, speeds, agreement, is_shared=False)}
    unlike = planned_arms(alone, speculated, speeds, TokenAgreement(why_not="they differ"), is_shared=False)

    assert rows["target"]["speedup"] == 1.0
    ahead = [rows[f"token-level, {n} ahead"]["predicted_s"] for n in (2, 4, 8, 16, 32)]
    assert ahead[0] > ahead[-1]
    for spec in specs:
        assert rows[spec.label]["speedup"] > 1
        assert rows[spec.label]["predicted_s"] == pytest.approx(rows[spec.label]["measured_s"])
    (handed,) = (row for way, row in rows.items() if way.startswith(specs[1].label) and way.endswith("ahead"))
    assert handed["predicted_s"] < rows[specs[1].label]["predicted_s"]
    assert {row["why_not"] for row in unlike if row["way"].startswith("token-level")} == {"they differ"}
    assert not [row for row in unlike if row["way"].endswith("ahead") and not row["why_not"]]


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
