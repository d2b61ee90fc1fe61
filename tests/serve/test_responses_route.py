"""`POST /v1/responses` through the official client, and as Codex sends and reads it."""

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import EngineError

REASONING, CONTENT = "One.\n\nTwo.\n\nThree.", r"\boxed{7}"
QUESTION = "3 + 4?"
POLICIES = ["draft", "target", "self_consistency", "arbitrage", "auto"]
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def text_of(response: Any) -> str:
    return "".join(part.text for item in response.output if item.type == "reasoning" for part in item.content)


@pytest.mark.parametrize("policy", POLICIES)
def test_answer_is_reasoning_and_a_message(running: Any, policy: str) -> None:
    response = running.openai().responses.create(model=policy, input=QUESTION)

    Response.model_validate(response.model_dump(), strict=True)
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert text_of(response) == REASONING
    assert response.output_text == CONTENT
    assert (response.status, response.incomplete_details, response.error) == ("completed", None, None)
    assert {item.status for item in response.output} == {"completed"}
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens_details.reasoning_tokens > 10
    assert response.reasonrt["finish_reason"] == "stop"
    assert response.store is response.background is False


@pytest.mark.parametrize("policy", POLICIES)
def test_stream_holds_standard_events_that_make_the_whole(running: Any, policy: str) -> None:
    stream = running.openai().responses.create(model=policy, input=QUESTION, stream=True)

    events = list(stream)

    for event in events:
        EVENT.validate_python(event.model_dump(), strict=True)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type for event in events]
    assert types[:2] == ["response.created", "response.in_progress"]
    shapes = list(dict.fromkeys(types))
    assert shapes == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.completed",
    ]
    final = events[-1].response
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == final.output
    added = [event.item.id for event in events if event.type == "response.output_item.added"]
    assert added == [item.id for item in final.output]
    assert {event.item_id for event in events if hasattr(event, "item_id")} == set(added)
    assert {event.response.id for event in events if hasattr(event, "response")} == {final.id}
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == final.output_text == CONTENT
    thoughts = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(thoughts) == text_of(final) == REASONING
    if policy != "self_consistency":
        assert len(thoughts) >= 3


def test_helper_of_the_client_accumulates_a_stream(running: Any) -> None:
    with running.openai().responses.stream(model="target", input=QUESTION) as stream:
        events = list(stream)
        final = stream.get_final_response()

    assert final.output_text == CONTENT
    assert events[-1].type == "response.completed"


def test_silence_is_filled_with_events(start: Any) -> None:
    server = start(keep_alive_s=0.05, engine={"seconds_per_token": 0.02, "chunk_tokens": 30})

    with server.openai().responses.stream(model="target", input=QUESTION) as stream:
        types = [event.type for event in stream]

    assert types.count("response.in_progress") > 3
    assert types[-1] == "response.completed"


class Sum(BaseModel):
    value: int


def test_parse_reads_what_a_schema_holds(start: Any) -> None:
    server = start(lambda _, sampling: '{"value": 7}' if sampling.structure else "<think>\nOne.\n\n</think>\n\nseven")
    client = server.openai()

    parsed = client.responses.parse(model="target", input=QUESTION, text_format=Sum)
    free = client.responses.create(model="target", input=QUESTION, text={"format": {"type": "json_object"}})

    assert parsed.output_parsed == Sum(value=7)
    assert parsed.text.format.type == "json_schema"
    assert parsed.text.format.schema_ == Sum.model_json_schema() | {"additionalProperties": False}
    assert json.loads(free.output_text) == {"value": 7}
    with client.responses.stream(model="target", input=QUESTION, text_format=Sum) as stream:
        assert stream.get_final_response().output_parsed == Sum(value=7)


