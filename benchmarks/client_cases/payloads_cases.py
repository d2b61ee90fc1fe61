"""What Codex, aider, Open WebUI and LibreChat send, written by hand, as they send it: they are programs for people.

Each case reads the answer as its client does. A model need not call a tool here: what counts is that the request is
taken, and that the client finds what it looks for.
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

from cases import KEY, MODEL, QUESTION, TOOL_MODEL, URL, case, require, run

SHELL = {
    "name": "shell",
    "description": "Runs a shell command and returns its output.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {
            "command": {"type": "array", "items": {"type": "string"}, "description": "The command to execute"},
            "workdir": {"type": "string", "description": "The working directory to execute the command in"},
            "timeout_ms": {"type": "number", "description": "The timeout for the command in milliseconds"},
        },
        "required": ["command"],
        "additionalProperties": False,
    },
}
PLAN = {
    "name": "update_plan",
    "description": "Updates the task plan.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {
            "explanation": {"type": "string"},
            "plan": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"step": {"type": "string"}, "status": {"type": "string"}},
                    "required": ["step", "status"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["plan"],
        "additionalProperties": False,
    },
}
SAID = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]}
CODEX: dict[str, Any] = {
    "model": TOOL_MODEL,
    "instructions": "You are a coding agent running in a terminal.",
    "input": [
        SAID | {"role": "developer", "content": [{"type": "input_text", "text": "Sandbox: read-only."}]},
        SAID | {"content": [{"type": "input_text", "text": "<environment_context>\n</environment_context>"}]},
        SAID,
    ],
    "tools": [{"type": "function", **SHELL}, {"type": "function", **PLAN}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199a213-81c0-7800-8aa1-bbab2a035a53",
    "text": {"verbosity": "medium"},
    "max_output_tokens": 128,
}
STANDARD = (
    *("response.created", "response.in_progress", "response.completed", "response.incomplete"),
    *("response.output_item.", "response.content_part.", "response.output_text."),
    *("response.reasoning_text.", "response.reasoning_summary_", "response.function_call_arguments."),
)
ASK = [{"role": "user", "content": QUESTION}]
WEBUI: dict[str, Any] = {
    "stream": True,
    "model": MODEL,
    "messages": ASK,
    "stream_options": {"include_usage": True},
    "chat_id": "c5d9",
    "id": "01ab",
    "session_id": "s-1",
    "params": {},
    "features": {"image_generation": False, "code_interpreter": False, "web_search": False},
    "variables": {"{{USER_NAME}}": "Ada"},
    "background_tasks": {"title_generation": True, "tags_generation": True},
    "tool_servers": [],
}
LIBRECHAT: dict[str, Any] = {
    "model": MODEL,
    "user": "66f0",
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 1,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}


def send(path: str, body: dict[str, Any] | None = None, **headers: str) -> Any:
    data = None if body is None else json.dumps(body).encode()
    told = {"content-type": "application/json", "authorization": f"Bearer {KEY}", "user-agent": "payloads"} | headers
    return urlopen(Request(f"{URL}/v1/{path}", data, told), timeout=600)  # noqa: S310 (the address is our caller's)


def whole(path: str, body: dict[str, Any] | None = None) -> Any:
    with send(path, body) as answer:
        return json.load(answer)


def events(path: str, body: dict[str, Any], **headers: str) -> Iterator[dict[str, Any]]:
    with send(path, body, accept="text/event-stream", **headers) as answer:
        for line in answer:
            data = line.decode().strip().removeprefix("data:").strip()
            if line.startswith(b"data:") and data != "[DONE]":
                yield json.loads(data)


def said(chunks: list[dict[str, Any]], *names: str) -> str:
    """What a client shows that reads the first of these fields that is there."""
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    return "".join(next((delta[name] for name in names if delta.get(name)), "") for delta in deltas)


def turn(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The items of an answer, as Codex takes them: each when it is done, and all of them once the response is."""
    headers = {"originator": "codex_cli_rs", "session-id": body["prompt_cache_key"], "version": "0.60.0"}
    seen = list(events("responses", body, **headers))
    strange = [event["type"] for event in seen if not event["type"].startswith(STANDARD)]
    require(not strange, strange)
    require(seen[0]["type"] == "response.created", seen[0])
    require(seen[-1]["type"] in ("response.completed", "response.incomplete"), seen[-1])
    done = [event["item"] for event in seen if event["type"] == "response.output_item.done"]
    require([item["id"] for item in done] == [item["id"] for item in seen[-1]["response"]["output"]], done)
    require(done and seen[-1]["response"]["usage"]["total_tokens"], seen[-1])
    return done


