"""Calls of functions in the items and events of `/v1/responses`, through the official client."""

import json
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from reasonrt.types import Sampling

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [
    {"type": "function", "name": name, "description": "d", "parameters": SCHEMA} for name in ("weather", "clock")
]
QUESTION = "How warm is it in Oslo?"
CALLS = "".join(
    f'\n<tool_call>\n{{"name": "{name}", "arguments": {{"city": "Oslo"}}}}\n</tool_call>'
    for name in ("weather", "clock")
)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def model(answer: str) -> Any:
    whole = f"<think>\nOne.\n\n</think>\n\n{answer}"

    def script(prompt: str, sampling: Sampling) -> str:
        return whole[len(prompt.rpartition("[assistant] ")[2]) :]

    return script


@pytest.fixture(scope="module")
def calling(start: Any) -> Any:
    """A server whose model calls two functions after a word."""
    return start(model(f"I look.{CALLS}"))


def test_calls_are_items_of_their_own(calling: Any) -> None:
    response = calling.openai().responses.create(model="target", input=QUESTION, tools=TOOLS)

    Response.model_validate(response.model_dump(), strict=True)
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]
    assert response.output_text == "I look."
    calls = response.output[2:]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        ("weather", {"city": "Oslo"}),
        ("clock", {"city": "Oslo"}),
    ]
    assert len({call.call_id for call in calls}) == 2
    assert response.status == "completed"
    assert [tool.name for tool in response.tools] == ["weather", "clock"]
    assert response.tool_choice == "auto"


def test_stream_holds_each_call_in_events_of_its_own(calling: Any) -> None:
    events = list(calling.openai().responses.create(model="target", input=QUESTION, tools=TOOLS, stream=True))

    for event in events:
        EVENT.validate_python(event.model_dump(), strict=True)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = events[-1].response
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == final.output
    assert [event.arguments for event in events if event.type == "response.function_call_arguments.done"] == [
        item.arguments for item in final.output[2:]
    ]
    added = [event.item for event in events if event.type == "response.output_item.added"]
    assert [item.id for item in added] == [item.id for item in final.output]
    assert [item.arguments for item in added[2:]] == ["", ""]
    with calling.openai().responses.stream(model="target", input=QUESTION, tools=TOOLS) as stream:
        assert [item.type for item in stream.get_final_response().output][2:] == ["function_call"] * 2


def test_call_alone_has_no_message(start: Any) -> None:
    response = start(model(CALLS)).openai().responses.create(model="target", input=QUESTION, tools=TOOLS)

    assert [item.type for item in response.output] == ["reasoning", "function_call", "function_call"]


def test_a_turn_with_results_is_sent_again(calling: Any) -> None:
    client = calling.openai()
    asked: list[Any] = [{"role": "user", "content": QUESTION}]

    first = client.responses.create(model="target", input=asked, tools=TOOLS)
    results = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "7 degrees"}
        for item in first.output
        if item.type == "function_call"
    ]
    second = client.responses.create(model="target", input=[*asked, *first.output, *results], tools=TOOLS)

    assert second.status == "completed"
    assert second.usage.input_tokens > first.usage.input_tokens


@pytest.mark.parametrize("choice", ["none", "auto"])
def test_choice_is_understood_and_told(calling: Any, choice: str) -> None:
    response = calling.openai().responses.create(model="target", input=QUESTION, tools=TOOLS, tool_choice=choice)

    assert response.tool_choice == choice
    assert len([item for item in response.output if item.type == "function_call"]) == (0 if choice == "none" else 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type: tools of type 'web_search' are not served"),
        ({"tools": [{"type": "custom", "name": "f"}]}, "tools.0.type: tools of type 'custom' are not served"),
        ({"tools": [{"type": "function"}]}, "tools.0.name: Field required"),
        ({"tools": [{"type": "function", "name": "f", "parameters": 1}]}, "tools.0.parameters: Input should be"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name: Field required"),
        ({"input": [{"type": "function_call", "name": "f", "call_id": 1}]}, "input.0.call_id: Input should be"),
        ({"input": [{"type": "function_call_output", "call_id": 1, "output": ""}]}, "input.0.call_id: Input should be"),
        ({"tool_choice": "required"}, "tool_choice: there are no tools to choose from"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input.0.name: Field required"),
    ],
)
def test_what_is_not_served_is_refused_by_name(calling: Any, fields: Any, message: str) -> None:
    answer = calling.http().post("/v1/responses", json={"model": "target", "input": QUESTION} | fields)

    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)
