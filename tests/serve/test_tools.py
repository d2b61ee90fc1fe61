"""Tools over HTTP, through the official client: offered, asked for, answered; streamed and whole."""

import json
from typing import Any

import pytest
from openai import BadRequestError

from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine
from reasonrt.ports import Capability
from reasonrt.types import Sampling

ASK: Any = [{"role": "user", "content": "How warm is it in Oslo?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": SCHEMA}}
    for name in ("weather", "clock")
]
THOUGHT = "<think>\nOne.\n\nTwo.\n\n</think>\n\n"
POLICIES = ["target", "draft", "entropy@threshold=100", "self_consistency"]


def call(name: str = "weather", city: str = "Oslo") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{"city": "{city}"}}}}\n</tool_call>'


def model(answer: str) -> Any:
    """Thinks, and then gives `answer`, from wherever it is asked to continue."""
    whole = THOUGHT + answer

    def script(prompt: str, sampling: Sampling) -> str:
        return whole[len(prompt.rpartition("[assistant] ")[2]) :]

    return script


@pytest.fixture(scope="module")
def calling(start: Any) -> Any:
    """A server whose model calls two tools after a word."""
    return start(model(f"I look.\n{call()}\n{call('clock')}"))


@pytest.fixture(scope="module")
def echoing(start: Any) -> Any:
    """A server whose model thinks, and then says what it is asked."""

    def script(prompt: str, sampling: Sampling) -> str:
        asked, _, said = prompt.rpartition("[user] ")[2].rpartition("\n[assistant] ")
        return (THOUGHT + asked)[len(said) :]

    return start(script)


def saying(text: str, **fields: Any) -> Any:
    """Asks an echoing model for `text`."""
    return {"model": "target", "messages": [{"role": "user", "content": text}], "tools": TOOLS} | fields


def whole_of(chunks: Any) -> tuple[str, str, list[dict[str, Any]], Any]:
    """What an OpenAI client puts together from a stream: reasoning, content, calls, and the last choice."""
    reasoning, content, calls, last = "", "", list[dict[str, Any]](), None
    for chunk in chunks:
        if not chunk.choices:
            continue
        last = chunk.choices[0]
        reasoning += getattr(last.delta, "reasoning", None) or ""
        content += last.delta.content or ""
        for delta in last.delta.tool_calls or ():
            if delta.index == len(calls):
                calls.append({"id": "", "name": "", "arguments": ""})
            for name, value in (("id", delta.id), *delta.function.model_dump().items()):
                calls[delta.index][name] += value or ""
    return reasoning, content, calls, last


@pytest.mark.parametrize("policy", POLICIES)
def test_calls_are_told_from_the_text_and_come_whole(calling: Any, policy: str) -> None:
    answer = calling.openai().chat.completions.create(model=policy, messages=ASK, tools=TOOLS)

    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    assert choice.message.reasoning == "One.\n\nTwo."
    calls = choice.message.tool_calls
    assert [call.function.name for call in calls] == ["weather", "clock"]
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Oslo"}] * 2
    assert len({call.id for call in calls}) == 2
    assert all(call.type == "function" for call in calls)
    assert answer.usage.completion_tokens == sum(one["generated"] for one in answer.reasonrt["usage"].values())


@pytest.mark.parametrize("policy", POLICIES)
def test_stream_holds_the_calls_with_index_and_id(calling: Any, policy: str) -> None:
    options = {"include_usage": True}
    stream = calling.openai().chat.completions.create(
        model=policy, messages=ASK, tools=TOOLS, stream=True, stream_options=options
    )

    chunks = list(stream)

    reasoning, content, calls, last = whole_of(chunks)
    assert (reasoning, content) == ("One.\n\nTwo.", "I look.")
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [
        ("weather", {"city": "Oslo"}),
        ("clock", {"city": "Oslo"}),
    ]
    assert all(call["id"] for call in calls)
    assert last.finish_reason == "tool_calls"
    assert last.delta.tool_calls is None
    assert chunks[-1].usage.completion_tokens > 0


def test_stream_helper_of_the_client_reads_them(calling: Any) -> None:
    with calling.openai().chat.completions.stream(model="target", messages=ASK, tools=TOOLS) as stream:
        final = stream.get_final_completion()

    assert [call.function.name for call in final.choices[0].message.tool_calls] == ["weather", "clock"]


def test_call_alone_has_no_content(echoing: Any) -> None:
    create = echoing.openai().chat.completions.create

    message = create(**saying(call())).choices[0].message
    _, content, calls, _ = whole_of(create(**saying(call(), stream=True)))

    assert message.content is None
    assert (content, len(message.tool_calls), len(calls)) == ("", 1, 1)


