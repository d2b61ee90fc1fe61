"""Whatever goes out is the dump of a model that `/openapi.json` shows: no answer is written by hand."""

import json
from collections.abc import Iterator
from typing import Any, get_args

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import EngineError, in_one_line
from reasonrt.serve.wire import response_answers, responses
from reasonrt.serve.wire.errors import ApiError

ASK = [{"role": "user", "content": "3 + 4?"}]
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
KINDS = {CHAT: (responses.ChatCompletion, responses.ChatCompletionChunk)}
KINDS |= {TEXT: (responses.TextCompletion, responses.TextCompletionChunk)}  # type: ignore[dict-item]


def assert_is_dump(body: bytes, kind: type[BaseModel]) -> Any:
    """The very bytes that the model gives; a body put together elsewhere has another order, space or field."""
    answer = kind.model_validate_json(body, strict=True)
    assert answer.model_dump_json(exclude_unset=True).encode() == body
    return answer


def events_of(answer: httpx.Response) -> list[bytes]:
    *events, done, end = answer.content.split(b"\n\n")
    assert (done, end) == (b"data: [DONE]", b"")
    return [event.removeprefix(b"data: ") for event in events if not event.startswith(b":")]


@pytest.mark.parametrize("policy", ["target", "arbitrage", "self_consistency@k=2"])
@pytest.mark.parametrize("own", [{}, {"trace": True}])
@pytest.mark.parametrize("more", [{}, {"n": 2}, {"max_tokens": 20}, {"stop": "x"}, {"logprobs": 1}])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_whole_answers_are_dumps_of_their_models(running: Any, path: str, policy: str, own: Any, more: Any) -> None:
    ask = {"messages": ASK} if path == CHAT else {"prompt": "3 + 4?"}
    if "logprobs" in more and path == CHAT:
        more = {"logprobs": True, "top_logprobs": 1}

    answer = running.http().post(path, json={"model": policy, "reasonrt": own} | ask | more)

    told = assert_is_dump(answer.content, KINDS[path][0])
    assert len(told.choices) == more.get("n", 1)


USAGES: Any = [{}, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}]


@pytest.mark.parametrize("options", USAGES, ids=["no usage", "usage", "running usage"])
@pytest.mark.parametrize("own", [{}, {"trace": True}])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_chunks_are_dumps_of_their_models(running: Any, path: str, own: Any, options: Any) -> None:
    ask = {"messages": ASK} if path == CHAT else {"prompt": "3 + 4?"}
    body = {"model": "arbitrage", "n": 2, "stream": True, "stream_options": options, "reasonrt": own} | ask

    chunks = [assert_is_dump(event, KINDS[path][1]) for event in events_of(running.http().post(path, json=body))]

    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert {"finish_reason", "logprobs"} <= set.intersection(*(choice.model_fields_set for choice in choices))
    assert {choice.finish_reason for choice in choices} == {None, "stop"}
    with_usage = [chunk for chunk in chunks if "usage" in chunk.model_fields_set]
    if not options:
        assert with_usage == []
    elif len(options) == 1:  # null, but for the last one
        assert with_usage == chunks
        assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    else:
        assert all(chunk.usage for chunk in chunks)
    assert any(isinstance(choice.reasonrt, responses.OwnOfChunk) for choice in choices) is bool(own)


@pytest.mark.parametrize("more", [{}, {"reasonrt": {"trace": True}}, {"max_output_tokens": 20}, {"top_logprobs": 2}])
def test_responses_and_their_events_are_dumps_of_their_models(running: Any, more: Any) -> None:
    body = {"model": "arbitrage", "input": "3 + 4?"} | more

    whole = running.http().post(RESPONSES, json=body).content
    *blocks, end = running.http().post(RESPONSES, json=body | {"stream": True}).content.split(b"\n\n")

    told = assert_is_dump(whole, response_answers.ResponseResource)
    assert end == b""
    datas = [block.partition(b"\ndata: ")[2] for block in blocks]
    kinds = {kind: _types(kind) for kind in response_answers.RESPONSE_EVENTS}
    events = []
    for data in datas:
        (kind,) = [kind for kind, types in kinds.items() if json.loads(data)["type"] in types]
        events.append(assert_is_dump(data, kind))
    last = events[-1].response
    assert [item.content for item in last.output] == [item.content for item in told.output]
    assert (last.status, last.incomplete_details) == (told.status, told.incomplete_details)


