"""Keys, hosts, sizes, rates: who is let in, and what the others are told."""

import json
import logging
import time
from typing import Any

import httpx
import openai
import pytest
from pydantic import ValidationError

from reasonrt.serve.auth import KeyRing
from reasonrt.serve.config import ServeConfig
from reasonrt.serve.logs import JsonFormatter

KEYS = {"ada": "ada-" + "a" * 16, "bob": "bob-" + "b" * 16}
BODY: Any = {"model": "target", "messages": [{"role": "user", "content": "3 + 4?"}]}
PATHS = ["/ready", "/metrics", "/version", "/openapi.json", "/v1/models", "/v1/models/target", "/nothing", "/health/"]


@pytest.fixture(scope="module")
def locked(start: Any) -> Any:
    return start(api_keys=KEYS)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer x", "Basic " + KEYS["ada"], KEYS["ada"], "Bearer " + KEYS["ada"][:-1]]
)
def test_every_path_but_health_needs_a_key(locked: Any, path: str, header: str | None) -> None:
    answer = httpx.get(locked.url + path, headers={"authorization": header} if header else {})

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("key", KEYS.values())
def test_each_key_opens(locked: Any, key: str) -> None:
    headers = {"authorization": f"bearer {key}"}

    assert httpx.get(locked.url + "/v1/models", headers=headers).status_code == 200
    assert httpx.post(locked.url + "/v1/chat/completions", headers=headers, json=BODY).status_code == 200


def test_keys_do_not_share_a_prefix_cache(locked: Any) -> None:
    def cached(key: str, question: str) -> int:
        asked = BODY | {"messages": [{"role": "user", "content": question}]}
        answer = httpx.post(
            locked.url + "/v1/chat/completions", headers={"authorization": f"bearer {KEYS[key]}"}, json=asked
        )
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached("ada", "a question of hers") < cached("ada", "a question of hers")
    assert cached("bob", "a question of hers") <= cached("bob", "b")  # what all his requests begin with, no more


def test_health_needs_none_and_tells_nothing(locked: Any) -> None:
    assert httpx.get(locked.url + "/health").json() == {"alive": True}


def test_openai_client_gets_its_own_error_class(locked: Any) -> None:
    with pytest.raises(openai.AuthenticationError, match="no valid API key"):
        locked.openai(api_key="wrong").chat.completions.create(**BODY)


def test_key_ring_finds_owners_and_keeps_no_keys() -> None:
    ring = KeyRing(KEYS)

    assert [ring.owner(key) for key in (*KEYS.values(), "", "é", "\udc80")] == ["ada", "bob", None, None, None]
    assert not any(key in repr(vars(ring)) for key in KEYS.values())


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "10.0.0.1:8000", "[fe80::1]"]
)
def test_without_keys_only_localhost_is_answered(running: Any, host: str) -> None:
    answer = httpx.post(running.url + "/v1/chat/completions", json=BODY, headers={"host": host})

    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "wrong_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
def test_localhost_by_any_name_is_answered(running: Any, host: str) -> None:
    assert httpx.get(running.url + "/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "[::1].evil.example",
        "[::1",
        "::1",
        "localhost:80@evil.example",
        "user@localhost",
        "localhost/evil.example",
        "localhost, evil.example",
        "localhost evil.example",
        "localhost:",
        "localhost:x",
        "localhost:123456",
        "localhost\\evil.example",
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/health"])
def test_what_is_no_host_is_refused_with_and_without_keys(running: Any, locked: Any, host: str, path: str) -> None:
    for server in (running, locked):
        answer = server.http().get(path, headers={"host": host})

        assert answer.status_code == 400, server.key
        assert answer.json()["error"]["code"] == "wrong_host"


@pytest.mark.parametrize(
    "hosts", [("localhost", "localhost"), ("localhost", "evil.example"), ("evil.example", "localhost")]
)
def test_two_hosts_are_refused(running: Any, locked: Any, hosts: tuple[str, str]) -> None:
    for server in (running, locked):
        with server.connect() as connection:
            connection.sendall(
                server.raw(BODY).replace(b"host: localhost", "host: {}\r\nHost: {}".format(*hosts).encode())
            )

            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", ["/v1/models/", "/health/", "/v1/chat/completions/", "//health", "/ready/"])
def test_nobody_is_sent_elsewhere(running: Any, locked: Any, path: str) -> None:
    for server in (running, locked):
        for host in ("localhost", "evil.example"):
            answer = server.http().get(server.url + path, headers={"host": host})

            assert answer.status_code in (403, 404, 405)
            assert "location" not in answer.headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_web_page_may_send_unasked_is_refused(running: Any, kind: str) -> None:
    answer = httpx.post(running.url + "/v1/chat/completions", content=json.dumps(BODY), headers={"content-type": kind})

    assert answer.status_code == 415


def test_no_origin_is_allowed_unless_configured(running: Any, start: Any) -> None:
    asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
    asked["access-control-request-headers"] = "authorization,content-type,x-request-id,x-stainless-lang"  # openai-node
    allowing = start(cors_origins=["https://app.example"])

    assert "access-control-allow-origin" not in httpx.options(running.url + "/v1/models", headers=asked).headers
    allowed = httpx.options(allowing.url + "/v1/chat/completions", headers=asked)
    assert allowed.is_success
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    told = httpx.get(allowing.url + "/v1/models", headers={"origin": asked["origin"]})
    assert told.headers["x-request-id"]
    assert "x-request-id" in told.headers["access-control-expose-headers"]


@pytest.mark.parametrize("is_declared", [True, False])
def test_large_bodies_are_refused(start: Any, is_declared: bool) -> None:
    server = start(bounds={"body_bytes": 2048})
    body = json.dumps(BODY | {"user": "x" * 3000}).encode()
    content = body if is_declared else iter([body[:1000], body[1000:]])

    answer = httpx.post(
        server.url + "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )

    assert answer.status_code == 413


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 100_000, b'{"model": "\\ud800"}', b"1" * 10_000]
)
def test_what_is_no_request_is_refused(running: Any, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(running.url + "/v1/chat/completions", content=body, headers=headers)

    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("length", "size"), [(100, r"\d+ tokens"), (5000, "5000 characters")])
