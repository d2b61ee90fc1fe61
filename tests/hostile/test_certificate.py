"""What one API key asks decides nothing about a stopping certificate for another, over HTTP."""

import random
from typing import Any

import pytest
from attacks import OVER_THE_WIRE, Outcome, Target, settling

from reasonrt import Runtime
from reasonrt.calibration import certify, upper_threshold_rules
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.evals.tasks import TaskProblem
from reasonrt.evals.trace_recording import TraceSettings, record_traces
from reasonrt.policies.stopping.schedule import Schedule
from reasonrt.policies.stopping.signals import Agreement

KEYS = {"honest": "key-of-an-honest-caller", "other": "key-of-another-caller", "hostile": "key-of-a-hostile-caller"}


@pytest.fixture(scope="module")
async def certified(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("certified")
    problems = [TaskProblem(f"p{number}", f"question {number}", "7") for number in range(60)]
    schedule = TraceSettings(schedule=Schedule(first_tokens=16, block_tokens=16, growth=1.0, answer_tokens=8))
    runtime = Runtime({"target": ScriptedEngine("target", settling)})
    traces = await record_traces(runtime, problems, schedule, folder / "traces")
    rules = upper_threshold_rules(Agreement(), [5, 4, 3])
    certify(traces, rules, risk="lost_correct", alpha=0.1, delta=0.1).write(folder / "c.json")
    stopping = {"certificate": str(folder / "c.json"), "shadow": 1}
    engines = {"target": ScriptedEngine("target", settling)}
    return start(engines=engines, policies={"target": {"stopping": stopping}}, api_keys=KEYS)


def told(server: Any, key: str, question: int) -> dict[str, Any]:
    """What one key is told of stopping."""
    body = {"model": "target", "messages": [{"role": "user", "content": f"question {question}"}], "max_tokens": 400}
    answer = server.http().post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEYS[key]}"})
    found: dict[str, Any] = answer.json()["choices"][0]["reasonrt"]["details"]["stopping"]
    return found


async def test_one_key_switches_off_stopping_for_itself_alone(certified: Any) -> None:
    outcome = Outcome()
    before = [told(certified, key, number) for number in range(1, 4) for key in ("honest", "other")]

    target = Target(int(certified.url.rpartition(":")[2]), KEYS["hostile"])
    await OVER_THE_WIRE["8 one-sided votes"](target, random.Random(1), 20, outcome)

    assert not outcome.broken
    after = [told(certified, key, number) for number in range(4, 8) for key in ("honest", "other")]
    assert [found.get("fallback") for found in (*before, *after)] == [None] * 14
    assert "no longer holds" in told(certified, "hostile", 8)["fallback"]
    assert "reasonrt_stopping_alarm" in certified.http().get("/metrics").text