def _types(kind: type[BaseModel]) -> set[str]:
    return set(get_args(kind.model_fields["type"].annotation))


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        ("/health", responses.Health, 200),
        ("/ready", responses.Readiness, 200),
        ("/version", responses.Version, 200),
        ("/v1/models", responses.ModelList, 200),
        ("/v1/models/target", responses.Model, 200),
        ("/v1/models/gpt", responses.Error, 404),
        ("/v1/nowhere", responses.Error, 404),
        ("/v1/chat/completions", responses.Error, 405),
    ],
)
def test_state_and_errors_are_dumps_of_their_models(
    running: Any, path: str, kind: type[BaseModel], status: int
) -> None:
    answer = running.http().get(path)

    assert answer.status_code == status
    assert_is_dump(answer.content, kind)


def test_state_of_a_server_that_drains_is_the_same_model(start: Any) -> None:
    server = start(grace_s=5)
    with server.openai().chat.completions.create(model="target", messages=ASK, stream=True) as stream:
        server.server.gateway.admission.is_draining = True
        answer = server.http().get("/ready")
        assert answer.status_code == 503
        assert not (said := assert_is_dump(answer.content, responses.Readiness)).ready
        assert said.reason == "the server is shutting down"
        list(stream)


BAD_BODIES: Any = [
    (b"{", 400),
    (b"[]", 400),
    (b"{}", 400),
    (json.dumps({"model": "gpt", "messages": ASK}).encode(), 404),
    (json.dumps({"model": "target@k=3", "messages": ASK}).encode(), 400),
    (json.dumps({"model": "target", "messages": ASK, "tools": [1]}).encode(), 400),
    ('{"model": "näch\\u0000\U0001f600", "messages": []}'.encode(), 400),
]


@pytest.mark.parametrize(("body", "status"), BAD_BODIES)
def test_refusals_are_dumps_of_the_error(running: Any, body: bytes, status: int) -> None:
    answer = running.http().post(CHAT, content=body, headers={"content-type": "application/json"})

    assert answer.status_code == status
    assert_is_dump(answer.content, responses.Error)


def test_stream_that_breaks_off_ends_with_a_dump_of_the_error(start: Any) -> None:
    class Mortal(ScriptedEngine):
        async def work(self, num_tokens: int, life: int) -> None:
            await super().work(num_tokens, life)
            if self.generated_tokens > 20:
                raise EngineError("it is lost")

    server = start(kind=Mortal, max_resumes=0)

    *_, last = events_of(server.http().post(CHAT, json={"model": "target", "messages": ASK, "stream": True}))

    assert assert_is_dump(last, responses.Error).error.message.startswith("an engine failed; ")


@given(message=st.text(st.characters(codec=None), max_size=30))
def test_any_message_of_an_error_can_be_sent(message: str) -> None:
    """Half of a surrogate pair, too."""
    body = ApiError(400, message).response().body

    told = assert_is_dump(bytes(body), responses.Error)
    assert told.error.message == in_one_line(message, 1000)


def test_openapi_shows_every_model_that_is_sent(running: Any) -> None:
    shown = running.http().get("/openapi.json").json()

    models = vars(responses) | vars(response_answers)
    kinds = {name for name, kind in models.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}
    assert kinds - {"BaseModel", "Answer", "Event"} <= set(shown["components"]["schemas"])
    for path, (whole, chunk) in KINDS.items():
        content = shown["paths"][path]["post"]["responses"]["200"]["content"]
        assert list(_references(content["application/json"])) == [whole.__name__]
        assert list(_references(content["text/event-stream"])) == [chunk.__name__, "Error"]
    assert list(_references(shown)) == [name for name in _references(shown) if name in shown["components"]["schemas"]]


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(reference := value.get("$ref"), str):
            yield reference.rpartition("/")[2]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _references(part)
