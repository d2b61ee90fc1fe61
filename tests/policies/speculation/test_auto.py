"""`auto`: which way a request goes, and that it says why."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from reasonrt import Completion, Request, Runtime
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine, continuing
from reasonrt.errors import ConfigError
from reasonrt.policies.speculation import auto
from reasonrt.policies.speculation.costs import Work
from reasonrt.ports import Capability
from reasonrt.routers.features import FEATURES
from reasonrt.routers.learned import RouterFile
from reasonrt.trees import Tree, Trees
from tests.policies.speculation.test_auto_under_load import simulate

GOOD = ["<think>\none\n\n", "two\n\n", "three\n\n", "four\n\n", "</think>\n\n", r"\boxed{seven}"]
BAD = [*GOOD[:2], "3hree\n\n", "4our\n\n", *GOOD[4:]]
DOUBTS_DIGITS = Tree((FEATURES.index("digit_share"), -1, -1), (0.01, 0.0, 0.0), (1, 0, 0), (2, 0, 0), (0.0, 0.0, 0.5))
CALIBRATED = {"calibration": [[0.0, 0.0]] * 9 + [[0.5, 0.5]]}


def make_runtime(
    folder: Path,
    draft: list[str] | None = GOOD,
    report: Any = CALIBRATED,
    speculative_s: float | None = 0.001,
    draft_s: float = 0.0001,
    target_s: float = 0.005,
    **options: Any,
) -> Runtime:
    file = folder / "router.json"
    RouterFile("features", {"draft": "draft", "target": "target"}, Trees(0.0, (DOUBTS_DIGITS,)), report=report).save(
        file
    )
    engines = {"target": ScriptedEngine("target", continuing("".join(GOOD)), seconds_per_token=target_s)}
    if speculative_s is not None:
        script = continuing("".join(GOOD))
        engines["target_speculative"] = ScriptedEngine(
            "target_speculative", script, seconds_per_token=speculative_s, fingerprint="target"
        )
    if draft is not None:
        engines["draft"] = ScriptedEngine("draft", continuing("".join(draft)), seconds_per_token=draft_s)
    return Runtime(engines, {"auto": {"router_file": str(file), **options}})


async def ask(runtime: Runtime, times: int = 1, **fields: Any) -> list[Completion]:
    return [await runtime.complete(Request.ask("?", "auto", **fields)) for _ in range(times)]


async def ask_in_a_time_of_its_own(runtime: Runtime, times: int) -> list[Completion]:
    """What takes long there is what the engines are told to, and not what the machine is busy with."""
    for pace in runtime.paces.values():
        pace.clock = asyncio.get_running_loop().time
    return await ask(runtime, times)


def way(completion: Completion) -> str:
    return str(completion.details["auto"]["way"])


def test_each_way_is_tried_once_and_then_the_fastest_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = make_runtime(tmp_path)

    completions = simulate(ask_in_a_time_of_its_own(runtime, 12), monkeypatch)

    assert {each.text for each in completions} == {"".join(GOOD)}
    ways = [way(each) for each in completions]
    assert set(ways[:4]) >= {"target", "speculative", "hand_over"}
    assert set(ways[6:]) <= {"hand_over", "arbitrage"}  # the draft is never doubted, and ten times as fast
    told = completions[-1].details["auto"]
    assert told["why"].startswith("predicted 0.0")
    assert told["predicted_s"][way(completions[-1])] == min(told["predicted_s"].values())
    assert told["predicted_s"]["target"] > 3 * told["predicted_s"]["speculative"]
    assert set(told["ratios"]) >= {"target", "speculative", "hand_over"}
    assert completions[-1].usage["target"].calls == completions[-1].usage["target_speculative"].calls == 0


def test_a_draft_that_costs_too_much_is_left_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as slow as the target, and doubted at its third step."""
    runtime = make_runtime(tmp_path, draft=BAD, draft_s=0.005)

    completions = simulate(ask_in_a_time_of_its_own(runtime, 12), monkeypatch)

    assert {each.text for each in completions} == {"".join(GOOD)}
    assert [way(each) for each in completions[6:]] == ["speculative"] * 6


async def test_without_anything_else_it_is_the_target(tmp_path: Path) -> None:
    runtime = make_runtime(tmp_path, draft=None, speculative_s=None)

    (completion,) = await ask(runtime)

    told = completion.details["auto"]
    assert (way(completion), completion.text) == ("target", "".join(GOOD))
    assert told["unavailable"] == {
        "speculative": "no engine has the role 'target_speculative'",
        "hand_over": "no engine has the role 'draft'",
        "arbitrage": "no engine has the role 'draft'",
    }


@pytest.mark.parametrize(
    ("options", "report", "reason"),
    [
        ({"max_loss": 0.0}, CALIBRATED, "max_loss is 0"),
        ({}, None, "was not measured on steps held out"),
    ],
)
async def test_a_draft_needs_a_loss_that_it_may_make_and_a_router_that_was_measured(
    tmp_path: Path, options: dict[str, Any], report: Any, reason: str
) -> None:
    runtime = make_runtime(tmp_path, report=report, **options)

    completions = await ask(runtime, 5)

    assert {way(each) for each in completions} == {"target", "speculative"}
    assert reason in completions[-1].details["auto"]["unavailable"]["hand_over"]
    assert reason in completions[-1].details["auto"]["why"]


