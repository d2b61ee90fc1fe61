"""Recorded traces: what a full run says on its way, resumable, and the same as what is served."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reasonrt import Limits, Runtime
from reasonrt.calibration import TraceSet, read_traces, write_traces
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.errors import ConfigError, EvalError
from reasonrt.evals.tasks import TaskProblem
from reasonrt.evals.trace_recording import TraceSettings, record_traces
from reasonrt.policies.stopping.probes import SUFFIX
from reasonrt.policies.stopping.schedule import Schedule
from reasonrt.policies.stopping.traces import problem_hash
from reasonrt.types import Sampling

PROBLEMS = [TaskProblem(f"p{index}", f"question {index}", "0.5", group="a") for index in range(6)]
STEPS = [f"step {index} goes on\n\n" for index in range(8)]
FULL = "<think>\n" + "".join(STEPS) + "</think>\n\n\\boxed{1/2}"


def script(prompt: str, sampling: Sampling) -> str:
    before, probed, begun = prompt.rpartition("[assistant] ")[2].partition(SUFFIX)
    if probed and "step 7" not in before:
        return (r"\frac{1}{2}}" if "step 3" in before else "3}")[len(begun) :]
    return continuing(FULL)(prompt, sampling)


def make_runtime(**settings: Any) -> Runtime:
    return Runtime({"target": ScriptedEngine("target", script, **settings)})


async def record(
    out: Path, runtime: Runtime | None = None, problems: Sequence[TaskProblem] = PROBLEMS, **changes: Any
) -> TraceSet:
    schedule = Schedule(first_tokens=16, block_tokens=16, growth=1.0, answer_tokens=16)
    settings: dict[str, Any] = {"schedule": schedule, "limits": Limits(400)}
    return await record_traces(runtime or make_runtime(), problems, TraceSettings(**settings | changes), out)


async def test_trace_holds_the_checkpoints_and_the_full_answer(tmp_path: Path) -> None:
    traces = await record(tmp_path)

    assert [trace.problem_id for trace in traces] == [problem.id for problem in PROBLEMS]
    for trace, problem in zip(traces, PROBLEMS, strict=True):
        assert trace.content_hash == problem_hash(problem.question)
        assert trace.full_tokens == len(ScriptedEngine("", "").tokenizer.encode(FULL)) + 1  # the end token
        assert {point.answer for point in trace.checkpoints} == {"3", r"\frac{1}{2}", "1/2"}
        assert (trace.full_answer, trace.gold) == ("1/2", "0.5")  # as they were written
        assert list(trace.right) == sorted(trace.right) == [*trace.kept, True]
        assert any(trace.kept)
        assert not all(trace.kept)
        assert {point.probe_tokens for point in trace.checkpoints} == {2, 12, 4}  # behind the last step it says 1/2
        assert set(trace.checkpoints[0].signals) == {
            "confidence", "geometric_confidence", "entropy_after_thinking", "end_of_thinking",
        }  # fmt: skip


async def test_traces_name_what_they_were_recorded_with(tmp_path: Path) -> None:
    traces = await record(tmp_path, temperature=0.5)
    prints = traces.fingerprints

    assert prints.model == "target"
    assert prints.tokenizer == "characters"
    assert json.loads(prints.engine) == {"target": "target"}
    assert json.loads(prints.sampling) == {"temperature": 0.5, "top_p": 1.0}
    assert json.loads(prints.policy) == {"name": "target", "options": {"engine": "target"}}
    assert json.loads(prints.schedule)["block_tokens"] == 16
    assert ScriptedEngine("", "").tokenizer.decode(prints.probes["answer"]) == SUFFIX
    write_traces(tmp_path / "traces.jsonl", traces)
    assert read_traces(tmp_path / "traces.jsonl") == traces


async def test_text_that_was_cut_off_has_no_full_answer(tmp_path: Path) -> None:
    traces = await record(tmp_path, limits=Limits(100))

    assert {trace.full_answer for trace in traces} == {None}
    assert all(trace.full_tokens <= 100 and trace.checkpoints for trace in traces)


async def test_recording_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = await record(tmp_path)
    file = tmp_path / "journal.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    engine = ScriptedEngine("target", script)

    again = await record(tmp_path, Runtime({"target": engine}))

    assert again == whole
    assert engine.generated_tokens > 0
    assert len(file.read_text().splitlines()) == 1 + len(PROBLEMS)


async def test_recording_grows_in_its_folder(tmp_path: Path) -> None:
    """Also one of before, whose head names the hash of all of its problems; and fewer are what was recorded of them."""
    few, engine = PROBLEMS[:3], ScriptedEngine("target", script)
    first = await record(tmp_path, problems=few)
    file = tmp_path / "journal.jsonl"
    head, *lines = file.read_text().splitlines()
    value = json.loads(head)
    value["settings"]["problems"] = "5d41402abc4b2a76"
    file.write_text("\n".join([json.dumps(value), *lines, ""]))

    assert await record(tmp_path, Runtime({"target": engine}), problems=few) == first
    assert engine.generated_tokens == 0
    whole = await record(tmp_path, Runtime({"target": engine}))

    assert whole.traces[:3] == first.traces
    assert len(whole) == len(file.read_text().splitlines()) - 1 == 6
    spent = engine.generated_tokens
    assert await record(tmp_path, Runtime({"target": engine}), problems=few) == first
    assert engine.generated_tokens == spent
    for another in (replace(PROBLEMS[0], question="question x"), replace(PROBLEMS[0], answer="9")):
        with pytest.raises(EvalError, match="holds another problem of the name 'p0'"):
            await record(tmp_path, problems=[another])


async def test_recording_of_other_settings_is_refused(tmp_path: Path) -> None:
    await record(tmp_path)

    with pytest.raises(EvalError, match="fingerprints"):
        await record(tmp_path, temperature=0.5)


async def test_duplicates_are_refused_before_anything_runs(tmp_path: Path) -> None:
    engine = ScriptedEngine("target", script)
    twice = [*PROBLEMS, TaskProblem("p6", "question  3", "7")]

    with pytest.raises(EvalError, match=r"problem 'p6' is there twice \(also as 'p3'\)"):
        await record_traces(Runtime({"target": engine}), twice, TraceSettings(), tmp_path)

    assert engine.generated_tokens == 0


async def test_missing_engine_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no engine has the role 'draft'; there are target"):
        await record(tmp_path, policy="arbitrage")


async def test_request_that_fails_twice_ends_the_recording_and_keeps_the_rest(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"problem p\d failed twice: .* shorten it"):
        await record(tmp_path, make_runtime(max_model_len=20))


async def test_what_the_limit_cuts_off_is_recorded_as_cut_off(tmp_path: Path) -> None:
    """And the traces say at how many tokens: who may think longer may come to another answer."""
    whole, cut = await record(tmp_path / "a"), await record(tmp_path / "b", limits=Limits(60))

    assert not whole.fingerprints.is_cut_off
    assert (cut.fingerprints.max_tokens, cut.fingerprints.is_cut_off) == (60, True)
    assert all(trace.full_answer is None and trace.full_tokens == 60 for trace in cut)


async def test_a_deadline_of_serving_does_not_end_a_recording(tmp_path: Path) -> None:
    traces = await record(tmp_path, make_runtime(seconds_per_token=0.001), limits=Limits(400, deadline_s=0.05))

    assert all(trace.full_answer for trace in traces)
