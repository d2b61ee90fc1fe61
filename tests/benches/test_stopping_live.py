"""The live part of the stopping bench, on a scripted engine: every arm runs, and its row says what it did."""

from pathlib import Path
from typing import Any

import pytest

from reasonrt import Limits, Runtime
from reasonrt.benches.stopping_live import LiveSettings, certify_families, live_arms, measure_live
from reasonrt.calibration import Certificate, TraceSet
from reasonrt.calibration.stopping.candidates import candidates, splits
from reasonrt.calibration.stopping.certification import certify, verify
from reasonrt.calibration.stopping.families import published_rules
from reasonrt.calibration.stopping.ledger import Ledger
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.evals.tasks import TaskProblem
from reasonrt.evals.trace_recording import TraceSettings, record_traces
from reasonrt.policies.stopping.probes import SUFFIX
from reasonrt.policies.stopping.schedule import Schedule
from reasonrt.types import Sampling

NUM_STEPS = 14
SETTINGS = TraceSettings(schedule=Schedule(16, 1.0, 16, 8), limits=Limits(600))


def problems(first: int, last: int) -> list[TaskProblem]:
    return [TaskProblem(f"p{index}", f"question {index}", "7", is_exact=True) for index in range(first, last)]


def script(prompt: str, sampling: Sampling) -> str:
    """After some steps, how many depends on the question, probes say 7; before, how many steps there are."""
    question = int(prompt.partition("question ")[2].partition("\n")[0])
    steps = "".join(f"step {index} goes on{'.' * (question % 5)}\n\n" for index in range(NUM_STEPS))
    before, probed, begun = prompt.rpartition("[assistant] ")[2].partition(SUFFIX)
    done = before.count("step")
    if probed and done < NUM_STEPS:
        return f"{7 if done > question % 4 else done + 10}}}"[len(begun) :]
    return continuing(f"<think>\n{steps}</think>\n\n\\boxed{{7}}")(prompt, sampling)


def make_runtime() -> Runtime:
    return Runtime({"target": ScriptedEngine("target", script, chunk_tokens=1)})


@pytest.fixture(scope="module")
async def traces(tmp_path_factory: pytest.TempPathFactory) -> TraceSet:
    return await record_traces(make_runtime(), problems(0, 150), SETTINGS, tmp_path_factory.mktemp("traces"))


@pytest.fixture(scope="module")
def certificates(traces: TraceSet) -> dict[str, Certificate | str]:
    return certify_families(splits(traces), 0.1, 0.1)


async def test_rows_of_all_arms(traces: TraceSet, certificates: dict[str, Certificate | str], tmp_path: Path) -> None:
    settings = LiveSettings(tmp_path, "made up", Limits(600), problems=20, timed=4, replayed=10, levels=(1, 4))

    found = await measure_live("scripted", make_runtime(), problems(150, 170), traces, certificates, settings)

    rows: dict[str, dict[str, Any]] = {row["arm"]: row for row in found["rows"]}
    assert {"to the end", "all, certified", "answer_convergence, certified", "DEER, as published"} <= set(rows)
    full, best = rows["to the end"], rows["all, certified"]
    assert (full["risk"], full["net_saving"], full["stopped"], full["accuracy"]) == (0, 0, 0, 1)
    assert best["n"] == 20
    assert (best["alpha"], best["ok"]) == (0.1, True)
    assert "ok" not in full
    assert best["net_saving"] > 0.2
    assert best["stopped"] > 0.9
    assert 0 < best["probe_share"] < 0.5
    assert all(row["fallbacks"] == row["dropped_probes"] == 0 for row in rows.values())
    assert all(0 <= row["risk_low"] <= row["risk"] <= row["risk_high"] for row in rows.values())
    assert best["seconds_saving"] == best["seconds_saving_at_4"]
    assert "seconds_per_problem_at_1" in best
    assert {row["model"] for row in rows.values()} == {"scripted"}
    assert (full["family"], best["family"]) == (None, "all")
    assert found["replay"] == {"n": 10, "same_stop": 10, "same_text": 10, "same_stop_of_same_text": 10}


def test_families_on_the_traces_of_a_user_are_one_try_in_their_ledger(traces: TraceSet, tmp_path: Path) -> None:
    parts, ledger, names = splits(traces), Ledger(tmp_path / "ledger.jsonl"), ("dynasor", "budget", "learned_length")

    found = certify_families(parts, 0.2, 0.1, families=names, ledger=ledger)

    certified = [each for each in found.values() if isinstance(each, Certificate)]
    assert certified
    assert {(each.attempt.number, len(each.attempt.levels)) for each in certified} == {(1, 3)}
    for each in certified:
        verify(each, parts.certify, ledger)
    assert certify_families(parts, 0.2, 0.1, families=names, ledger=ledger) == found  # the same again is the same try
    made = candidates(parts, ["dynasor"], "lost_correct")
    how: dict[str, Any] = {"risk": "lost_correct", "alpha": 0.2}
    after = certify(
        parts.certify, made.rules, delta=0.1, order=made.order(**how), train=made.train, ledger=ledger, **how
    )
    assert after.attempt.number == 2


def test_families_that_cannot_be_certified_say_why(traces: TraceSet) -> None:
    found = certify_families(splits(traces), 0.001, 0.1)

    assert all(isinstance(reason, str) and "takes at least 2302 problems" in reason for reason in found.values())


def test_arms_of_infeasible_families_are_left_out(traces: TraceSet, tmp_path: Path) -> None:
    arms = live_arms({"deer": "too few problems"}, traces, tmp_path)

    assert [arm.name for arm in arms] == ["to the end", *(f"{name}, as published" for name in published_rules())]
