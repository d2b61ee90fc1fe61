"""Recorded pairs: what both models write from the same history, and what it leads to."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from reasonrt import Runtime
from reasonrt.calibration.routers.step_pairs import RecordedProblem
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.errors import EvalError
from reasonrt.evals.step_recording import RecordingSettings, record_pairs
from reasonrt.evals.tasks import TaskProblem
from reasonrt.types import Sampling

GOOD = ["<think>\none\n\n", "two\n\n", "three\n\n", "</think>\n\n", r"\boxed{7}"]
BAD = ["<think>\none\n\n", "2wo!\n\n", "three\n\n", "</think>\n\n", r"\boxed{7}"]
PROBLEMS = [TaskProblem(f"p{index}", f"question {index}", "7", is_exact=True) for index in range(6)]


def target_script(prompt: str, sampling: Sampling) -> str:
    """A target that cannot save what the draft has spoilt."""
    answer = r"\boxed{8}" if "2wo" in prompt else r"\boxed{7}"
    return continuing("".join([*GOOD[:-1], answer]))(prompt, sampling)


def make_runtime() -> Runtime:
    draft = ScriptedEngine("draft", continuing("".join(BAD)))
    return Runtime({"draft": draft, "target": ScriptedEngine("target", target_script)})


async def record(out: Path, draft_share: float = 0.0, rollouts: int = 1) -> list[RecordedProblem]:
    settings = RecordingSettings(draft_share=draft_share, rollouts=rollouts)
    return await record_pairs(make_runtime(), PROBLEMS, settings, out)


@pytest.mark.parametrize("rollouts", [1, 3])
async def test_advantage_is_what_the_drafts_step_costs(tmp_path: Path, rollouts: int) -> None:
    records = await record(tmp_path, rollouts=rollouts)

    for found in records:
        pairs = [pair for _, pair in found.situations()]
        assert [pair.advantage for pair in pairs] == [0, 1, 0, 0, 0]
        assert [pair.taken for pair in pairs] == ["draft", "target", "draft", "draft", "draft"]
        assert (pairs[1].draft, pairs[1].target) == ("2wo!\n\n", "two\n\n")
        assert len(pairs[1].logprobs) == len(pairs[1].top_logprobs) == pairs[1].draft_tokens


def lucky_target(prompt: str, sampling: Sampling) -> str:
    """Greedily it goes on well, and every sample goes astray at its second step."""
    own = GOOD if sampling.temperature == 0.0 or "two" in prompt else [GOOD[0], "twxx\n\n", *GOOD[2:-1], r"\boxed{8}"]
    return continuing("".join(own))(prompt, sampling)


async def test_value_of_the_targets_step_is_sampled_behind_that_step(tmp_path: Path) -> None:
    """Behind `two` every completion is right; from the prefix before it only the greedy one of four."""
    runtime = make_runtime()
    runtime.engines["target"] = ScriptedEngine("target", lucky_target)

    records = await record_pairs(runtime, PROBLEMS, RecordingSettings(draft_share=0.0, rollouts=4), tmp_path)

    for found in records:
        pairs = [pair for _, pair in found.situations()]
        assert [pair.target_value for pair in pairs] == [0.25, 1, 1, 1, 1]
        assert [pair.draft_value for pair in pairs] == [0.25, 0.25, 1, 1, 1]


async def test_history_of_a_pair_is_what_was_taken_before_it(tmp_path: Path) -> None:
    for found in await record(tmp_path, draft_share=0.5):
        said = ""
        for transcript, pair in found.situations():
            assert transcript.text == said
            said += pair.draft if pair.taken == "draft" else pair.target


async def test_after_a_spoilt_step_nothing_is_left_to_gain(tmp_path: Path) -> None:
    records = await record(tmp_path, draft_share=1.0)

    for found in records:
        pairs = [pair for _, pair in found.situations()]
        assert [pair.advantage for pair in pairs] == [0, 1, 0, 0, -1]  # at last the draft alone writes 7
        assert {pair.taken for pair in pairs} == {"draft"}


async def test_recording_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = await record(tmp_path)
    file = tmp_path / "journal.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4]))

    again = await record(tmp_path)

    assert sorted(found.problem for found in again) == sorted(found.problem for found in whole)
    assert len(file.read_text().splitlines()) == len(lines)
    assert json.loads(lines[0])["settings"]["draft"]["engines"] == {"draft": "draft"}


async def test_recording_of_other_settings_is_refused(tmp_path: Path) -> None:
    await record(tmp_path)

    with pytest.raises(EvalError, match="rollouts"):
        await record(tmp_path, rollouts=2)
    with pytest.raises(EvalError, match="draft_share"):
        await record(tmp_path, draft_share=0.5)
    retrained = make_runtime()
    retrained.engines["draft"].fingerprint = "retrained"  # type: ignore[misc]
    with pytest.raises(EvalError, match=r"draft\.engines\.draft 'draft', this one has 'retrained'"):
        await record_pairs(retrained, PROBLEMS, RecordingSettings(draft_share=0.0), tmp_path)


async def test_recording_grows_and_its_questions_stay(tmp_path: Path) -> None:
    runtime, settings = make_runtime(), RecordingSettings()
    await record_pairs(runtime, PROBLEMS[:2], settings, tmp_path)
    calls = runtime.engines["draft"].generated_tokens  # type: ignore[attr-defined]

    assert len(await record_pairs(runtime, PROBLEMS, settings, tmp_path)) == len(PROBLEMS)
    assert runtime.engines["draft"].generated_tokens == len(PROBLEMS) / 2 * calls  # type: ignore[attr-defined]
    assert len(await record_pairs(runtime, PROBLEMS[:3], settings, tmp_path)) == 3
    with pytest.raises(EvalError, match="another question of p0; give another --out"):
        await record_pairs(runtime, [replace(PROBLEMS[0], question="another")], settings, tmp_path)
