"""The evaluation loop on scripted engines: resuming, failing, reporting, drawing."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reasonrt.cli.main import app
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine
from reasonrt.errors import ConfigError, EvalError
from reasonrt.evals.report import plot
from reasonrt.evals.run import PolicySpec, RunSettings, check_run, evaluate
from reasonrt.evals.tasks import TaskProblem
from reasonrt.runtime import Runtime
from reasonrt.types import Limits, Sampling

PROBLEMS = [TaskProblem(f"p{index}", f"What is {index} + 1?", str(index + 1), f"g/{index % 2}") for index in range(50)]
SETTINGS = RunSettings("sums", Limits(max_tokens=500), concurrency=4)
BOTH = [PolicySpec("target"), PolicySpec("draft")]


def adder(name: str, wrong_from: int) -> ScriptedEngine:
    def script(text: str, sampling: Sampling) -> str:
        number = int(text.split("What is ")[1].split(" ")[0])
        return f"<think>\nI add one.\n\n</think>\n\n\\boxed{{{number + 1 if number < wrong_from else 0}}}"

    return ScriptedEngine(name, script)


def runtime() -> Runtime:
    return Runtime({"target": adder("target", 40), "draft": adder("draft", 25)})


async def test_rows_say_what_happened(tmp_path: Path) -> None:
    report = await evaluate(runtime(), PROBLEMS, BOTH, SETTINGS, tmp_path)

    target, draft = report.rows()
    assert (target["policy"], target["n"], target["accuracy"]) == ("target", 50, 0.8)
    assert draft["accuracy"] == 0.5
    assert target["accuracy_low"] < 0.8 < target["accuracy_high"]
    assert target["engine_tokens"] == {"target": sum(record.tokens for record in report.of("target"))}
    (pair,) = report.paired()
    assert pair["difference"] == pytest.approx(0.3)
    assert pair["difference_low"] < 0.3 < pair["difference_high"]
    assert {(row["group"], row["n"]) for row in report.groups()} == {("g/0", 25), ("g/1", 25)}


async def test_whole_texts_are_kept_where_they_are_asked_for_and_a_run_may_change_its_mind(tmp_path: Path) -> None:
    keeping = replace(SETTINGS, keeps_texts=True)
    await evaluate(runtime(), PROBLEMS[:3], BOTH[:1], SETTINGS, tmp_path)
    report = await evaluate(runtime(), PROBLEMS[:5], BOTH[:1], SETTINGS, tmp_path / "other")
    kept = await evaluate(runtime(), PROBLEMS[:3], BOTH, keeping, tmp_path)

    assert {record.whole_text for record in (*report.of("target"), *kept.of("target"))} == {""}
    assert [record.whole_text for record in kept.of("draft")] == [
        f"<think>\nI add one.\n\n</think>\n\n{record.text}" for record in kept.of("draft")
    ]


async def test_problems_draw_with_seeds_of_their_own_and_policies_with_the_same_ones(tmp_path: Path) -> None:
    """With one seed for all, like distributions would draw alike, and problems would not be independent."""
    drawn: dict[str, dict[str, int | None]] = {"a": {}, "b": {}, "c": {}}

    def seeing(run: str) -> Runtime:
        def script(text: str, sampling: Sampling) -> str:
            drawn[run][text] = sampling.seed
            return "7"

        return Runtime({"target": ScriptedEngine("target", script)})

    for run, seed in (("a", 3), ("b", 3), ("c", 4)):
        settings = RunSettings("sums", Limits(max_tokens=50), seed=seed)
        await evaluate(seeing(run), PROBLEMS, [PolicySpec("target")], settings, tmp_path / run)

    assert len(set(drawn["a"].values())) == len(PROBLEMS)
    assert drawn["a"] == drawn["b"]
    assert not set(drawn["a"].values()) & set(drawn["c"].values())


async def test_a_run_stopped_in_the_middle_goes_on_with_nothing_done_twice(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    seen = []

    def stop_after_two_blocks(record: object) -> None:
        seen.append(record)
        if len(seen) > 40:
            raise KilledError

    with pytest.raises(KilledError):
        await evaluate(runtime(), PROBLEMS, BOTH, SETTINGS, tmp_path, on_record=stop_after_two_blocks)
    second = runtime()
    report = await evaluate(second, PROBLEMS, BOTH, SETTINGS, tmp_path)

    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    keys = [(line["label"], line["problem"]) for line in map(json.loads, lines) if "label" in line]
    assert len(keys) == len(set(keys)) == 100
    assert [row["n"] for row in report.rows()] == [50, 50]
    assert sum(engine.generated_tokens for engine in second.engines.values()) < sum(  # type: ignore[attr-defined]
        record.tokens for record in report.records
    )


async def test_policies_alternate_problem_by_problem_and_no_place_is_ever_empty(tmp_path: Path) -> None:
    """Problems of unequal length: from the first to the last, none begins where nothing else runs."""
    beside: list[int] = []

    def engine(name: str) -> ScriptedEngine:
        def script(text: str, sampling: Sampling) -> str:
            beside.append(sum(each.running for each in engines.values()))
            return "so " * (4 + int(text.split("What is ")[1].split(" ")[0]) * 7 % 20 + 3 * (name == "draft"))

        return ScriptedEngine(name, script, chunk_tokens=1)  # which takes turns of the event loop, and no time

    engines = {name: engine(name) for name in ("target", "draft")}
    order: list[tuple[str, str]] = []
    settings = RunSettings("sums", Limits(max_tokens=500), concurrency=1)
    await evaluate(
        runtime(), PROBLEMS[:4], BOTH, settings, tmp_path / "1", on_record=lambda r: order.append((r.label, r.problem))
    )
    await evaluate(Runtime(engines), PROBLEMS, BOTH, SETTINGS, tmp_path / "4")

    assert [label for label, _ in order] == ["target", "draft", "draft", "target"] * 2
    assert [problem for _, problem in order] == [f"p{index}" for index in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert len(beside) == 2 * len(PROBLEMS)
    assert beside.count(0) == 1  # the first; of blocks of 20, each would begin so


async def test_policies_that_are_timed_have_the_engines_for_themselves(tmp_path: Path) -> None:
    settings = RunSettings("sums", Limits(max_tokens=500), concurrency=4, block=20)
    order: list[str] = []

    await evaluate(runtime(), PROBLEMS, BOTH, settings, tmp_path, on_record=lambda record: order.append(record.label))

    turns = [("target", 20), ("draft", 20), ("draft", 20), ("target", 20), ("target", 10), ("draft", 10)]
    assert order == [label for label, num in turns for _ in range(num)]


async def test_grading_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def grade(*answers: object) -> bool:
        time.sleep(0.1)
        return True

    solving, left = runtime(), list[int]()
    await evaluate(solving, PROBLEMS[:20], BOTH[:1], SETTINGS, tmp_path / "all")
    whole = sum(engine.generated_tokens for engine in solving.engines.values())  # type: ignore[attr-defined]

    monkeypatch.setattr("reasonrt.evals.run.same_answer", grade)
    again = runtime()
    engine = again.engines["target"]
    await evaluate(
        again, PROBLEMS[:20], BOTH[:1], SETTINGS, tmp_path / "again",
        on_record=lambda record: left.append(whole - engine.generated_tokens),  # type: ignore[attr-defined]
    )  # fmt: skip

    assert left[14] == 0  # of 20, of which four at a time were solved


async def test_shares_of_the_wall_clock_add_up_to_it(tmp_path: Path) -> None:
    slow = runtime()
    for engine in slow.engines.values():
        engine.seconds_per_token = 1e-4  # type: ignore[attr-defined]

    started = time.perf_counter()
    report = await evaluate(slow, PROBLEMS[:12], BOTH, SETTINGS, tmp_path)
    wall_s = time.perf_counter() - started

    shares_s = [record.share_s for record in report.records]
    assert all(0 < share_s <= record.seconds + 1 for share_s, record in zip(shares_s, report.records, strict=True))
    assert sum(shares_s) <= wall_s


async def test_other_settings_do_not_mix_into_a_run(tmp_path: Path) -> None:
    await evaluate(runtime(), PROBLEMS[:5], BOTH, SETTINGS, tmp_path)

    with pytest.raises(EvalError, match=r"problems .*give another --out"):
        await evaluate(runtime(), PROBLEMS[:6], BOTH, SETTINGS, tmp_path)


def bound_runtime(options: dict[str, Any], fingerprint: str = "weights") -> Runtime:
    draft = adder("draft", 25)
    draft.fingerprint = fingerprint
    return Runtime({"target": adder("target", 40), "draft": draft}, {"self_consistency": options})


VOTE = [PolicySpec("self_consistency", {"temperature": 0.5})]


@pytest.mark.parametrize(
    ("second", "policies", "difference"),
    [
        (bound_runtime({"k": 3}), VOTE, "of self_consistency@temperature=0.5 with options.k 2, this one has 3"),
        (bound_runtime({}), VOTE, "with options.k 2, this one has 5"),
        (bound_runtime({"k": 2}, "retrained"), [PolicySpec("draft")], "with engines.draft 'weights', .* 'retrained'"),
    ],
)
async def test_changed_defaults_or_weights_do_not_mix_into_a_run(
    tmp_path: Path, second: Runtime, policies: list[PolicySpec], difference: str
) -> None:
    await evaluate(bound_runtime({"k": 2}), PROBLEMS[:2], [*VOTE, PolicySpec("draft")], SETTINGS, tmp_path)

    with pytest.raises(EvalError, match=f"{difference}; give another --out"):
        await evaluate(second, PROBLEMS[:2], policies, SETTINGS, tmp_path)


async def test_policy_joins_a_run_whatever_became_of_engines_that_it_does_not_use(tmp_path: Path) -> None:
    await evaluate(bound_runtime({"k": 2}), PROBLEMS[:2], [PolicySpec("draft")], SETTINGS, tmp_path)

    report = await evaluate(bound_runtime({"k": 2}, "retrained"), PROBLEMS[:2], VOTE, SETTINGS, tmp_path)

    assert [row["n"] for row in report.rows()] == [2]


async def test_changed_file_that_an_option_names_does_not_mix_into_a_run(tmp_path: Path) -> None:
    router = tmp_path / "router.json"
    router.write_text("{}")
    policy = [PolicySpec("arbitrage", {"router_file": str(router)})]
    await evaluate(runtime(), PROBLEMS[:1], policy, SETTINGS, tmp_path)

    router.write_text("[]")

    with pytest.raises(EvalError, match=r"files\..*router\.json '.*give another --out"):
        await evaluate(runtime(), PROBLEMS[:1], policy, SETTINGS, tmp_path)


async def test_a_request_that_fails_counts_as_wrong_and_is_named(tmp_path: Path) -> None:
    small = Runtime({"target": adder("target", 99)})
    small.engines["target"].max_model_len = 60  # type: ignore[misc]
    long = TaskProblem("long", "What is 1 + 1? " + "Think. " * 20, "2")

    report = await evaluate(small, [long, PROBLEMS[0]], BOTH[:1], RunSettings("x", Limits(20)), tmp_path)

    (row,) = report.rows()
    assert row["errors"] == 1
    assert "max_model_len" in next(record.error for record in report.records if record.problem == "long")


async def test_the_same_policy_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="name each policy once, got target, target"):
        await evaluate(runtime(), PROBLEMS, [PolicySpec("target")] * 2, SETTINGS, tmp_path)


async def test_plot_is_a_picture(tmp_path: Path) -> None:
    report = await evaluate(runtime(), PROBLEMS[:10], BOTH, SETTINGS, tmp_path)

    plot(report, tmp_path / "plot.png")

    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


async def test_what_would_fail_on_every_problem_is_refused_before_the_first(tmp_path: Path) -> None:
    alone = Runtime({"target": adder("target", 99)})

    with pytest.raises(ConfigError, match="no engine has the role 'draft'; there are target"):
        await evaluate(alone, PROBLEMS, BOTH, SETTINGS, tmp_path)
    assert not (tmp_path / "journal.jsonl").exists()


async def test_a_dead_engine_costs_no_answers(tmp_path: Path) -> None:
    mortal = adder("target", 99)
    mortal.seconds_per_token = 1e-4
    seen = []

    def kill_once(record: object) -> None:
        seen.append(record)
        if len(seen) == 7:
            mortal.kill()

    report = await evaluate(Runtime({"target": mortal}), PROBLEMS, BOTH[:1], SETTINGS, tmp_path, on_record=kill_once)

    (row,) = report.rows()
    assert (row["n"], row["accuracy"], row["errors"]) == (50, 1.0, 0)


@pytest.mark.parametrize(("max_tokens", "accuracy"), [(25, 0.0), (500, 1.0)])
async def test_thinking_that_was_cut_off_is_not_graded(
    tmp_path: Path, opening_tokenizer: CharacterTokenizer, max_tokens: int, accuracy: float
) -> None:
    """Its last number would be right."""
    engine = ScriptedEngine("target", "I add: it is 7\n\nIt is 7.\n\n</think>\n\n\\boxed{7}")
    engine.tokenizer = opening_tokenizer
    settings = RunSettings("sums", Limits(max_tokens=max_tokens))

    report = await evaluate(Runtime({"target": engine}), [PROBLEMS[6]], BOTH[:1], settings, tmp_path)

    assert [row["accuracy"] for row in report.rows()] == [accuracy]
    assert [record.answer for record in report.records] == ["7" if accuracy else ""]


async def test_a_folder_of_other_engines_is_refused_before_anything_starts(tmp_path: Path) -> None:
    await evaluate(runtime(), PROBLEMS[:4], BOTH, SETTINGS, tmp_path)
    other = Runtime({"target": adder("target", 40), "draft": ScriptedEngine("draft", "", fingerprint="another")})

    check_run(other, PROBLEMS[:4], BOTH[:1], SETTINGS, tmp_path)  # it needs the same engines
    check_run(other, PROBLEMS[:4], [PolicySpec("draft", {"engine": "target"})], SETTINGS, tmp_path)
    with pytest.raises(EvalError, match=r"of a run of draft with engines\.draft .* give another --out"):
        check_run(other, PROBLEMS[:4], BOTH, SETTINGS, tmp_path)


def test_the_command_refuses_before_it_starts_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unstarted(ScriptedEngine):
        async def start(self) -> Any:
            raise AssertionError("it was started")

    (tmp_path / "journal.jsonl").write_text("something else\n")
    (tmp_path / "mine.jsonl").write_text('{"question": "1 + 1?", "answer": 2}')
    monkeypatch.setattr(Runtime, "of", lambda *_, **__: Runtime({"target": Unstarted("target", "")}))

    done = CliRunner().invoke(
        app, ["eval", "--task", str(tmp_path / "mine.jsonl"), "--policy", "target", "--out", str(tmp_path)]
    )

    assert isinstance(done.exception, EvalError)
