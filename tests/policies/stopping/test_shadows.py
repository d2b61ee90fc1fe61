"""Shadows of served traffic: recorded as a recording would be, without gold, and good to certify on."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt import Completion, Request, Runtime
from reasonrt.calibration import Certificate, TraceSet, certify, read_traces, upper_threshold_rules
from reasonrt.calibration.stopping.candidates import without_gold
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.errors import CalibrationError
from reasonrt.evals.tasks import TaskProblem
from reasonrt.evals.trace_recording import TraceSettings, record_traces
from reasonrt.policies.stopping.probes import SUFFIX
from reasonrt.policies.stopping.schedule import Schedule
from reasonrt.policies.stopping.shadows import ShadowTraces
from reasonrt.policies.stopping.signals import Agreement
from reasonrt.policies.stopping.traces import Fingerprints, Trace
from reasonrt.types import Limits, Sampling

SCHEDULE = Schedule(first_tokens=16, block_tokens=16, growth=1.0, answer_tokens=8)
LIMITS = Limits(400)
NUM_STEPS = 10
PROBLEMS = [TaskProblem(f"p{index}", f"question {index}", "7") for index in range(80)]
RULES = upper_threshold_rules(Agreement(), [4, 3])


def script(prompt: str, sampling: Sampling) -> str:
    """Probes say another thing after each step up to the third, then 7."""
    text = "<think>\n" + "".join(f"step {index} goes on\n\n" for index in range(NUM_STEPS)) + "</think>\n\n\\boxed{7}"
    before, probed, begun = prompt.rpartition("[assistant] ")[2].partition(SUFFIX)
    done = before.count("step")
    return (
        f"{7 if done > 2 else done}}}"[len(begun) :]
        if probed and done < NUM_STEPS
        else continuing(text)(prompt, sampling)
    )


@pytest.fixture(scope="module")
async def traces(tmp_path_factory: pytest.TempPathFactory) -> TraceSet:
    settings = TraceSettings(schedule=SCHEDULE, limits=LIMITS)
    runtime = Runtime({"target": ScriptedEngine("target", script)})
    return await record_traces(runtime, PROBLEMS, settings, tmp_path_factory.mktemp("traces"))


@pytest.fixture(scope="module")
def certificate(traces: TraceSet) -> Certificate:
    return certify(traces, RULES, risk="lost_correct", alpha=0.1, delta=0.1)


@pytest.fixture
def stopping(certificate: Certificate, tmp_path: Path) -> dict[str, Any]:
    certificate.write(tmp_path / "c.json")
    return {"certificate": str(tmp_path / "c.json"), "shadow": 1, "shadow_traces": str(tmp_path / "shadows.jsonl")}


async def ask(stopping: dict[str, Any], question: str, limits: Limits = LIMITS, **settings: Any) -> Completion:
    runtime = Runtime({"target": ScriptedEngine("target", script, **settings)}, {"target": {"stopping": stopping}})
    return await runtime.complete(Request.ask(question, limits=limits))


async def test_a_shadow_is_the_trace_that_a_recording_would_have_made(
    stopping: dict[str, Any], traces: TraceSet, certificate: Certificate
) -> None:
    for problem in PROBLEMS:
        assert (await ask(stopping, problem.question)).content == r"\boxed{7}"

    shadows = read_traces(Path(stopping["shadow_traces"]))

    assert [trace.content_hash for trace in shadows] == [trace.content_hash for trace in traces]
    for shadow, trace in zip(shadows, traces, strict=True):
        renamed = replace(trace, problem_id=shadow.problem_id, gold=None)
        assert shadow == renamed
    assert shadows.fingerprints == replace(traces.fingerprints, is_cut_off=True)  # a server does not wait to know
    cheaper = upper_threshold_rules(Agreement(), [4, 3, 2])
    again = certify(shadows, cheaper, risk="lost_correct", alpha=0.1, delta=0.1)
    assert again.k == certify(without_gold(traces), cheaper, risk="lost_correct", alpha=0.1, delta=0.1).k
    with pytest.raises(CalibrationError, match=r"early_error.* 80 have no gold"):
        certify(shadows, RULES, risk="early_error", alpha=0.1, delta=0.1)


async def test_each_question_once_and_nothing_that_was_made_otherwise(stopping: dict[str, Any]) -> None:
    for question, limits in (("question 1", LIMITS), ("Question 1?", LIMITS), ("question 2", Limits(399))):
        await ask(stopping, question, limits)

    (trace,) = read_traces(Path(stopping["shadow_traces"]))
    assert trace.full_answer == "7"


async def test_after_a_dropped_probe_a_shadow_has_no_checkpoints(stopping: dict[str, Any]) -> None:
    """As the rule in service, which thinks to the end from there."""
    await ask(stopping | {"max_running": 0}, "question 1")

    (trace,) = read_traces(Path(stopping["shadow_traces"]))
    assert not trace.checkpoints


async def test_requests_that_are_stopped_are_not_recorded(stopping: dict[str, Any], tmp_path: Path) -> None:
    completion = await ask(stopping | {"shadow": 0}, "question 1")

    assert completion.details["stopping"]["action"] == "answer"
    assert [file.name for file in tmp_path.iterdir()] == ["c.json"]  # noqa: ASYNC240 (a test)


def test_several_processes_may_write_one_file(tmp_path: Path) -> None:
    path, prints = tmp_path / "s.jsonl", Fingerprints(model="m")
    first, second = ShadowTraces(path), ShadowTraces(path)

    added = [
        first.add(Trace("a", [], 1, "1"), prints),
        second.add(Trace("a", [], 1, "2"), prints),
        second.add(Trace("b", [], 1, "2"), Fingerprints(model="other")),
        second.add(Trace("b", [], 1, "2"), prints),
        first.add(Trace("b", [], 1, "3"), prints),
        first.add(Trace("c", [], 1, "3"), prints),
    ]

    assert added == [True, False, False, True, False, True]
    traces = read_traces(path)
    assert [(trace.problem_id, trace.full_answer) for trace in traces] == [("a", "1"), ("b", "2"), ("c", "3")]
    assert traces.fingerprints == prints
    path.unlink()
    assert first.add(Trace("a", [], 1, "1"), prints)
    assert len(read_traces(path)) == 1


async def test_where_nothing_can_be_recorded_the_request_is_served(
    stopping: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for question in ("question 1", "question 2"):
            completion = await ask(stopping | {"shadow_traces": str(tmp_path)}, question)

    assert completion.content == r"\boxed{7}"
    assert completion.details["stopping"]["is_shadow"]
    assert [record.message.partition(":")[0] for record in caplog.records] == [f"cannot record shadows in {tmp_path}"]


@settings(deadline=None, max_examples=30)
@given(room=st.integers(0, 1500))
def test_disk_that_is_full_at_any_byte_leaves_whole_traces(
    room: int, tmp_path_factory: pytest.TempPathFactory, disk_with: Any
) -> None:
    path = tmp_path_factory.mktemp("shadows") / "s.jsonl"
    shadows, prints = ShadowTraces(path), Fingerprints(model="m")

    with disk_with(room):
        added = [name for name in "abcdef" if shadows.add(Trace(name, [], 1, "1"), prints)]

    assert shadows.add(Trace("g", [], 1, "1"), prints)
    assert [trace.problem_id for trace in read_traces(path)] == [*added, "g"]


def test_half_a_trace_of_a_process_that_died_is_cut_off(tmp_path: Path) -> None:
    path, prints = tmp_path / "s.jsonl", Fingerprints(model="m")
    for name in "ab":
        assert ShadowTraces(path).add(Trace(name, [], 1, "1"), prints)
    path.write_bytes(path.read_bytes()[:-20])

    assert ShadowTraces(path).add(Trace("c", [], 1, "1"), prints)

    assert [trace.problem_id for trace in read_traces(path)] == ["a", "c"]
