"""`reasonrt demo` from end to end, with engines that add numbers in the place of models."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from reasonrt.calibration import Certificate, TraceSet, certify
from reasonrt.calibration.stopping.synthetic import synthetic_traces
from reasonrt.cli import demo
from reasonrt.cli.canvas import Passes
from reasonrt.cli.demo_file import RIGHT, failed_logins
from reasonrt.cli.main import app
from reasonrt.config import Config, EngineConfig, load_config
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.evals.run import PolicySpec
from reasonrt.evals.tasks import TaskProblem
from reasonrt.evals.trace_recording import TraceSettings
from reasonrt.policies.stopping.certificate import check_matches
from reasonrt.policies.stopping.policy import PROBE, Stopping
from reasonrt.policies.stopping.rules import UpperThreshold
from reasonrt.policies.stopping.schedule import Schedule
from reasonrt.policies.stopping.signals import TokensUsed
from reasonrt.runtime import Runtime
from reasonrt.types import Sampling

LIMIT = 6
SCHEDULE = Schedule(first_tokens=8, growth=1.25, block_tokens=8, answer_tokens=24)


class Adder(ScriptedEngine):
    running_sets: ClassVar[set[str]] = set()

    def __init__(self, name: str) -> None:
        super().__init__(name, self.write)

    async def start(self) -> "Adder":
        assert not Adder.running_sets or self.name not in Adder.running_sets, "two sets of engines run"
        Adder.running_sets.add(self.name)
        return self

    async def aclose(self) -> None:
        Adder.running_sets.discard(self.name)

    @staticmethod
    def write(prompt: str, sampling: Sampling) -> str:
        question, _, written = prompt.rpartition("[user] ")[2].partition("[assistant] ")
        total = sum(map(int, re.findall(r"\d+", question)))
        if written.endswith("\\boxed{"):
            return f"{total}}}"
        thought = f"I add what stands there.\n\nThat is {total}.\n\nI look again: {total}."
        text = f"<think>\n{thought}\n\n</think>\n\n\\boxed{{{total}}}"
        return continuing(text)(prompt, sampling)


def problems(name: str, limit: int, split: str = "test") -> list[TaskProblem]:
    """One after those that are measured is in words; the answer of the second one is not what the engines find."""
    return [
        TaskProblem(f"p{n}", f"What is {n} + 2?", str(n + 2 + (n == 1)), "gsm/1" if n == LIMIT + 1 else "sums/1", True)
        for n in range(limit)
    ]


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The demo with these engines and a certificate for them; the list has what was solved, in its order."""
    solved: list[str] = []

    def runtime_of(config: Any, **_: Any) -> Runtime:
        assert not Adder.running_sets, "the engines before were not closed"
        engines: Mapping[str, EngineConfig] = config.engines
        return Runtime({role: Adder(role) for role in engines})

    complete = Runtime.solve_all

    def solve_all(self: Runtime, requests: Any, concurrency: int = 8) -> Any:
        assert concurrency == 1

        def noted() -> Any:
            for request in requests:
                solved.append(f"{request.policy} {'stopping' in request.options}")
                yield request

        return complete(self, noted(), concurrency)

    certificate = tmp_path / "certificate.json"
    _certificate(Runtime({"target": Adder("target")})).write(certificate)
    stopping = {"stopping": {"certificate": str(certificate), "shadow": 0}}
    arms = {"target": PolicySpec("target"), demo.STOPPING: PolicySpec("target", stopping)}
    monkeypatch.setattr(Runtime, "of", runtime_of)
    monkeypatch.setattr(Runtime, "solve_all", solve_all)
    monkeypatch.setattr(demo, "load_task", problems)
    monkeypatch.setattr(demo, "CERTIFICATE", certificate)
    monkeypatch.setattr(demo, "THINKING", demo.Comparison("stopping", "an adder", arms))
    monkeypatch.setattr(
        demo,
        "DIFFUSION",
        demo.Comparison("diffusion", "an adder", {"block_diffusion": PolicySpec("draft", {"engine": "diffusion"})}),
    )
    monkeypatch.setattr(
        demo, "record_passes", lambda model, question, threshold: Passes(0, 4, chr, [*map(ord, "\\boxed{9}")])
    )
    return solved


def _certificate(runtime: Runtime) -> Certificate:
    """Of a rule that stops at the first checkpoint, on made-up traces that say that they are of this engine."""
    request = TraceSettings(schedule=SCHEDULE, limits=demo.LIMITS).request("?", "?")
    prepared = runtime.prepare(request)
    assert isinstance(prepared.policy, Stopping)
    of = prepared.policy.fingerprints(prepared.request, prepared.engines)
    traces = TraceSet(synthetic_traces("honest", 200).traces, of)
    return certify(traces, [UpperThreshold(TokensUsed(), 1.0)], risk="lost_correct", alpha=0.97, delta=0.1)


