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
