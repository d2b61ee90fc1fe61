"""What real clients send, as a survey of November 2026 found it: taken, or refused for a reason that is ours to give.

Each row says who sends it. What is refused here is refused by OpenAI too, or asks for what several models that write
one answer cannot give (`docs/serving.md` names each).
"""

import json
import math
import time
from typing import Any

import pytest

from reasonrt import Limits, ReasonRTError, Runtime
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine
from reasonrt.serve.catalog import Catalog, Job
from reasonrt.serve.config import ServeConfig
from reasonrt.serve.wire.errors import to_api_error
from reasonrt.serve.wire.requests import ChatRequest, CompletionRequest, parse

ASK: Any = [{"role": "user", "content": "3 + 4?"}]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
OF_PYDANTIC: Any = {
    "type": "function",
    "function": {
        "name": "Answer",
        "description": "An answer.",
        "parameters": {
            "$defs": {"Unit": {"enum": ["C", "F"], "type": "string"}},
            "additionalProperties": False,
            "properties": {
                "value": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                "unit": {"$ref": "#/$defs/Unit"},
            },
            "required": ["value", "unit"],
            "title": "Answer",
            "type": "object",
        },
    },
}
SHELL: Any = {
    "type": "function",
    "function": {
        "name": "shell",
        "description": "Runs a shell command and returns its output.",
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": {
                "command": {"type": "array", "items": {"type": "string"}, "description": "The command to execute"},
                "workdir": {"type": "string"},
                "timeout_ms": {"type": "number"},
            },
            "required": ["command"],
            "additionalProperties": False,
        },
    },
}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "7"}
AFTER_SHELL: Any = {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]}


def after(**assistant: Any) -> dict[str, Any]:
    """A conversation whose earlier answer has these fields."""
    return {"messages": [*ASK, {"role": "assistant", "content": "7"} | assistant, *ASK]}


def asking(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts) or "3 + 4?"} | fields]}


