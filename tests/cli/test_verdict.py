"""`reasonrt plan speculation` says what each way takes, and whether it pays."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reasonrt import Runtime
from reasonrt.cli.common import console
from reasonrt.cli.main import app
from reasonrt.cli.speculation import _verdict
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.evals.journal import Record
from reasonrt.evals.report import Report
from reasonrt.ports import Capability


def _report(**fields: Any) -> Report:
    return Report("sums", ["arbitrage"], [Record("arbitrage", f"p{n}", "", "1", 1.0, **fields) for n in range(4)])


@pytest.mark.parametrize(("verifications", "times", "does"), [(2, 1.5, "pays"), (0, 0.75, "does not pay")])
def test_the_share_that_was_spared_decides(verifications: int, times: float, does: str) -> None:
    report = _report(details={"steps": 8, "escalations": 2, "verifications": verifications})

    verdict = _verdict(report, lambda share, is_verified: share * (2 if is_verified else 1))

    assert (verdict["share"], verdict["predicted_speedup"], verdict["pays"]) == (0.75, times, times > 1)
    assert f"arbitrage {does} here: it does not ask the target about 75% of the steps" in verdict["says"]


def test_a_policy_that_does_not_speculate_does_not_pay() -> None:
    tally = {"steps": 8, "escalations": 0, "verifications": 0}

    verdict = _verdict(_report(warnings={"speculation": "no router"}, details=tally), lambda *_: 2.0)

    assert verdict["says"] == "arbitrage does not speculate with this pair: no router"
    assert not verdict["pays"]


GOOD = "<think>\none\n\ntwo\n\nthree\n\n</think>\n\n\\boxed{7}"


@pytest.mark.parametrize("verifies", [True, False])
def test_a_plan_has_every_way_and_promises_none_that_the_pair_cannot_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verifies: bool
) -> None:
    task, file = tmp_path / "two.jsonl", tmp_path / "plan.json"
    lines = ({"question": f"which, {n}?", "answer": "7"} for n in range(2))
    task.write_text("".join(json.dumps(line) + "\n" for line in lines))
    draft = ScriptedEngine("draft", continuing(GOOD.replace("two", "2wo")))
    target = ScriptedEngine("target", continuing(GOOD))
    if not verifies:
        target.capabilities = target.capabilities - {Capability.VERIFY_SAMPLED}
    reward = ScriptedEngine("reward", "", scores=lambda text: float(not text.rstrip().endswith("2wo")))
    runtime = Runtime({"draft": draft, "target": target, "reward": reward})
    monkeypatch.setattr(Runtime, "of", lambda *_, **__: runtime)
    monkeypatch.setattr(console, "width", 160)
    temperature = [] if verifies else ["--temperature", "0.7"]

    result = CliRunner().invoke(
        app,
        ["plan", "speculation", "--task", str(task), "--problems", "2", "--policy", "rsd@threshold=0.7,verify=true",
         "--json", str(file), *temperature],
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    plan = json.loads(file.read_text())
    ways = {row["way"]: row for row in plan["arms"]}
    assert {"target", "rsd@threshold=0.7,verify=true", "rsd@hand_over=true,threshold=0.7,verify=true"} <= set(ways)
    assert all(row["why_not"] or row["predicted_s"] > 0 for row in plan["arms"])
    assert set(plan["break_even_share"]) == ({"whole_steps", "verified"} if verifies else {"whole_steps"})
    replayed = [row for row in plan["arms"] if row["way"].startswith("token-level")]
    assert {bool(row["why_not"]) for row in replayed} == {not verifies}
    assert (
        "verified: not with this pair: engine 'target' verifies at temperature 0 alone" in result.output
    ) != verifies
    assert ("target verifies them" in result.output) == verifies
    assert (plan["token_agreement"] is not None) == verifies
