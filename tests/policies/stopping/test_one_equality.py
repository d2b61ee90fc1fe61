"""One equality: what tasks count as right, risks can lose, votes count together, and rules see agree."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from reasonrt import Limits, Request, Runtime
from reasonrt.calibration import replay, upper_threshold_rules
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.evals.run import PolicySpec, RunSettings, evaluate
from reasonrt.evals.tasks import TaskProblem
from reasonrt.evals.trace_recording import TraceSettings, record_traces
from reasonrt.policies.stopping.probes import SUFFIX
from reasonrt.policies.stopping.replay import Outcome
from reasonrt.policies.stopping.risks import RISKS
from reasonrt.policies.stopping.rules import Action
from reasonrt.policies.stopping.schedule import Schedule
from reasonrt.policies.stopping.signals import Agreement
from reasonrt.policies.stopping.traces import Checkpoint, Trace
from reasonrt.types import Sampling

PAIRS = [
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("12", "12 cm"),
    ("0.5", r"50\%"),
    (r"\frac{3}{4}", "0.75"),
    (r"\sqrt{12}", r"2\sqrt{3}"),
    ("x = 5", "5"),
    (r"(1, \frac{1}{2})", "(1, 0.5)"),
    (r"90^\circ", "90"),
]
SCHEDULE = Schedule(first_tokens=8, block_tokens=4, growth=1.0, answer_tokens=30)


def saying(answers: Sequence[str], final: str) -> Any:
    """A model that says `answers` in turn when it is probed, and `final` at its end."""
    text = "<think>\n" + "".join(f"step {index}\n\n" for index in range(8)) + f"</think>\n\n\\boxed{{{final}}}"

    def script(prompt: str, sampling: Sampling) -> str:
        before, probed, begun = prompt.rpartition("[assistant] ")[2].partition(SUFFIX)
        if probed and "step 7" not in before:
            return f"{answers[before.count('step') % len(answers)]}}}"[len(begun) :]
        return continuing(text)(prompt, sampling)

    return script


@pytest.mark.parametrize(("gold", "answer"), PAIRS)
async def test_tasks_count_it_as_right(gold: str, answer: str, tmp_path: Path) -> None:
    problems = [TaskProblem("same", "?", gold), TaskProblem("other", "??", "77")]
    runtime = Runtime({"target": ScriptedEngine("target", rf"\boxed{{{answer}}}")})

    report = await evaluate(runtime, problems, [PolicySpec("target")], RunSettings("t"), tmp_path)

    assert {record.problem: record.correct for record in report.records} == {"same": True, "other": False}


@pytest.mark.parametrize(("gold", "answer"), PAIRS)
def test_risks_count_losing_it(gold: str, answer: str) -> None:
    trace = Trace("p", [Checkpoint(1, "77"), Checkpoint(2, answer)], 3, answer, gold)
    stops = [Outcome(Action.ANSWER, index, point.answer, 0) for index, point in enumerate(trace.checkpoints)]

    wrong, right = ({name: risk.loss(trace, stop) for name, risk in RISKS.items()} for stop in stops)

    assert (wrong["lost_correct"], wrong["early_error"], wrong["selective_error"]) == (True, True, True)
    assert not any(right.values())
    assert RISKS["premature_give_up"].loss(trace, Outcome(Action.GIVE_UP, 0, None, 0))


@pytest.mark.parametrize(("a", "b"), PAIRS)
async def test_votes_count_them_together(a: str, b: str) -> None:
    texts = [rf"\boxed{{{a}}}", r"\boxed{77}", rf"\boxed{{{b}}}", r"\boxed{78}"]
    left = iter(texts)
    runtime = Runtime({"target": ScriptedEngine("target", lambda prompt, sampling: next(left))})
    completion = await runtime.complete(Request.ask("?", "self_consistency", options={"k": 4}, seed=0))

    assert completion.details["votes"] == 2
    assert completion.text in (texts[0], texts[2])


@pytest.mark.parametrize(("a", "b"), PAIRS)
async def test_rules_see_them_agree_in_replay_and_live(a: str, b: str, tmp_path: Path) -> None:
    runtime = Runtime({"target": ScriptedEngine("target", saying(["77", a, b, "78"], b))})
    settings = TraceSettings(schedule=SCHEDULE, limits=Limits(600))
    (trace,) = await record_traces(runtime, [TaskProblem("p", "?", a)], settings, tmp_path)
    (rule,) = upper_threshold_rules(Agreement(), [2])

    live = await runtime.complete(Request.ask("?", options={"stopping": {"rule": rule, "schedule": SCHEDULE}}))

    outcome = replay(rule, trace)
    assert outcome.index is not None
    assert live.details["stopping"]["tokens"] == trace.checkpoints[outcome.index].tokens
    assert trace.checkpoints[outcome.index].answer == b
    assert (trace.right[outcome.index], trace.right[-1]) == (True, True)