TEXT = {"type": "text", "text": "3 + 4?"}
TAKEN: dict[str, dict[str, Any]] = {
    "lm-eval: type of a message": asking(type="text"),
    "vllm bench: repetition_penalty": {"repetition_penalty": 1.0},
    "vllm bench: top_k": {"top_k": -1},
    "vllm bench: top_k off": {"top_k": 0},
    "vllm bench: min_p": {"min_p": 0},
    "aider: qwen3": {"temperature": 0.7, "top_k": 20, "min_p": 0},
    "vllm bench: ignore_eos off": {"ignore_eos": False},
    "vllm: priority": {"priority": 0},
    "vllm: skip_special_tokens": {"skip_special_tokens": True},
    "pydantic clients: no tool calls": after(tool_calls=[]),
    "pydantic clients: annotations": after(annotations=[]),
    "opencode: refusal is null": after(refusal=None),
    "openai: content of an assistant is null": after(content=None),
    "pi: reasoning": after(reasoning="hm"),
    "litellm: reasoning_content": after(reasoning_content="hm"),
    "openrouter: reasoning_details": after(reasoning_details=[{"type": "reasoning.text", "text": "hm"}]),
    "openrouter: effort": {"model": "auto", "reasoning": {"effort": "high"}},
    "openrouter: max_tokens of the reasoning": {"reasoning": {"max_tokens": 64}},
    "openrouter: enabled": {"reasoning": {"enabled": True}},
    "openrouter: not enabled": {"reasoning": {"enabled": False}},
    "openrouter: exclude": {"reasoning": {"exclude": True}},
    "openrouter: usage": {"usage": {"include": True}},
    "anthropic: budget_tokens": {"thinking": {"type": "enabled", "budget_tokens": 64}},
    "anthropic: disabled": {"thinking": {"type": "disabled"}},
    "anthropic: cache_control": asking(TEXT | {"cache_control": {"type": "ephemeral"}}),
    "vllm: thinking_token_budget": {"thinking_token_budget": 64},
    "qwen: enable_thinking": {"enable_thinking": False},
    "qwen: template": {"chat_template_kwargs": {"enable_thinking": False}},
    "qwen: template, thinking": {"chat_template_kwargs": {"enable_thinking": True}},
    "vllm: include_reasoning": {"include_reasoning": False},
    "sglang: separate_reasoning": {"separate_reasoning": True},
    "sglang: reasoning in the answer": {"separate_reasoning": False},
    "sglang: stream_reasoning": {"stream_reasoning": True},
    "sglang: stream_reasoning off": {"stream_reasoning": False},
    "responses: input_text": asking({"type": "input_text", "text": "3 + 4?"}),
    "vllm: cache_salt": {"cache_salt": "x"},
    "vllm: return_token_ids": {"return_token_ids": True},
    "ollama: keep_alive": {"keep_alive": "5m"},
    "open webui: chat_id": {
        "chat_id": "x",
        "session_id": "y",
        "id": "z",
        "background_tasks": {"title_generation": True},
    },
    "its-hub: extra_body": {"extra_body": {}},
    "openai: metadata": {"metadata": {"a": "b"}},
    "openai: prompt_cache_key": {"prompt_cache_key": "x", "safety_identifier": "y"},
    "open webui: qwen3": {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0, "presence_penalty": 1.5},
    "openai: zero penalties": {"presence_penalty": 0, "frequency_penalty": 0.0},
    "openai: no tools": {"tools": [], "tool_choice": "none", "parallel_tool_calls": False},
    "openai: no store": {"store": False, "service_tier": "auto"},
    "openai: both token limits": {"max_tokens": 50, "max_completion_tokens": 50},
    "openai: nulls": {"stop": None, "seed": None, "logit_bias": None, "response_format": None, "user": None},
    "openai: stream_options": {"stream": True, "stream_options": {"include_usage": True}},
    "inspect_ai: json_object": {"response_format": {"type": "json_object"}},
    "langchain: json_schema": {"response_format": SCHEMA},
    "vllm: choice": {"structured_outputs": {"choice": ["7", "8"], "regex": None}},
    "vllm: regex": {"structured_outputs": {"regex": r"\d"}},
    "openai: format of text": {"response_format": {"type": "text"}},
    "openai: logprobs": {"logprobs": True, "top_logprobs": 5},
    "openai: no logprobs": {"logprobs": False, "top_logprobs": 0},
    "langchain: bind_tools": {"tools": [TOOL], "tool_choice": "auto"},
    "langchain: with_structured_output by a call": {
        "tools": [OF_PYDANTIC],
        "tool_choice": {"type": "function", "function": {"name": "Answer"}},
        "parallel_tool_calls": False,
    },
    "langchain: history": {
        "tools": [TOOL],
        "messages": [
            {"role": "system", "content": "Be brief."},
            *ASK,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "7"},
        ],
    },
    "openai-agents: strict tools": {
        "tools": [{"type": "function", "function": OF_PYDANTIC["function"] | {"strict": True, "description": ""}}],
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "openai-agents: an output type beside tools": {"tools": [TOOL], "response_format": SCHEMA},
    "openai-agents: a call after text": {
        "messages": [
            *ASK,
            {"role": "assistant", "content": [{"type": "text", "text": "I look."}], "tool_calls": [CALL, CALL]},
            {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": ""}]},
        ]
    },
    "inspect_ai: tools": {
        "tools": [OF_PYDANTIC],
        "tool_choice": "required",
        "messages": [*ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT],
    },
    "inspect_ai: no more calls": {"tools": [TOOL], "tool_choice": "none", "messages": [*ASK, RESULT]},
    "codex: shell": {"tools": [SHELL], "tool_choice": "auto", "parallel_tool_calls": False, "stream": True},
    "codex: what the shell has said": {"tools": [SHELL], "messages": [*ASK, AFTER_SHELL, RESULT]},
    "litellm: index of a call": {"messages": [*ASK, AFTER_SHELL | {"tool_calls": [CALL | {"index": 0}]}, RESULT]},
}
EFFORTS = ["none", "minimal", "low", "medium", "high", "xhigh", "max"]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "image": (
        asking(TEXT, {"type": "image_url", "image_url": {"url": "x"}}),
        "messages.0.content.1.type: parts of type",
    ),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens: "),
    "max_tokens -1": ({"max_tokens": -1}, "max_tokens: "),
    "five stops": ({"stop": ["a", "b", "c", "d", "e"]}, "stop: "),
    "temperature as text": ({"temperature": "0"}, "temperature: "),
    "service_tier": ({"service_tier": "flex"}, "service_tier: not served: "),
    "store": ({"store": True}, "store: not served: "),
    "penalty": ({"presence_penalty": -3}, "presence_penalty: Input should be greater than or equal to -2"),
    "ignore_eos": ({"ignore_eos": True}, "ignore_eos: not served: "),
    "top_logprobs alone": ({"top_logprobs": 5}, "set logprobs to true"),
    "too many top_logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: "),
    "responses: flat tools": ({"tools": [{"type": "function", "name": "f"}]}, "tools.0.function: Field required"),
    "codex: custom tools": ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type: tools of type"),
    "custom calls": (after(tool_calls=[CALL | {"type": "custom"}]), "messages.1.tool_calls.0.type: calls of type"),
    "functions": ({"functions": [{"name": "f"}]}, "functions: not served: use tools"),
    "allowed_tools": ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type: choices of type"),
    "no such choice": ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice: "),
    "json_object and no schema": ({"response_format": {"type": "json_schema"}}, "response_format: give one of json"),
    "two structures": ({"response_format": SCHEMA, "structured_outputs": {"choice": ["a"]}}, "structured_outputs and"),
    "guided_json": ({"guided_json": {}}, "guided_json: not served: "),
    "a schema with a number that JSON does not know": (
        {"structured_outputs": {"json": {"properties": {"a": {"minimum": -math.inf}}}}},
        "numbers in a structure must be finite",
    ),
    "a tool with such a number": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"anyOf": [{"maximum": math.inf}]}}}]},
        "tools: numbers in the parameters of a tool must be finite",
    ),
}
PROMPTS: dict[str, Any] = {
    "vllm bench": {"prompt": "3 + 4?", "repetition_penalty": 1.0, "ignore_eos": False},
    "one prompt in a list": {"prompt": ["3 + 4?"]},
    "lm-eval: batch": {"prompt": ["3 + 4?", "4 + 5?"]},
    "lm-eval: batch of token ids": {"prompt": [CharacterTokenizer().encode("3 + 4?")] * 2},
    "token ids": {"prompt": CharacterTokenizer().encode("3 + 4?")},
    "lm-eval: log-likelihood": {
        "prompt": [CharacterTokenizer().encode("3 + 4?")] * 2,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    },
    "openai: no logprobs": {"prompt": "3 + 4?", "logprobs": 0, "echo": False},
}