@case
def codex_first_turn() -> None:
    turn(CODEX)


@case
def codex_next_turn() -> None:
    """All of the conversation is sent again, and what the shell has said."""
    items = [{name: value for name, value in item.items() if name != "status"} for item in turn(CODEX)]
    call = {"type": "function_call", "name": "shell", "arguments": '{"command": ["ls"]}', "call_id": "call_1"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": '{"output": "README.md", "metadata": {}}'}
    turn(CODEX | {"input": [*CODEX["input"], *items, call, output]})


@case
def aider_edit() -> None:
    """Its settings of Qwen3 models, with what it adds by `extra_body`."""
    body = {"model": MODEL, "messages": [{"role": "system", "content": "Act as an expert developer."}, *ASK]}
    body |= {"stream": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "max_tokens": 768}
    chunks = list(events("chat/completions", body))
    require(said(chunks, "content"), chunks)


@case
def aider_with_an_effort() -> None:
    body = {"model": "auto", "messages": ASK, "stream": True, "temperature": 0, "reasoning_effort": "low"}
    require(said(list(events("chat/completions", body)), "content"), "no content")


@case
def aider_commit_message() -> None:
    reply = whole("chat/completions", {"model": MODEL, "messages": ASK, "stream": False, "temperature": 0})
    require(reply["choices"][0]["message"]["content"], reply)


@case
def open_webui_chat() -> None:
    require(MODEL in [model["id"] for model in whole("models")["data"]], "not listed")
    chunks = list(events("chat/completions", WEBUI))
    require(said(chunks, "content"), chunks)
    require(chunks[-1]["usage"]["total_tokens"], chunks[-1])


@case
def open_webui_next_question() -> None:
    """It sends what it has shown again, the thinking as a folded part of the text."""
    answer = '<details type="reasoning" done="true">\n<summary>Thought</summary>\n&gt; Hm.\n</details>\n7'
    before = [{"role": "assistant", "content": answer}, {"role": "user", "content": "And 5?"}]
    require(said(list(events("chat/completions", WEBUI | {"messages": [*ASK, *before]})), "content"), "no content")


@case
def open_webui_title() -> None:
    task = {"task": "title_generation", "task_body": {"model": MODEL}, "chat_id": "c5d9"}
    body = {"model": MODEL, "messages": ASK, "stream": False, "max_completion_tokens": 200, "metadata": task}
    require(whole("chat/completions", body)["choices"][0]["message"]["content"], "no content")


@case
def librechat_chat() -> None:
    system = {"role": "system", "content": "You are helpful."}
    chunks = list(events("chat/completions", LIBRECHAT | {"messages": [system, *ASK]}))
    require(said(chunks, "content"), chunks)
    whole_text = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    thought = "".join(delta.get("reasoning_content") or "" for delta in whole_text)
    require(thought == said(chunks, "reasoning"), thought)


@case
def librechat_tool_turn() -> None:
    """It replays the reasoning beside the call that followed it."""
    call = {"id": "call_1", "type": "function", "function": {"name": "shell", "arguments": '{"command": ["ls"]}'}}
    told = [
        {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "name": "shell", "content": [{"type": "text", "text": "README.md"}]},
    ]
    body = LIBRECHAT | {"model": TOOL_MODEL, "messages": [*ASK, *told], "max_tokens": 128}
    chunks = list(events("chat/completions", body | {"tools": [{"type": "function", "function": SHELL}]}))
    require(chunks[0]["choices"][0]["delta"]["role"] == "assistant", chunks[0])


@case
def librechat_title() -> None:
    body = {"model": MODEL, "messages": ASK, "temperature": 0.2, "presence_penalty": 0, "frequency_penalty": 0}
    require(whole("chat/completions", body)["choices"][0]["message"]["content"], "no content")


run()
