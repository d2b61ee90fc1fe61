"""Recorded candidates: all of each question, once, and what they were recorded with."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reasonrt import Runtime
from reasonrt.config import PluginConfig
from reasonrt.engines.build import build_engine
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import EvalError
from reasonrt.evals.contexts import ContextProblem, generate
from reasonrt.evals.program_recording import ProgramSettings, RecordedQuestion, record_programs
from reasonrt.programs.trials import Status
from reasonrt.types import Sampling

PROBLEMS = generate("needle_words", 6, 4000, 0)
SETTINGS = ProgramSettings({"k": 3})


@pytest.fixture(scope="module", autouse=True)
def hosted_package() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "engines" / "hosted"))
        yield


def make_runtime(**settings: Any) -> Runtime:
    return Runtime({"target": build_engine("target", PluginConfig(kind="plugin", name="needles", settings=settings))})


def generated(runtime: Runtime) -> int:
    engine = runtime.engines["target"]
    assert isinstance(engine, ScriptedEngine)
    return engine.generated_tokens


async def record(
    out: Path, problems: list[ContextProblem] = PROBLEMS, settings: ProgramSettings = SETTINGS, **engine: Any
) -> tuple[list[RecordedQuestion], int]:
    """What is recorded, and the tokens that it took."""
    runtime = make_runtime(**engine)
    async with runtime:
        return await record_programs(runtime, problems, settings, out), generated(runtime)


@pytest.fixture(scope="module")
async def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[RecordedQuestion], int, Path]:
    out = tmp_path_factory.mktemp("recorded")
    return *await record(out), out


async def test_every_candidate_of_every_question_is_kept(recorded: Any) -> None:
    records, _, _ = recorded

    assert [found.problem for found in records] == [problem.id for problem in PROBLEMS]
    for found, problem in zip(records, PROBLEMS, strict=True):
        right = int(problem.answer)
        trials = found.candidates()
        assert [trial.index for trial in trials] == [0, 1, 2]
        assert {trial.status for trial in trials} == {Status.FINAL}  # none is cancelled, whatever the others say
        assert {trial.answer for trial in trials} <= {str(right), str(right + 1)}
        for trial in trials:
            (confidence,) = trial.confidences
            assert (confidence > 0.5) == (trial.answer == str(right))
        assert (found.answer, found.kind, found.task) == (problem.answer, "number", "needle_words")
        assert found.context_tokens == pytest.approx(problem.num_characters, rel=0.01)  # a character is a token here
        assert len(found.trace_hash) == 64
    assert len({trial.answer == record.answer for record in records for trial in record.candidates()}) == 2


async def test_what_a_question_cost_is_kept_with_it(recorded: Any) -> None:
    records, num_tokens, _ = recorded

    spent = [usage["target"] for found in records for usage in (found.usage, found.direct_usage)]
    assert sum(each["generated"] for each in spent) == num_tokens
    for found in records:
        written = sum(trial.num_tokens for trial in found.candidates())
        assert 0 < written <= found.usage["target"]["generated"] <= written + found.usage["target"]["calls"]
        assert min(min(found.usage["target"].values()), found.seconds, found.direct_seconds) >= 0


async def test_direct_call_is_asked_beside(recorded: Any) -> None:
    records, _, _ = recorded

    halves = [problem.documents[0].text.index(problem.answer) < problem.num_characters / 2 for problem in PROBLEMS]
    assert [found.direct == found.answer for found in records] == halves
    assert len(set(halves)) == 2


async def test_direct_call_sees_both_ends_of_what_does_not_fit(tmp_path: Path) -> None:
    shown: list[str] = []
    problem = generate("needle_words", 1, 20_000, 0)[0]

    def say(prompt: str, sampling: Sampling) -> str:
        shown.append(prompt)
        return "7"

    runtime = Runtime({"target": ScriptedEngine("target", say, max_model_len=8000)})
    async with runtime:
        (found,) = await record_programs(runtime, [problem], ProgramSettings({"k": 1, "max_turns": 1}), tmp_path)

    text = problem.documents[0].text
    prompt = shown[-1]
    assert found.direct == "7"
    assert text[:500] in prompt
    assert text[-500:] in prompt
    assert len(prompt) > 5000


async def test_question_that_alone_does_not_fit_is_told(tmp_path: Path) -> None:
    problem = replace(PROBLEMS[0], question="why? " * 1000)

    with pytest.raises(EvalError, match="failed twice: the question does not fit the model"):
        await record(tmp_path, [problem], replace(SETTINGS, options={"k": 1}), max_model_len=3000)


async def test_recording_continues_where_it_was(recorded: Any, tmp_path: Path) -> None:
    whole, num_tokens, out = recorded
    lines = (out / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:50])  # killed while it wrote

    again, num_more = await record(tmp_path)

    assert [found.candidates() for found in again] == [found.candidates() for found in whole]
    assert [found.trace_hash for found in again] == [found.trace_hash for found in whole]
    assert 0 < num_more < num_tokens
    assert len((tmp_path / "journal.jsonl").read_bytes().splitlines()) == len(lines)
    assert (await record(tmp_path))[1] == 0
    assert len((await record(tmp_path, PROBLEMS[:2]))[0]) == 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (replace(SETTINGS, options={"k": 4}), "options.k 3, this one has 4"),
        (replace(SETTINGS, options={"k": 3, "confidence": False}), "options.confidence"),
        (replace(SETTINGS, seed=1), "seed 0, this one has 1"),
        (replace(SETTINGS, has_direct=False), "direct 64, this one has None"),
        (replace(SETTINGS, direct_window=256), "direct_window None, this one has 256"),
    ],
)
async def test_recording_of_other_settings_is_refused(recorded: Any, settings: ProgramSettings, told: str) -> None:
    _, _, out = recorded

    with pytest.raises(EvalError, match=told):
        await record(out, settings=settings)


async def test_recording_of_another_model_is_refused(recorded: Any) -> None:
    _, _, out = recorded

    with pytest.raises(EvalError, match=r"engines\.target 'target', this one has 'retrained'"):
        await record(out, fingerprint="retrained")


async def test_journal_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text(json.dumps({"format": "reasonrt-journal/2", "settings": {}}) + "\n{}\n")

    with pytest.raises(EvalError, match=r"journal\.jsonl, line 2: .*Field required; remove the line"):
        await record(tmp_path)


class Dying(ScriptedEngine):
    """Dies at its first question."""

    num_calls = 0

    def reply(self, prompt: Any, sampling: Any) -> str:
        self.num_calls += 1
        if self.num_calls <= self.dies:
            self.kill()
        return str(super().reply(prompt, sampling))

    dies = 1


async def test_engine_that_dies_once_costs_a_second_attempt_and_twice_the_recording(tmp_path: Path) -> None:
    program = "```repl\nfinal(7)\n```\n"
    settings = ProgramSettings({"k": 1}, has_direct=False, concurrency=1)
    engine = Dying("target", program)
    async with Runtime({"target": engine}) as runtime:
        assert len(await record_programs(runtime, PROBLEMS[:2], settings, tmp_path / "once")) == 2
        engine.num_calls, engine.dies = 0, 10**6
        with pytest.raises(EvalError, match="failed twice"):
            await record_programs(runtime, PROBLEMS[:2], settings, tmp_path / "ever")