def test_a_limit_leaves_an_incomplete_response(running: Any) -> None:
    create = running.openai().responses.create

    short = create(model="target", input=QUESTION, max_output_tokens=20)
    *_, last = create(model="target", input=QUESTION, max_output_tokens=42, stream=True)

    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert [(item.type, item.status) for item in short.output] == [("reasoning", "incomplete")]
    assert short.output_text == ""
    assert last.type == "response.incomplete"


def test_items_of_a_conversation_are_what_the_model_reads(running: Any) -> None:
    client = running.openai()
    first = client.responses.create(model="target", input=QUESTION)
    items: Any = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        *first.output,
        {"role": "user", "content": "and 5?"},
    ]

    second = client.responses.create(model="target", input=items, instructions="You add.")

    prompt = f"[system] You add.\n\nBe brief.\n[user] {QUESTION}\n[assistant] {CONTENT}\n[user] and 5?\n[assistant] "
    assert second.usage.input_tokens == len(prompt) - 1  # a blank line is one token
    assert second.instructions == "You add."


def test_log_probabilities_are_those_of_the_text(running: Any) -> None:
    asked: Any = {"model": "target", "input": QUESTION, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    client = running.openai()

    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))

    (part,) = whole.output[-1].content
    assert "".join(entry.token for entry in part.logprobs).strip() == CONTENT
    assert {len(entry.top_logprobs) for entry in part.logprobs} == {2}
    told = [entry.token for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
    assert told == [entry.token for entry in part.logprobs]
    assert len(whole.reasonrt["authors"]) == len(part.logprobs)
    assert client.responses.create(model="target", input=QUESTION).output[-1].content[0].logprobs == []


CODEX: dict[str, Any] = {
    "model": "auto",
    "instructions": "You are a coding agent.",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions/>"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<environment_context/>"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
    ],
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199a213-81c0-7800-8aa1-bbab2a035a53",
    "text": {"verbosity": "medium"},
}


def test_codex_is_answered_with_the_events_that_it_parses(running: Any) -> None:
    answer = running.http().post("/v1/responses", json=CODEX)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "warning" not in answer.headers
    events = []
    for block in answer.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"  # every line is JSON: there is no [DONE]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in done] == ["reasoning", "message"]
    assert done[1]["content"][0]["text"] == CONTENT
    completed = events[-1]
    assert completed["type"] == "response.completed"
    assert completed["response"]["usage"]["input_tokens_details"]["cached_tokens"] >= 0
    turn = CODEX["input"] + [{name: value for name, value in item.items() if name != "status"} for item in done]
    again = running.http().post("/v1/responses", json=CODEX | {"input": [*turn, CODEX["input"][-1]]})
    assert '"type":"response.completed"' in again.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id: not served: nothing is stored: send the whole"),
        ({"conversation": "conv_1"}, "conversation: not served: nothing is stored"),
        ({"background": True}, "background: not served: the answer comes with the request"),
        ({"store": True}, "store: not served: nothing is stored"),
        ({"truncation": "auto"}, "truncation: not served: a prompt that is too long is refused"),
        ({"prompt": {"id": "p"}}, "prompt: not served: no templates are stored"),
        ({"input": []}, r"input: List should have at least 1 item"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input: give at least one message"),
        ({"input": " "}, "the prompt is empty"),
        ({"input": [{"type": "web_search_call", "id": "w"}]}, "input.0.type: items of type 'web_search_call' are not"),
        ({"input": [{"type": "item_reference", "id": "m"}]}, "input.0.type: items of type 'item_reference' are not"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0.type: parts of type 'input_image' are not served",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format: give one of json"),
        ({"text": {"verbosity": "low"}}, "text.verbosity: not served"),
        ({"n": 2}, "n: Input should be 1"),
        ({"max_output_tokens": 0}, "max_output_tokens: Input should be greater than or equal to 1"),
        ({"model": "target", "reasoning": {"effort": "low"}}, "reasoning_effort|it chooses the policy"),
        ({"messages": [{"role": "user", "content": "?"}]}, "messages: send them as input"),
    ],
)
def test_what_is_not_served_is_refused_by_name(running: Any, fields: Any, message: str) -> None:
    answer = running.http().post("/v1/responses", json={"model": "target", "input": QUESTION} | fields)

    assert answer.status_code == 400, answer.text
    told = answer.json()["error"]["message"]
    assert any(told.startswith(each) for each in message.split("|")), told