CATALOG = Catalog(
    Runtime({role: ScriptedEngine(role, "7") for role in ("draft", "target")}, limits=Limits(100)), ServeConfig()
)


def to_job(kind: type[ChatRequest] | type[CompletionRequest], fields: dict[str, Any]) -> Job:
    ask = {"messages": ASK} if kind is ChatRequest else {}
    return CATALOG.to_job(parse(kind, json.dumps({"model": "target"} | ask | fields).encode()))


@pytest.mark.parametrize("fields", TAKEN.values(), ids=TAKEN)
def test_what_clients_of_chats_send_is_taken(fields: dict[str, Any]) -> None:
    to_job(ChatRequest, fields)


@pytest.mark.parametrize("effort", EFFORTS)
def test_every_effort_is_taken(effort: str) -> None:
    to_job(ChatRequest, {"model": "auto", "reasoning_effort": effort})


@pytest.mark.parametrize("fields", PROMPTS.values(), ids=PROMPTS)
def test_what_clients_of_completions_send_is_taken(fields: dict[str, Any]) -> None:
    to_job(CompletionRequest, fields)


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_given_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ReasonRTError) as raised:
        to_job(ChatRequest, fields)

    told = to_api_error(raised.value, "an id")
    assert told.status == 400
    assert told.message.startswith(message)
    assert len(told.message) < 200


