"""Tools by the SDK: what calls, who writes them, what votes, and how thinking is stopped before them."""

import json
from typing import Any

import pytest

from reasonrt import Completion, FinishReason, FunctionTool, Limits, Request, Runtime, ToolCall
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import RequestError
from reasonrt.ports import Capability
from reasonrt.thinking import CLOSING
from reasonrt.types import Sampling

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = (FunctionTool("weather", "How warm it is.", CITY), FunctionTool("clock"))
THOUGHT = "<think>\nOne.\n\nTwo.\n\nThree.\n\n</think>\n\n"


def call(name: str = "weather", **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def writing(text: str) -> Any:
    def script(prompt: str, _: Sampling) -> str:
        return text[len(prompt.rpartition("[assistant] ")[2]) :]

    return script


async def solve(draft: str, target: str, policy: str = "target", **fields: Any) -> Completion:
    runtime = Runtime(
        {"draft": ScriptedEngine("draft", writing(draft)), "target": ScriptedEngine("target", writing(target))}
    )
    return await runtime.complete(Request.ask("?", policy, **{"tools": TOOLS} | fields))


async def test_completion_holds_the_calls_and_the_text_before_them() -> None:
    completion = await solve("", THOUGHT + f"Well.\n{call(city='Oslo')}")

    assert completion.tool_calls == (ToolCall("call_0", "weather", '{"city": "Oslo"}'),)
    assert (completion.reasoning, completion.content) == ("One.\n\nTwo.\n\nThree.", "Well.")
    assert completion.finish_reason is FinishReason.STOP


SPECULATION: dict[str, Any] = {"policy": "entropy", "options": {"threshold": 100}}  # which takes each of the draft's


@pytest.mark.parametrize("begun", ["", "\n\n", "Well.\n\n"])
async def test_draft_thinks_and_the_target_calls(begun: str) -> None:
    draft, target = THOUGHT + begun + call(city="of the draft"), THOUGHT + call(city="Oslo")
    completion = await solve(draft, target, **SPECULATION)

    authors = [step.author for step in completion.steps]
    assert [json.loads(one.arguments) for one in completion.tool_calls] == [{"city": "Oslo"}]
    assert authors[-1] == "target"
    assert "draft" in authors
    assert not any("</tool_call>" in step.text for step in completion.steps if step.author == "draft")
    assert all(usage.discarded >= 0 for usage in completion.usage.values())


async def test_speculation_tells_what_it_has_done() -> None:
    completion = await solve(THOUGHT + call(), THOUGHT + call(), **SPECULATION)

    assert completion.details["draft_steps"] >= 3


async def test_text_without_thinking_is_all_the_targets() -> None:
    completion = await solve(call(city="of the draft"), call(city="Oslo"), **SPECULATION)

    assert {step.author for step in completion.steps} == {"target"}
    assert [json.loads(one.arguments) for one in completion.tool_calls] == [{"city": "Oslo"}]


async def test_request_that_was_cut_off_continues_to_the_same_calls() -> None:
    text = THOUGHT + "A.\n\nB.\n\n" + call(city="Oslo")
    whole = await solve(text, text, **SPECULATION)

    for count in range(len(whole.steps) + 1):
        completion = await solve(text, text, committed=whole.steps[:count], **SPECULATION)
        assert (completion.text, completion.tool_calls) == (whole.text, whole.tool_calls)


@pytest.mark.parametrize("policy", ["target", "arbitrage"])
async def test_answer_that_does_not_come_is_asked_for(policy: str) -> None:
    def script(prompt: str, _: Sampling) -> str:
        text = prompt.rpartition("[assistant] ")[2]
        return call() if "</think>" in text else "<think>\nOne.\n\nTwo."[len(text) :]

    runtime = Runtime({role: ScriptedEngine(role, script) for role in ("draft", "target")})
    completion = await runtime.complete(Request.ask("?", policy, tools=TOOLS))

    assert [one.name for one in completion.tool_calls] == ["weather"]


def samples(*answers: str) -> Any:
    """Gives these answers one after another."""
    left = list(answers)
    return lambda prompt, sampling: left.pop(0)


@pytest.mark.parametrize(
    ("answers", "winner", "votes"),
    [
        ([call(city="Rome"), call(city="Oslo"), call(city="Oslo")], [{"city": "Oslo"}], 2),
        ([call(a=1, b="x"), call(b="x", a=1.0), call()], [{"a": 1, "b": "x"}], 2),
        ([call("clock"), call(), call()], [{}], 2),
        (["It is warm.", "I do not know.", call()], [], 2),
        ([call("moon"), call(), call()], [{}], 2),
        (["The answer is 7.", call(), "So: 7"], [], 2),
    ],
)
async def test_samples_vote_for_their_calls(answers: list[str], winner: list[dict[str, Any]], votes: int) -> None:
    runtime = Runtime({"target": ScriptedEngine("target", samples(*answers))})
    completion = await runtime.complete(Request.ask("?", "self_consistency", options={"k": 3}, tools=TOOLS))

    assert completion.details["votes"] == votes
    assert [json.loads(one.arguments) for one in completion.tool_calls] == winner


async def test_samples_that_must_call_vote_for_what_they_call() -> None:
    answers = [call(city="Rome"), call(n=1), call(n=1.0)]

    def script(prompt: str, sampling: Sampling) -> str:
        text = prompt.rpartition("[assistant] ")[2]
        return answers.pop(0) if sampling.structure else f"{THOUGHT}I do not call."[len(text) :]

    runtime = Runtime({"target": ScriptedEngine("target", script)})
    request = Request.ask("?", "self_consistency", options={"k": 3}, tools=TOOLS, tool_choice="required", seed=1)
    completion = await runtime.complete(request)

    assert completion.details["votes"] == 2
    assert [json.loads(one.arguments) for one in completion.tool_calls] == [{"n": 1}]
    assert completion.reasoning == "One.\n\nTwo.\n\nThree."


STOPPING = {
    "rule": {"kind": "upper_threshold", "signal": {"kind": "tokens_used"}, "threshold": 1},
    "schedule": {"first_tokens": 1, "block_tokens": 1},
}


@pytest.mark.parametrize("ask", [{"policy": "target", "options": {}}, SPECULATION])
async def test_rule_stops_the_thinking_and_the_answer_calls(ask: dict[str, Any]) -> None:
    def script(prompt: str, _: Sampling) -> str:
        text = prompt.rpartition("[assistant] ")[2]
        if text.endswith("\\boxed{"):
            return "7}"
        return call(city="Oslo") if "</think>" in text else THOUGHT[len(text) :]

    runtime = Runtime({role: ScriptedEngine(role, script) for role in ("draft", "target")})
    options = {**ask["options"], "stopping": STOPPING}
    completion = await runtime.complete(Request.ask("?", ask["policy"], options=options, tools=TOOLS))

    assert completion.reasoning == "One."
    assert [json.loads(one.arguments) for one in completion.tool_calls] == [{"city": "Oslo"}]
    assert completion.details["stopping"]["action"] == "answer"
    assert [step.author for step in completion.steps].count(CLOSING) == 1
    assert completion.finish_reason is FinishReason.STOP


async def test_rule_leaves_an_answer_alone_that_has_begun() -> None:
    options = {"stopping": STOPPING}
    completion = await solve("", f"A.\n\nB.\n\n{call()}", options=options)

    assert (completion.content, len(completion.tool_calls)) == ("A.\n\nB.", 1)


async def test_certificate_does_not_stop_what_it_was_not_made_for(tmp_path: Any) -> None:
    options = {"stopping": {"certificate": str(tmp_path / "certificate.json")}}
    completion = await solve("", THOUGHT + call(), options=options)

    assert "tools" in completion.warnings["stopping"]
    assert len(completion.tool_calls) == 1


async def test_limit_within_a_call_leaves_no_part_of_it() -> None:
    completion = await solve("", f"Well. {call(city='Oslo')}", limits=Limits(max_tokens=20))

    assert (completion.content, completion.tool_calls) == ("Well.", ())
    assert completion.finish_reason is FinishReason.LENGTH


async def test_call_that_is_left_out_is_told_of() -> None:
    wrong = '<tool_call>{"name": "clock", "arguments": [1]}</tool_call>'
    completion = await solve("", wrong + call())

    assert [one.name for one in completion.tool_calls] == ["weather"]
    assert completion.warnings["tools"] == "a call of 'clock' is left out: its arguments are no JSON object"


@pytest.mark.parametrize("can_hold", [True, False])
async def test_strict_tool_holds_the_answer_or_is_told_of(can_hold: bool) -> None:
    held: list[str] = []

    def script(_: str, sampling: Sampling) -> str:
        held.extend(sampling.structure)
        return call()

    engine = ScriptedEngine("target", script)
    engine.capabilities = frozenset(Capability) - ({Capability.STRUCTURE} if not can_hold else set())
    tools = (FunctionTool("weather", is_strict=True),)
    completion = await Runtime({"target": engine}).complete(Request.ask("?", tools=tools))

    assert held == (["structural_tag"] if can_hold else [])
    assert ("strict" in completion.warnings) is not can_hold
    assert len(completion.tool_calls) == 1


@pytest.mark.parametrize(
    "fields", [{"parallel_tool_calls": False}, {"tools": (FunctionTool("weather", is_strict=True),)}]
)
async def test_samples_that_call_nothing_vote_for_their_answers_whatever_holds_calls(fields: dict[str, Any]) -> None:
    texts = iter([r"It is \boxed{8}.", r"It is \boxed{7}.", r"I find \boxed{7}."] * 2)
    engine = ScriptedEngine("target", lambda *_: next(texts))
    request = Request.ask("?", "self_consistency", options={"k": 3}, **{"tools": TOOLS} | fields)
    completion = await Runtime({"target": engine}).complete(request)

    assert completion.content == r"It is \boxed{7}."


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"tool_choice": "moon"}, "tool_choice must be one of weather, clock, auto, none, required, got 'moon'"),
        ({"tools": (), "tool_choice": "required"}, "tool_choice must be one of auto, none, got 'required'"),
        ({"tools": (TOOLS[0], TOOLS[0])}, "each tool must have a name of its own"),
    ],
)
def test_choice_must_be_there(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(RequestError, match=word):
        Request.ask("?", **{"tools": TOOLS} | fields)


@pytest.mark.parametrize("name", ["", "a b", "auto", "a\n", "x" * 129, "<|im_end|>"])
def test_name_of_a_tool_is_a_word(name: str) -> None:
    with pytest.raises(RequestError, match="the name of a tool"):
        FunctionTool(name)


@pytest.mark.parametrize("policy", ["program_search", "block_diffusion"])
async def test_policy_that_calls_no_tools_refuses_them(policy: str) -> None:
    engine = ScriptedEngine("target", "")
    engine.capabilities = frozenset(Capability) - {Capability.TOOLS}
    runtime = Runtime({"target": engine, "diffusion": engine})

    with pytest.raises(RequestError, match=f"policy {policy} calls no tools here"):
        runtime.prepare(Request.ask("?", policy, tools=TOOLS))