def test_what_is_not_known_is_named(running: Any) -> None:
    items = [{"role": "user", "content": QUESTION, "chat_id": "x"}]
    answer = running.http().post("/v1/responses", json={"model": "target", "input": items, "keep": 1}).json()

    assert answer["reasonrt"]["ignored"] == ["keep", "input.0.chat_id"]


def test_metadata_comes_back(running: Any) -> None:
    answer = running.openai().responses.create(model="target", input=QUESTION, metadata={"a": "b"}, user="me")

    assert answer.metadata == {"a": "b"}


def test_reasoning_is_left_out_where_the_caller_wants_none(running: Any) -> None:
    extra = {"include_reasoning": False}
    answer = running.openai().responses.create(model="target", input=QUESTION, extra_body=extra)

    assert [item.type for item in answer.output] == ["message"]


def test_trace_stands_in_the_response_and_never_in_an_event_of_its_own(running: Any) -> None:
    extra = {"reasonrt": {"trace": True}}
    events = list(running.openai().responses.create(model="target", input=QUESTION, stream=True, extra_body=extra))

    assert {event.type.split(".")[0] for event in events} == {"response"}
    assert {step["author"] for step in events[-1].response.reasonrt["trace"]} == {"target"}


def test_stream_that_breaks_off_ends_with_a_failed_response(start: Any) -> None:
    class Mortal(ScriptedEngine):
        async def work(self, num_tokens: int, life: int) -> None:
            await super().work(num_tokens, life)
            if self.generated_tokens > 20:
                raise EngineError("it is lost")

    client = start(kind=Mortal, max_resumes=0).openai()

    *_, last = client.responses.create(model="target", input=QUESTION, stream=True)

    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error.code == "server_error"
    assert last.response.error.message.startswith("an engine failed; ")
    assert {item.status for item in last.response.output} <= {"completed", "incomplete"}
    with pytest.raises(openai.InternalServerError, match="an engine failed"):
        client.responses.create(model="target", input=QUESTION)


def test_caller_that_leaves_frees_the_engine(start: Any) -> None:
    server = start("So on.\n\n" * 1000, engine={"seconds_per_token": 0.01})
    asked = {"model": "target", "input": QUESTION, "max_output_tokens": 10_000}
    stream = server.openai().responses.create(**asked, stream=True)
    next(iter(stream))

    stream.close()

    server.wait_until(lambda: server.working == 0 and server.admission.running == 0, 20)  # the text takes 70 s


def test_route_has_the_keys_places_and_metrics_of_chats(start: Any) -> None:
    server = start(api_keys={"ada": "a-secret-of-16-characters"}, bounds={"max_tokens": 50, "running_per_key": 1})
    client = server.http()

    locked = httpx.post(f"{server.url}/v1/responses", json={"model": "target", "input": QUESTION})
    long = client.post("/v1/responses", json={"model": "target", "input": QUESTION, "max_output_tokens": 51})
    wide = client.post("/v1/responses", json={"model": "self_consistency", "input": QUESTION})
    assert client.post("/v1/responses", json={"model": "target", "input": QUESTION}).status_code == 200

    assert [locked.status_code, long.status_code, wide.status_code] == [401, 400, 400]
    assert "max_output_tokens must be at most 50" in long.json()["error"]["message"]
    counts = [line for line in client.get("/metrics").text.splitlines() if line.startswith("reasonrt_choices_total")]
    assert 'reasonrt_choices_total{finish_reason="stop",policy="target"} 1.0' in counts
