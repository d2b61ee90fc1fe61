"""What errors say back: a caller's text cut short, and of a failed engine nothing that is the operator's."""

import json
import logging
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import UpstreamError
from reasonrt.options import option_names
from reasonrt.policies.registry import find_policy, policy_names
from reasonrt.policies.stopping.policy import CommonOptions
from reasonrt.serve.logs import JsonFormatter
from reasonrt.serve.wire.requests import ChatMessage, ChatRequest, CompletionRequest, OwnFields, StreamOptions

OPTIONS = sorted(
    {
        (policy, name)
        for policy in policy_names()
        for kind in (*find_policy(policy).option_types(), CommonOptions)
        for name in option_names(kind)
    }
)
LONG = 900_000
ENOUGH = 4_000
PIECES = ["x", "\x1b[2J", "\x00", "\n", "\x9b", "\u202e", "é", '"', "'", "{", "x_"]


def shapes(text: str) -> list[Any]:
    """What may stand in the place of a value."""
    return [text, [text], {text: 1}, {"kind": text}, [[[{text: [text]}]]]]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "target", "messages": [{"role": "user", "content": "3 + 4?"}], "max_tokens": 8} | fields


def plain(**fields: Any) -> dict[str, Any]:
    return {"model": "target", "prompt": "3 + 4?", "max_tokens": 8} | fields


ROUTES: list[tuple[str, Any, type[BaseModel]]] = [
    ("/v1/chat/completions", chat, ChatRequest),
    ("/v1/completions", plain, CompletionRequest),
]


def requests() -> Iterator[tuple[str, Any]]:
    """Where a caller can put a text: a function from the text to the body."""
    for path, body, kind in ROUTES:
        yield path, lambda wrong, body=body: body(**{_key(wrong): 1})
        for name in kind.model_fields:
            yield path, lambda wrong, body=body, name=name: body(**{name: wrong})
        for outer, inner in (("reasonrt", OwnFields), ("stream_options", StreamOptions)):
            yield path, lambda wrong, body=body, outer=outer: body(**{outer: {_key(wrong): 1}})
            for name in inner.model_fields:
                yield path, lambda wrong, body=body, outer=outer, name=name: body(**{outer: {name: wrong}})
    for name in (*ChatMessage.model_fields, "other"):
        yield "/v1/chat/completions", lambda wrong, name=name: chat(messages=[{"role": "user", name: wrong}])
    for policy, name in OPTIONS:
        yield (
            "/v1/chat/completions",
            lambda wrong, policy=policy, name=name: chat(model=policy, reasonrt={"options": {name: wrong}}),
        )


REQUESTS = list(requests())


def _key(wrong: Any) -> str:
    return wrong if isinstance(wrong, str) else next(iter(str(wrong).split("'")), "x")[:LONG] or "x"


def is_short(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text[:2000]
    if answer.status_code == 200:
        return
    assert len(answer.content) < 2000
    error = answer.json()["error"]
    for text in filter(None, (error["message"], error["param"])):
        assert text.isprintable()
        assert "x" * 81 not in text


@pytest.fixture(scope="module")
def small(start: Any) -> Any:
    """A server that refuses a long prompt without tokenizing it for seconds."""
    return start(bounds={"body_bytes": 1 << 23})


def test_no_field_and_no_option_is_said_back_whole(small: Any) -> None:
    """Each with one of the pieces in one of the shapes; what is cut at 80 characters is cut whatever comes."""
    wrongs = cycle(wrong for piece in PIECES for wrong in shapes((piece * ENOUGH)[:ENOUGH]))
    client = small.http()

    for (path, body), wrong in zip(REQUESTS, wrongs, strict=False):
        is_short(client.post(path, json=body(wrong)))


@settings(deadline=None, max_examples=5)
@given(request=st.sampled_from(REQUESTS), piece=st.sampled_from(PIECES), shape=st.integers(0, 4))
def test_megabytes_are_not_said_back(small: Any, request: Any, piece: str, shape: int) -> None:
    path, body = request

    is_short(small.http().post(path, json=body(shapes((piece * LONG)[:LONG])[shape])))


@pytest.mark.parametrize("path", ["/v1/models/{}", "/{}", "/v1/models?{}", "/health/{}"])
@pytest.mark.parametrize("text", ["x" * 20_000, "%1b%5b2J%00%0a%c2%9b" * 200, "%e2%80%ae"])
def test_no_path_is_said_back_whole(running: Any, path: str, text: str) -> None:
    is_short(running.http().get(path.format(text)))


@pytest.mark.parametrize(
    "model", ["x" * 256, "target@" + "x" * 240, "target@k=" + "[" * 240, "target@k=&a [*a]", "\x1b[2J"]
)
def test_no_model_is_said_back_whole(running: Any, model: str) -> None:
    is_short(running.http().post("/v1/chat/completions", json=chat(model=model)))


SECRETS = ("http://ada:sesame@inner.example:81/v1", "sesame", "inner.example", "what the upstream says")


class Upstream(ScriptedEngine):
    """Fails as an engine on another server does."""

    begins = True

    async def work(self, num_tokens: int, life: int) -> None:
        await super().work(num_tokens, life)
        if self.begins or self.generated_tokens > 3:
            raise UpstreamError(f"{SECRETS[0]} answered 500: {SECRETS[3]}; see the server's log")


class Interrupted(Upstream):
    begins = False


@pytest.mark.parametrize("kind", [Upstream, Interrupted])
@pytest.mark.parametrize("is_stream", [False, True])
def test_caller_of_a_failed_engine_learns_the_id_and_nothing_that_is_the_operators(
    start: Any, caplog: pytest.LogCaptureFixture, kind: Any, is_stream: bool
) -> None:
    server = start("One.\n\nTwo.\n\nThree.\n\n\\boxed{7}", kind=kind, max_resumes=0)

    with caplog.at_level(logging.INFO):
        answer = server.http().post(
            "/v1/chat/completions", json=chat(stream=is_stream, max_tokens=40), headers={"x-request-id": "of-mine"}
        )

    told = answer.text
    assert "an engine failed" in told
    assert "of-mine" in told
    assert answer.headers["x-request-id"] == "of-mine"
    assert not [secret for secret in SECRETS if secret in told]
    logged = [JsonFormatter().format(record) for record in caplog.records]
    (cause,) = [line for line in logged if "of-mine" in json.loads(line)["message"]]
    assert "what the upstream says" in cause
    assert not [line for line in logged if "sesame" in line]


def test_answer_that_outlives_a_failed_draft_does_not_tell_what_its_server_said(start: Any) -> None:
    server = start("One.\n\nTwo.\n\n\\boxed{7}", engines={
        "draft": Upstream("draft", "One.\n\n"), "target": ScriptedEngine("target", "One.\n\nTwo.\n\n\\boxed{7}"),
    })  # fmt: skip

    answer = server.http().post("/v1/chat/completions", json=chat(model="entropy", reasonrt={"trace": True}))

    assert answer.status_code == 200
    assert "the server of an engine failed" in answer.text
    assert not [secret for secret in SECRETS if secret in answer.text]