@pytest.mark.parametrize("is_stream", [True, False])
def test_what_is_ignored_is_named_in_the_answer_and_its_header(running: Any, is_stream: bool) -> None:
    fields = {"chat_id": 'a"b', 'odd "näme"\n': 1, "stream": is_stream, "stream_options": {"include_usage": True}}

    answer = running.http().post("/v1/chat/completions", json={"model": "target", "messages": ASK} | fields)

    body = answer.text.split("\n\n")[-3].removeprefix("data: ") if is_stream else answer.text
    assert json.loads(body)["reasonrt"]["ignored"] == ["chat_id", 'odd "näme"\n']
    assert answer.headers["warning"] == '299 reasonrt "not known here and ignored: chat_id, odd??n?me??"'


def test_answer_to_what_is_known_holds_no_warning(running: Any) -> None:
    answer = running.http().post("/v1/chat/completions", json={"model": "target", "messages": ASK, "top_k": -1})

    assert "warning" not in answer.headers
    assert "ignored" not in answer.json()["reasonrt"]


def test_answer_to_many_prompts_has_a_choice_for_each(running: Any) -> None:
    ids = CharacterTokenizer().encode("3 + 4?")
    answer = running.http().post("/v1/completions", json={"model": "target", "prompt": [ids, ids], "n": 2}).json()
    one = running.http().post("/v1/completions", json={"model": "target", "prompt": "3 + 4?"}).json()

    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert {choice["text"] for choice in answer["choices"]} == {one["choices"][0]["text"]}
    assert answer["usage"]["prompt_tokens"] == 2 * one["usage"]["prompt_tokens"]


def test_reasoning_is_left_out_where_the_caller_wants_none(running: Any) -> None:
    body = {"model": "target", "messages": ASK, "include_reasoning": False}
    message = running.http().post("/v1/chat/completions", json=body).json()["choices"][0]["message"]

    assert message == {"role": "assistant", "content": r"\boxed{7}"}


def test_reasoning_stands_in_the_answer_where_the_caller_wants_it_there(running: Any) -> None:
    body = {"model": "target", "messages": ASK, "separate_reasoning": False}
    http = running.http()
    whole = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    lines = http.post("/v1/chat/completions", json=body | {"stream": True}).text.split("\n\n")
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines if "choices" in line]

    assert whole == {"role": "assistant", "content": "<think>\nOne.\n\nTwo.\n\nThree.\n</think>\n\n\\boxed{7}"}
    assert "".join(delta.get("content", "") for delta in deltas) == whole["content"]
    assert not any("reasoning" in delta for delta in deltas)
    hidden = http.post("/v1/chat/completions", json=body | {"include_reasoning": False}).json()["choices"][0]
    assert hidden["message"]["content"] == r"\boxed{7}"


@pytest.mark.parametrize("limit", range(1, 40, 3))
def test_reasoning_in_an_answer_that_is_cut_off_is_the_same_in_a_stream(running: Any, limit: int) -> None:
    body = {"model": "target", "messages": ASK, "separate_reasoning": False, "max_tokens": limit}
    http = running.http()
    whole = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    lines = http.post("/v1/chat/completions", json=body | {"stream": True}).text.split("\n\n")
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines if "choices" in line]

    assert "".join(delta.get("content", "") for delta in deltas) == whole


def test_limit_of_the_thinking_is_kept_at_its_token(running: Any) -> None:
    body = {"model": "target", "messages": ASK, "reasoning": {"max_tokens": 12}, "reasonrt": {"trace": True}}
    choice = running.http().post("/v1/chat/completions", json=body).json()["choices"][0]

    assert choice["reasonrt"]["details"]["closed"] == "limit"
    steps = choice["reasonrt"]["trace"]
    closing = next(place for place, step in enumerate(steps) if step["author"] == "closing")
    assert sum(step["tokens"] for step in steps[:closing]) == 12
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "stop"


def test_log_says_which_field_was_refused(running: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        running.http().post("/v1/chat/completions", json={"model": "target", "messages": ASK, "store": True})

        deadline = time.monotonic() + 5
        while not (found := [record for record in caplog.records if getattr(record, "fields", {}).get("param")]):
            assert time.monotonic() < deadline, "no line names the field"
            time.sleep(0.01)
    assert found[0].__dict__["fields"]["param"] == "store"