def test_prompt_over_the_context_is_refused(start: Any, length: int, size: str) -> None:
    server = start(engine={"max_model_len": 100})
    messages: Any = [{"role": "user", "content": "x" * length}]

    with pytest.raises(openai.BadRequestError, match=f"the prompt has {size}, there is room for 99 tokens") as raised:
        server.openai().chat.completions.create(model="target", messages=messages, stream=True)

    assert raised.value.code == "context_length_exceeded"


def test_rate_and_concurrency_are_bounded_for_each_key(start: Any) -> None:
    server = start(
        "a b c\n\n" * 100,
        engine={"seconds_per_token": 0.01},
        api_keys=KEYS,
        bounds={"running_per_key": 1, "requests_per_minute_per_key": 3},
    )
    ada, bob = (server.openai(api_key=key) for key in KEYS.values())
    began = time.monotonic()
    first = ada.chat.completions.create(**BODY, stream=True)
    next(iter(first))

    with pytest.raises(openai.RateLimitError, match="may have 1 generations running or waiting") as busy:
        ada.chat.completions.create(**BODY)
    other = bob.chat.completions.create(**BODY, stream=True)
    first.close()
    other.close()

    assert int(busy.value.response.headers["retry-after"]) >= 1
    assert busy.value.response.headers["x-should-retry"] == "true"
    server.wait_until(lambda: server.admission.is_idle)
    for _ in range(2):
        ada.chat.completions.create(**BODY, max_tokens=1)
    with pytest.raises(openai.RateLimitError, match="may send 3 requests per minute") as fast:
        ada.chat.completions.create(**BODY, max_tokens=1)
    assert 20 - (time.monotonic() - began) <= int(fast.value.response.headers["retry-after"]) <= 20


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])  # noqa: S104
def test_open_host_without_a_key_is_refused_with_the_reason(host: str) -> None:
    with pytest.raises(ValidationError, match=r"anybody who reaches .* give api_keys, or bind 127"):
        ServeConfig(host=host)

    assert ServeConfig.model_validate({"host": host, "api_keys": KEYS}).host == host


def test_short_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="'ada' must have at least 16 characters"):
        ServeConfig.model_validate({"api_keys": {"ada": "secret"}})


def test_keys_do_not_show() -> None:
    config = ServeConfig.model_validate({"api_keys": KEYS})

    assert not any(key in text for key in KEYS.values() for text in (repr(config), config.model_dump_json()))


def test_log_has_a_line_per_request_and_no_prompt(running: Any, start: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "reasonrt.serve"):
        for server in (running, start(log_prompts=True)):
            server.http().post("/v1/chat/completions", json=BODY, headers={"x-request-id": "my-id"})
        give_up = time.monotonic() + 60
        lines: list[dict[str, Any]] = []
        while len(lines) < 2 and time.monotonic() < give_up:  # a line is written after the answer
            time.sleep(0.01)
            told = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
            lines = [line for line in told if line.get("path") == "/v1/chat/completions"]

    quiet, chatty = lines
    assert quiet["request_id"] == "my-id"
    assert (quiet["status"], quiet["policy"], quiet["finish_reason"], quiet["left"]) == (200, "target", ["stop"], False)
    assert quiet["completion_tokens"] > 0
    assert "3 + 4" not in json.dumps(quiet)
    assert "3 + 4" in json.dumps(chatty)


@pytest.mark.parametrize("asked", ["x" * 129, "a b", "é", '"', ""])
def test_request_ids_that_could_break_a_log_are_replaced(running: Any, asked: str) -> None:
    headers = {b"x-request-id": asked.encode()}

    assert httpx.get(running.url + "/health", headers=headers).headers["x-request-id"] != asked
