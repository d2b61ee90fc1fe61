"""The thinking is free, the answer is written under its structure, by one engine."""

from typing import Any

import pytest

from reasonrt import Completion, FinishReason, Limits, Request, Runtime
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import RequestError
from reasonrt.ports import Capability
from reasonrt.types import Sampling

THOUGHT = "<think>\nOne.\n\nTwo.\n\n</think>"
CHOICE = {"choice": ["7", "8"]}
POLICIES = ["target", "self_consistency", "arbitrage", "draft"]


def script(thought: str) -> Any:
    """Writes the thought and then a free answer, or, under a structure, the target's choice or the draft's."""

    def write(prompt: str, sampling: Sampling) -> str:
        text = prompt.rpartition("[assistant] ")[2]
        if sampling.structure:
            assert sampling.structure == CHOICE
            assert text == "" or text.rstrip().endswith("</think>")
            return "7"
        return f"{thought}free"[len(text) :]

    return write


async def solve(thought: str, policy: str = "target", **fields: Any) -> Completion:
    runtime = Runtime({role: ScriptedEngine(role, script(thought)) for role in ("draft", "target")})
    return await runtime.complete(Request.ask("?", policy, structure=CHOICE, **fields))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("between", ["", "\n", "\n\n"])
async def test_answer_has_its_structure_and_the_thinking_is_free(policy: str, between: str) -> None:
    completion = await solve(THOUGHT + between, policy)

    assert (completion.reasoning, completion.content) == ("One.\n\nTwo.", "7")
    assert completion.finish_reason is FinishReason.STOP
    assert completion.steps[-1].author == ("draft" if policy == "draft" else "target")
    assert all(usage.discarded >= 0 for usage in completion.usage.values())


@pytest.mark.parametrize("policy", POLICIES)
async def test_text_without_thinking_is_all_answer(policy: str) -> None:
    completion = await solve("", policy)

    assert (completion.text, completion.finish_reason) == ("7", FinishReason.STOP)


@pytest.mark.parametrize("thought", ["<think>\nOne.\n\nTwo.", "<think>\nOne.\n\nTwo." * 20])
async def test_thinking_that_does_not_end_or_meets_its_limit_is_closed(thought: str) -> None:
    completion = await solve(thought, thinking_tokens=30)

    assert completion.content == "7"
    assert completion.finish_reason is FinishReason.STOP


async def test_limit_inside_the_thinking_ends_the_request() -> None:
    completion = await solve(THOUGHT, limits=Limits(12))

    assert (completion.content, completion.finish_reason) == ("", FinishReason.LENGTH)


async def test_request_that_was_cut_off_continues_or_is_cut_off() -> None:
    whole = await solve(THOUGHT + "\n\n")

    for count in range(len(whole.steps)):
        assert (await solve(THOUGHT + "\n\n", committed=whole.steps[:count])).content == "7"
    assert (await solve(THOUGHT, committed=whole.steps)).finish_reason is FinishReason.STOP


async def test_rule_does_not_stop_what_has_a_structure() -> None:
    rule = {"kind": "upper_threshold", "signal": {"kind": "tokens_used"}, "threshold": 1}
    completion = await solve(THOUGHT + "\n\n", options={"stopping": {"rule": rule, "schedule": {"first_tokens": 1}}})

    assert completion.content == "7"
    assert "structure" in completion.details["stopping"]["fallback"]


@pytest.mark.parametrize("policy", ["target", "program_search"])
def test_policy_that_cannot_hold_its_answer_to_a_structure_refuses_it(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedEngine, "capabilities", frozenset(Capability) - {Capability.STRUCTURE})
    runtime = Runtime({"target": ScriptedEngine("target", "")})

    with pytest.raises(RequestError, match=f"policy {policy} cannot hold its answer to a structure here"):
        runtime.prepare(Request.ask("?", policy, structure=CHOICE))


def answering(answers: list[str], thought: str = "") -> Any:
    """Sample number i answers `answers[i]` under a structure, and otherwise what counts for nothing."""

    def write(prompt: str, sampling: Sampling) -> str:
        text = prompt.rpartition("[assistant] ")[2]
        if sampling.structure:
            return answers.pop(0)
        return f"{thought}free {len(answers)}"[len(text) :]

    return write


@pytest.mark.parametrize("thought", ["", THOUGHT, THOUGHT + "\n\n"])
@pytest.mark.parametrize(
    ("structure", "answers", "winner"),
    [
        ({"json_object": True}, ['{"a": 2}', '{"b": [], "a": 1}', '{"a":1.0,"b":[ ]}'], '{"b": [], "a": 1}'),
        ({"json": {}}, ["[0]", "[1]", "[ 1.0 ]"], "[1]"),
        ({"json": {}}, ["[0]", "[1", "[1"], "[0]"),
        ({"choice": ["no", "yes"]}, ["no", "yes", "yes"], "yes"),
        ({"regex": "[0-9.]+"}, ["1", "2", "2.0"], "1"),
    ],
)
async def test_samples_vote_for_the_values_that_they_give(
    thought: str, structure: dict[str, Any], answers: list[str], winner: str
) -> None:
    runtime = Runtime({"target": ScriptedEngine("target", answering(list(answers), thought))})
    completion = await runtime.complete(
        Request.ask("?", "self_consistency", options={"k": 3}, structure=structure, seed=1)
    )

    assert completion.content == winner
    assert completion.details["votes"] == (1 if winner in ("[0]", "1") else 2)
    assert completion.reasoning == ("One.\n\nTwo." if thought else "")
    assert runtime.engines["target"].running == 0  # type: ignore[attr-defined]


async def test_vote_that_is_decided_ends_what_still_runs() -> None:
    def write(prompt: str, sampling: Sampling) -> str:
        if not sampling.structure:
            return "free"
        seeds.append(sampling.seed)
        return '"a"' if len(seeds) <= 3 else '"' + "b" * 500 + '"'

    seeds: list[int | None] = []
    engine = ScriptedEngine("target", write, chunk_tokens=1)
    request = Request.ask("?", "self_consistency", options={"k": 5}, structure={"json": {}}, seed=1)
    completion = await Runtime({"target": engine}).complete(request)

    assert (completion.content, completion.details["votes"]) == ('"a"', 3)
    assert engine.running == 0
    assert engine.generated_tokens < 500
    assert len(set(seeds)) == len(seeds)


async def test_samples_that_are_cut_off_leave_a_text_that_says_so() -> None:
    runtime = Runtime({"target": ScriptedEngine("target", answering(['"' + "a" * 90] * 3))})
    request = Request.ask(
        "?", "self_consistency", options={"k": 3}, structure={"json": {}}, seed=1, limits=Limits(max_tokens=20)
    )
    completion = await runtime.complete(request)

    assert (completion.finish_reason, completion.details["votes"]) == (FinishReason.LENGTH, 0)
    assert len(completion.text) == 20
