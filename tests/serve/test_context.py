"""Documents beside the messages, over HTTP: how they come, and how much of them."""

import json
import pickle
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest

from reasonrt import FinishReason, Request, Runtime, Step, register_policy
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import EngineError
from reasonrt.policies.options import PolicyOptions
from reasonrt.policies.registry import unregister_policy
from reasonrt.ports import Engines
from reasonrt.serve.catalog import Catalog
from reasonrt.serve.config import ServeConfig
from reasonrt.types import Document, PolicyEvent, Stop

BOUNDS = {"body_bytes": 2048, "context_bytes": 10_000, "context_documents": 3, "context_part_characters": 100}
QUESTION = "How long is it?"
LONG = "né " * 50


class Counter(PolicyOptions):
    """Writes what it was given to read, as JSON."""

    engines = ("target",)
    reads_context = True

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        given = [[document.name, len(document.text)] for document in request.context]
        said = [message.content for message in request.messages]
        text = json.dumps({"context": given, "said": said})
        yield Step(text, (), "counter")  # no engine has written it
        yield Stop(FinishReason.STOP)


class Dying(Counter):
    """Its engine dies after the first step, and the request continues."""

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        if not request.committed:
            yield Step(" ", (), "counter")
            raise EngineError("it died")
        async for event in super().solve(request, engines):
            yield event


POLICIES = {"counter": Counter, "dying": Dying}


@pytest.fixture(scope="module")
def reading(start: Any) -> Iterator[Any]:
    for name, kind in POLICIES.items():
        register_policy(name, kind)
    yield start(bounds=BOUNDS)
    for name in POLICIES:
        unregister_policy(name)


def ask(server: Any, content: Any = QUESTION, *, model: str = "counter", **own: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "reasonrt": own}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=20)


def read(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = json.loads(answer.json()["choices"][0]["message"]["content"])
    return said


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ("a text", [["", 6]]),
        ([{"name": "a.txt", "text": LONG}, {"text": ""}], [["a.txt", 150], ["", 0]]),
        ([], []),
        ("", []),
        (None, []),
    ],
)
def test_documents_reach_the_policy(reading: Any, context: Any, expected: Any) -> None:
    assert read(ask(reading, context=context)) == {"context": expected, "said": [QUESTION]}


def test_plain_completions_have_a_context_too(reading: Any) -> None:
    body = {"model": "counter", "prompt": QUESTION, "reasonrt": {"context": "a text"}}

    answer = httpx.post(f"{reading.url}/v1/completions", json=body, timeout=20)

    assert json.loads(answer.json()["choices"][0]["text"]) == {"context": [["", 6]], "said": [QUESTION]}


def test_long_parts_of_what_the_user_says_are_documents(reading: Any) -> None:
    said = read(ask(reading, [part("x" * 101), part(QUESTION), part(LONG), part(" y" * 50)], context="first"))

    assert said == {"context": [["", 5], ["part 1", 101], ["part 2", 150]], "said": [QUESTION + " y" * 50]}


def test_what_was_said_before_stays_in_the_conversation(reading: Any) -> None:
    earlier = [
        {"role": "user", "content": [part(LONG), part("What is this?")]},
        {"role": "assistant", "content": [part("z" * 101)]},
        {"role": "user", "content": "w" * 101},  # no part
    ]
    body = {"model": "counter", "messages": earlier}

    said = read(httpx.post(f"{reading.url}/v1/chat/completions", json=body, timeout=20))

    assert said == {"context": [["part 1", 150]], "said": ["What is this?", "z" * 101, "w" * 101]}


def test_policy_without_a_context_finds_long_parts_in_the_message(reading: Any) -> None:
    answer = ask(reading, [part("x" * 101), part(QUESTION)], model="target")

    assert answer.status_code == 200
    assert answer.json()["usage"]["prompt_tokens"] > 101


@pytest.mark.parametrize("model", ["target", "arbitrage", "self_consistency"])
def test_policy_that_reads_none_says_so(reading: Any, model: str) -> None:
    answer = ask(reading, model=model, context="a text")

    assert answer.status_code == 400
    told = answer.json()["error"]["message"]
    assert told == f"policy '{model}' reads no context beside the messages; put it into them"


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"context": ["a text"]}, 400, "reasonrt.context.0: "),
        ({"context": 7}, 400, "reasonrt.context: Input should be a valid string"),
        ({"context": [{"name": "a"}]}, 400, "reasonrt.context.0.text: Field required"),
        ({"context": [{"text": "a", "path": "/etc/passwd"}]}, 400, "path: unknown field"),
        ({"context": [{"text": "a"}] * 4}, 400, "the context must have at most 3 documents here, got 4"),
        ({"context": "x" * 10_001}, 413, "the context must have at most 10000 bytes here, got 10001"),
        ({"context": [{"name": "n" * 9, "text": "é" * 4996}]}, 413, "at most 10000 bytes here, got 10001"),
        ({"context": "x" * 12_100}, 413, "the body must have at most 12048 bytes on this server"),
        ({"content": "x" * 2048}, 413, "without a context the body must have at most 2048 bytes here"),
        ({"content": "x" * 2048, "context": "a"}, 413, "without a context the body must have at most 2048 bytes"),
        ({"content": [part(LONG)]}, 400, "the prompt is empty; give a question"),
    ],
)
def test_what_is_over_a_bound_is_told_in_one_line(
    reading: Any, fields: dict[str, Any], status: int, message: str
) -> None:
    answer = ask(reading, **fields)

    told = answer.json()["error"]["message"]
    assert (answer.status_code, message in told, "\n" in told) == (status, True, False), answer.text


def test_context_may_be_larger_than_a_body(reading: Any) -> None:
    assert read(ask(reading, context="x" * 10_000))["context"] == [["", 10_000]]
    assert read(ask(reading, [part("é" * 4997), part(QUESTION)]))["context"] == [["part 1", 4997]]


@pytest.mark.parametrize(("role", "most_bytes"), [("draft", 2048), ("target", 12_048)])
def test_without_a_policy_that_reads_it_nothing_larger_is_taken_in(reading: Any, role: str, most_bytes: int) -> None:
    runtime = Runtime({role: ScriptedEngine(role, "")})

    assert Catalog(runtime, ServeConfig.model_validate({"bounds": BOUNDS})).most_body_bytes == most_bytes


def test_context_outlives_an_engine(reading: Any) -> None:
    answer = ask(reading, model="dying", context="a text")

    assert read(answer)["context"] == [["", 6]]
    assert answer.json()["choices"][0]["reasonrt"]["details"]["resumed"] == 1


def test_context_travels_to_other_processes() -> None:
    request = Request.ask(QUESTION, "counter", context=[Document("é" * 1000, "a.txt")])

    assert pickle.loads(pickle.dumps(request)) == request  # noqa: S301 - of our own process


def test_schema_describes_the_context(reading: Any) -> None:
    schemas = httpx.get(f"{reading.url}/openapi.json").json()["components"]["schemas"]

    text, documents = schemas["OwnFields"]["properties"]["context"]["oneOf"]
    assert text["type"] == "string"
    assert documents["items"]["$ref"].endswith("/ContextDocument")
    assert schemas["ContextDocument"]["required"] == ["text"]