async def test_a_router_of_another_pair_leaves_the_target_alone(tmp_path: Path) -> None:
    runtime = make_runtime(tmp_path)
    runtime.engines["draft"] = ScriptedEngine("draft", "x", fingerprint="another")

    completions = await ask(runtime, 3)

    assert {way(each) for each in completions} == {"target", "speculative"}
    assert "learned for another draft" in completions[-1].details["auto"]["why"]
    with pytest.raises(ConfigError, match="learned for another draft"):
        runtime.check_defaults()


async def test_an_engine_of_another_model_does_not_speculate_for_the_target(tmp_path: Path) -> None:
    runtime = make_runtime(tmp_path)
    runtime.engines["target_speculative"] = ScriptedEngine("target_speculative", "another text")

    completions = await ask(runtime, 8)

    assert {each.text for each in completions} == {"".join(GOOD)}
    assert "another model" in completions[-1].details["auto"]["unavailable"]["speculative"]


@pytest.mark.parametrize("case", ["vocabulary", "temperature"])
async def test_where_nothing_can_be_verified_it_hands_over(tmp_path: Path, case: str) -> None:
    class Other(CharacterTokenizer):
        fingerprint = "another"

    runtime = make_runtime(tmp_path, draft=BAD)
    draft, target = runtime.engines["draft"], runtime.engines["target"]
    assert isinstance(draft, ScriptedEngine)
    assert isinstance(target, ScriptedEngine)
    if case == "vocabulary":
        draft.tokenizer = Other()
    else:
        target.capabilities = target.capabilities - {Capability.VERIFY_SAMPLED}

    completions = await ask(runtime, 8, temperature=0.7 if case == "temperature" else 0.0)

    assert "arbitrage" in completions[-1].details["auto"]["unavailable"]
    assert "hand_over" in {way(each) for each in completions}
    assert "arbitrage" not in {way(each) for each in completions}
    assert all(each.details.get("verifications", 0) == 0 and not each.warnings for each in completions)


async def test_requests_that_begin_together_go_different_ways(tmp_path: Path) -> None:
    runtime = make_runtime(tmp_path)

    completions = await asyncio.gather(*(runtime.complete(Request.ask("?", "auto")) for _ in range(4)))

    assert len({way(each) for each in completions}) >= 3
    assert {each.details["auto"]["why"] for each in completions[:3]} == {"to learn how fast it is"}


@pytest.mark.parametrize(("dear", "expected"), [("arbitrage", "hand_over"), ("hand_over", "arbitrage")])
async def test_it_chooses_again_at_a_step_that_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dear: str, expected: str
) -> None:
    runtime = make_runtime(tmp_path, draft=BAD, speculative_s=None)
    await ask(runtime, 6)
    decided: list[float] = []
    seconds = auto._Solving._seconds

    def with_a_dear_way(self: Any, asked: Any, *args: Any, **named: Any) -> float | None:
        decided.append(named.get("written", 0))
        return 1e9 if asked == dear and named else seconds(self, asked, *args, **named)

    monkeypatch.setattr(auto._Solving, "_seconds", with_a_dear_way)
    monkeypatch.setattr(auto._Solving, "_choose", lambda self: ("hand_over", "because"))
    (completion,) = await ask(runtime)

    assert way(completion) == expected
    assert completion.details["handed_over"] == (expected == "hand_over")
    assert bool(completion.details["verifications"]) == (expected == "arbitrage")
    assert completion.text == "".join(GOOD)
    assert max(decided) > 0


async def test_a_resumed_request_writes_the_same_text(tmp_path: Path) -> None:
    runtime = make_runtime(tmp_path, draft=BAD)
    whole = (await ask(runtime, 8))[-1]

    for count in range(len(whole.steps)):
        (resumed,) = await ask(runtime, committed=whole.steps[:count])
        assert resumed.text == whole.text


async def test_what_a_way_asks_is_learned_with_older_requests_counting_less() -> None:
    shown = auto.Shown()

    for _ in range(30):
        shown.add(Work(1.0, 0.5), Work(0.5, 2.0), 1.0)
    for _ in range(8):
        shown.add(Work(3.0, 0.5), Work(0.5, 2.0), 1.0)

    assert shown.drafted.passes == pytest.approx(2.0, abs=0.15)
    others = shown.drafted.read, shown.targeted.passes, shown.targeted.read
    assert others == pytest.approx((0.5, 0.5, 2.0))


async def test_limits_keep_what_it_has_to_tell(tmp_path: Path) -> None:
    from reasonrt import FinishReason, Limits

    runtime = make_runtime(tmp_path)
    (completion,) = await ask(runtime, limits=Limits(max_tokens=5))

    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.details["auto"]["why"]


async def test_runtimes_learn_apart(tmp_path: Path) -> None:
    first, second = make_runtime(tmp_path), make_runtime(tmp_path)
    await ask(first, 6)

    (completion,) = await ask(second)

    assert completion.details["auto"]["why"] == "to learn how fast it is"