TEXTS = ["It is warm.", "The mark <tool_call> begins a call.", f"Both: {call('moon')}", "<tool_call>{oh}</tool_call>"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("is_stream", [True, False])
def test_text_in_which_no_offered_tool_is_called_is_content(echoing: Any, text: str, is_stream: bool) -> None:
    answer = echoing.openai().chat.completions.create(**saying(text, stream=is_stream))

    if is_stream:
        _, content, calls, last = whole_of(answer)
    else:
        last = answer.choices[0]
        content, calls = last.message.content, last.message.tool_calls or []
    assert (content, calls, last.finish_reason) == (text, [], "stop")
    warnings = last.reasonrt.get("warnings", {})
    assert ("tools" in warnings) is ("moon" in text)
    assert not warnings or "'moon' is left out: it was not offered" in warnings["tools"]


def test_streamed_content_is_held_back_from_where_a_call_may_begin(echoing: Any) -> None:
    stream = echoing.openai().chat.completions.create(**saying(f"A.\n\nB <tool\n\n{call()}", stream=True))

    texts = [chunk.choices[0].delta.content for chunk in stream if chunk.choices[0].delta.content]
    assert "".join(texts) == "A.\n\nB <tool"
    assert texts[0] == "A."


def test_history_with_calls_and_results_is_shown_to_the_model(start: Any) -> None:
    seen: list[str] = []

    def script(prompt: str, _: Sampling) -> str:
        seen.append(prompt)
        return "7 degrees."

    client = start(script).openai()
    first = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    history = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [first]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "7"}]},
    ]

    for tools in (TOOLS, None):  # a summary of such a conversation offers none
        answer = client.chat.completions.create(model="target", messages=history, **({"tools": tools} if tools else {}))
        assert answer.choices[0].message.content == "7 degrees."
    assert '[assistant] \n[calls c1] weather {"city": "Oslo"}\n[tool c1] 7\n[assistant] ' in seen[-1]
    assert ('"name": "clock"' in seen[0], '"name": "clock"' in seen[-1]) == (True, False)


def test_answer_is_sent_back_as_it_came(start: Any) -> None:
    def script(prompt: str, _: Sampling) -> str:
        said = prompt.rpartition("[assistant] ")[2]
        return "7 degrees." if "[tool call_0]" in prompt else (THOUGHT + call())[len(said) :]

    client, messages = start(script).openai(), list(ASK)
    message = client.chat.completions.create(model="target", messages=messages, tools=TOOLS).choices[0].message
    messages += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "7"}]

    answer = client.chat.completions.create(model="target", messages=messages, tools=TOOLS)

    assert answer.choices[0].message.content == "7 degrees."
    assert "ignored" not in answer.reasonrt


def test_choice_none_leaves_the_tools_out(start: Any) -> None:
    server = start(lambda prompt, _: "warm" if "weather" not in prompt else "seen")

    answer = server.openai().chat.completions.create(model="target", messages=ASK, tools=TOOLS, tool_choice="none")

    assert answer.choices[0].message.content == "warm"