def _shown(*arguments: str) -> tuple[str, dict[str, Any]]:
    done = CliRunner().invoke(
        app, ["demo", "--limit", str(LIMIT), "--json", "-", *arguments], env={"COLUMNS": "200"}, catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return done.stderr, json.loads(done.stdout)


def test_each_part_has_rows_with_the_ratio_to_its_target(scripted: list[str], tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"

    told, found = _shown("--plot", str(picture))

    rows = {(row["part"], row["policy"]): row for row in found["rows"]}
    assert list(rows) == [
        ("speculation", "target"), ("speculation", "arbitrage"), ("speculation", "draft"),
        ("stopping", "target"), ("stopping", "certified stopping"), ("diffusion", "block_diffusion"),
    ]  # fmt: skip
    for (part, _), row in rows.items():
        assert row["n"] == LIMIT
        assert row["accuracy"] == pytest.approx((LIMIT - 1) / LIMIT)
        assert ("ratio_to_target" in row) == (part != "diffusion")
        if part != "diffusion":
            assert row["ratio_to_target_low"] <= row["ratio_to_target"] <= row["ratio_to_target_high"]
    stopped = rows["stopping", "certified stopping"]
    assert stopped["warnings"] == {}
    assert stopped["tokens_per_problem"] < rows["stopping", "target"]["tokens_per_problem"]
    assert found["program_search"]["correct"]
    assert f"certified stopping: {LIMIT - 1} of {LIMIT} right in " in told
    assert "6 times as wide" in told
    assert picture.stat().st_size > 10_000
    assert not Adder.running_sets


def test_policies_take_turns_and_none_is_measured_first_always(scripted: list[str]) -> None:
    _shown()

    first, second = scripted[: 3 * LIMIT], scripted[3 * LIMIT : 5 * LIMIT]
    assert Counter(first) == dict.fromkeys(("target False", "arbitrage False", "draft False"), LIMIT)
    assert Counter(second) == dict.fromkeys(("target False", "target True"), LIMIT)
    assert first[0] != first[3 * demo._BLOCK]


def test_what_is_solved_aloud_says_where_the_rule_stops_and_what_is_wrong(
    scripted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, _ = _shown()
    lines = told.splitlines()

    stop = next(n for n, line in enumerate(lines) if "-- the rule stops here" in line)
    assert "9, right" in lines[stop]
    assert "9 tokens in 0 passes: 9, right" in told
    assert "I look again: 9." in "".join(lines[stop:])
    assert "I look again: 9." not in "".join(lines[stop - 2 : stop])
    assert "wrong:" not in told

    monkeypatch.setattr(demo, "load_task", lambda *arguments: [_wrong(each) for each in problems(*arguments)])
    assert "9, wrong: the right answer is 1009" in " ".join(_shown()[0].split())


def _wrong(problem: TaskProblem) -> TaskProblem:
    return TaskProblem(problem.id, problem.question, str(1000 + int(problem.answer)), problem.group, True)


def test_who_fails_most_often_is_seen_only_over_the_whole_file() -> None:
    failed = [
        line.split("Failed password for ")[1].split()[0] for line in failed_logins().splitlines() if "Failed" in line
    ]

    assert Counter(failed).most_common(1)[0][0] == RIGHT
    assert Counter(failed[:1000]).most_common(1)[0][0] != RIGHT
    assert len(failed_logins()) > 4_000_000


def test_the_certificate_that_ships_is_for_the_model_that_ships_and_promises_what_the_demo_says() -> None:
    certificate = Certificate.read(demo.CERTIFICATE)

    assert (certificate.risk, certificate.alpha, certificate.delta) == ("lost_correct", 0.05, 0.1)
    assert certificate.attempt.number == 1
    assert certificate.fingerprints.max_tokens == demo.LIMITS.max_tokens
    assert json.loads(certificate.fingerprints.policy)["name"] == "target"


EXAMPLE = Path(__file__).parents[2] / "examples" / "stopping.yaml"


@pytest.mark.parametrize("engines", [demo._thinking, lambda: load_config(EXAMPLE).engines])
def test_the_certificate_that_ships_is_served_whatever_this_machine_computes_in(engines: Any) -> None:
    """A precision that was left open would be this machine's, and the certificate would hold on some alone."""
    spec, certificate = demo.THINKING.policies[demo.STOPPING], Certificate.read(demo.CERTIFICATE)
    of = certificate.fingerprints
    runtime = Runtime.of(Config(engines={"target": engines()["target"]}), policies=[(spec.name, spec.options)])
    prepared = runtime.prepare(spec.request("?", limits=demo.LIMITS))
    assert isinstance(prepared.policy, Stopping)

    asked = prepared.request, prepared.engines
    check_matches(certificate, prepared.policy.fingerprints(*asked, Schedule.from_json(of.schedule), of.probes[PROBE]))