NAMED = {"type": "function", "function": {"name": "clock"}}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("choice", "word"), [("required", "required"), (NAMED, "clock")])
def test_choice_that_must_be_made_holds_the_answer(start: Any, policy: str, choice: Any, word: str) -> None:
    def script(prompt: str, sampling: Sampling) -> str:
        if sampling.structure:
            asked = json.loads(sampling.structure["structural_tag"])
            assert (asked["choice"], asked["is_parallel"]) == (word, False)
            return call("clock")
        return (THOUGHT + "warm")[len(prompt.rpartition("[assistant] ")[2]) :]

    answer = (
        start(script)
        .openai()
        .chat.completions.create(model=policy, messages=ASK, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    )

    message = answer.choices[0].message
    assert [one.function.name for one in message.tool_calls] == ["clock"]
    assert message.reasoning == "One.\n\nTwo."
    assert answer.choices[0].finish_reason == "tool_calls"


def test_one_call_alone_is_kept_where_no_more_may_come(start: Any) -> None:
    kind = type("Free", (ScriptedEngine,), {"capabilities": frozenset(Capability) - {Capability.STRUCTURE}})
    server = start(model(call() + call("clock")), kind=kind)

    answer = server.openai().chat.completions.create(
        model="target", messages=ASK, tools=TOOLS, parallel_tool_calls=False
    )

    assert [one.function.name for one in answer.choices[0].message.tool_calls] == ["weather"]


@pytest.mark.parametrize("is_stream", [True, False])
def test_cut_off_within_a_call_shows_no_part_of_it(echoing: Any, is_stream: bool) -> None:
    asked = saying(f"Well.\n{call()}", max_tokens=len(THOUGHT) + 20, stream=is_stream)
    answer = echoing.openai().chat.completions.create(**asked)

    if is_stream:
        _, content, calls, last = whole_of(answer)
    else:
        last = answer.choices[0]
        content, calls = last.message.content, last.message.tool_calls or []
    assert (content, calls, last.finish_reason) == ("Well.", [], "length")


def test_content_is_a_text_where_the_limit_cuts_off_the_second_call(echoing: Any) -> None:
    """Null is for an answer that is calls, all of them."""
    text = call() + "\n" + call("clock")
    (choice,) = echoing.openai().chat.completions.create(**saying(text, max_tokens=len(THOUGHT + text) - 9)).choices

    assert choice.finish_reason == "length"
    assert choice.message.content == ""
    assert [one.function.name for one in choice.message.tool_calls] == ["weather"]


def test_stop_text_ends_the_text_and_leaves_calls_alone(echoing: Any) -> None:
    create, text = echoing.openai().chat.completions.create, f"One. Two.\n{call(city='Two.')}"

    cut = create(**saying(text, stop="Two.")).choices[0]
    kept = create(**saying(text, stop="city")).choices[0]

    assert (cut.message.content, cut.message.tool_calls, cut.finish_reason) == ("One.", None, "stop")
    assert (kept.message.content, len(kept.message.tool_calls)) == ("One. Two.", 1)


REFUSED = {
    "no tools to choose from": ({"tool_choice": "required"}, "tool_choice: there are no tools"),
    "no such tool": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice: no tool is named x",
    ),
    "other tools": ({"tools": [{"type": "web_search"}]}, "tools.0.type: tools of type 'web_search' are not served"),
    "name": (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools: the name of a tool must be at most 128",
    ),
    "name that is a choice": ({"tools": [{"type": "function", "function": {"name": "auto"}}]}, "tools: the name of"),
    "one name twice": ({"tools": [TOOLS[0], TOOLS[0]]}, "each tool must have a name of its own"),
    "many": ({"tools": [TOOLS[0]] * 129}, "tools: List should have at most 128 items"),
    "context": ({"model": "program_search", "tools": TOOLS}, "policy program_search calls no tools here"),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_called_is_refused_by_name(calling: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        calling.openai().chat.completions.create(**{"model": "target", "messages": ASK} | fields)

    body: Any = raised.value.body
    told = body["message"]
    assert told.startswith(message)
    assert "\n" not in told


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(("schema", "word"), [(nested(40), "32 deep"), ({"title": "x" * 300_000}, "at most 262144")])
def test_schemas_have_bounds(calling: Any, schema: dict[str, Any], word: str) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": schema}}]

    with pytest.raises(BadRequestError, match=word):
        calling.openai().chat.completions.create(model="target", messages=ASK, tools=tools)


@pytest.mark.parametrize(
    ("without", "fields", "word"),
    [
        (Capability.TOOLS, {}, "calls no tools here"),
        (Capability.STRUCTURE, {"tool_choice": "required"}, "structured: true"),
        (Capability.STRUCTURE, {"response_format": {"type": "json_object"}}, "structured: true"),
    ],
)
def test_engine_that_cannot_is_named(start: Any, without: Capability, fields: dict[str, Any], word: str) -> None:
    kind = type("Less", (ScriptedEngine,), {"capabilities": frozenset(Capability) - {without}})

    with pytest.raises(BadRequestError, match=word):
        start("", kind=kind).openai().chat.completions.create(model="target", messages=ASK, tools=TOOLS, **fields)


def test_template_that_shows_no_tools_is_refused(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CharacterTokenizer, "knows_tools", False)
    client = start("").openai()
    results: Any = [*ASK, {"role": "tool", "tool_call_id": "c", "content": "7"}]

    for fields in ({"messages": ASK, "tools": TOOLS}, {"messages": results}):
        with pytest.raises(BadRequestError, match="template of engine 'target' shows no tools"):
            client.chat.completions.create(model="target", **fields)


def test_models_say_that_they_call_tools(calling: Any) -> None:
    supported = calling.openai().models.retrieve("arbitrage").supported_parameters

    assert {"tools", "tool_choice", "parallel_tool_calls"} <= set(supported)
