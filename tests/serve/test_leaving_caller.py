"""A caller that leaves frees the engines, streaming or not, running or waiting."""

import asyncio
import json
import random
import socket
import time
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest

from reasonrt.serve import reply
from tests.waiting import wait_until

SLOW = {"seconds_per_token": 0.0125, "chunk_tokens": 4}
LONG = "<think>\n" + "a b c\n\n" * 800 + "</think>\n\n7"
"""Takes a minute."""
SOON_S = 20.0
BODY = {"model": "target", "messages": [{"role": "user", "content": "?"}], "max_tokens": 10_000}
POLICIES = ["target", "self_consistency", "arbitrage"]


@pytest.fixture(scope="module")
def slow(start: Any) -> Any:
    return start(LONG, engine=SLOW)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("is_stream", [True, False])
def test_engines_are_free_soon_after_their_caller_has_left(slow: Any, policy: str, is_stream: bool) -> None:
    body = json.dumps(BODY | {"model": policy, "stream": is_stream, "n": 2}).encode()
    url = httpx.URL(slow.url)
    with socket.create_connection((url.host, url.port)) as caller:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        caller.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        wait_until(lambda: slow.working >= 2)

    wait_until(lambda: slow.working == 0, SOON_S)
    wait_until(lambda: slow.server.gateway.admission.is_idle)


def test_who_has_begun_another_request_and_leaves_is_noticed(slow: Any) -> None:
    with slow.connect() as caller:
        caller.sendall(slow.raw(BODY))
        wait_until(lambda: slow.working >= 1)
        caller.sendall(b"GET /h")
        time.sleep(0.1)

    wait_until(lambda: slow.working == 0, SOON_S)


def test_client_that_closes_its_stream_frees_the_engines(slow: Any) -> None:
    stream = slow.openai().chat.completions.create(**BODY, stream=True)
    wait_until(lambda: slow.working == 1)

    stream.close()

    wait_until(lambda: slow.working == 0, SOON_S)


def test_client_that_times_out_frees_the_engines(slow: Any) -> None:
    with pytest.raises(openai.APITimeoutError):
        slow.openai(timeout=1.0).chat.completions.create(**BODY)

    wait_until(lambda: slow.working == 0, SOON_S)


def test_caller_that_leaves_while_it_waits_gives_up_its_turn(start: Any) -> None:
    server = start(LONG, engine=SLOW, bounds={"running": 1, "queued": 4})
    admission = server.server.gateway.admission
    first = server.openai().chat.completions.create(**BODY, stream=True)
    wait_until(lambda: server.working == 1)

    with pytest.raises(openai.APITimeoutError):
        server.openai(timeout=1.0).chat.completions.create(**BODY)
    wait_until(lambda: admission.queued == 0, SOON_S)
    first.close()

    wait_until(lambda: admission.is_idle)
    assert server.working == 0


def test_hundred_that_leave_at_random_leave_nothing_behind(start: Any) -> None:
    server = start(LONG, engine=SLOW)
    dice = random.Random(5)

    async def leave(client: httpx.AsyncClient) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(dice.uniform(0, 0.5)):
                await client.post("/v1/chat/completions", json=BODY | {"stream": dice.random() < 0.5, "n": 2})

    async def all_of_them() -> None:
        async with httpx.AsyncClient(base_url=server.url) as client:
            await asyncio.gather(*(leave(client) for _ in range(100)))

    asyncio.run(all_of_them())

    wait_until(lambda: server.working == 0, SOON_S)
    wait_until(lambda: server.server.gateway.admission.is_idle)


def test_caller_that_never_reads_loses_its_place(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply, "_SEND_S", 0.5)
    text = ("a" * 50_000 + "\n\n") * 20
    server = start(text, engine={"max_model_len": 2_000_000}, bounds={"deadline_s": 1, "max_tokens": 1_000_000})
    server.engines[1].chunk_tokens = 50_001
    body = json.dumps(BODY | {"stream": True, "max_tokens": 1_000_000, "n": 8}).encode()
    with socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.connect(("127.0.0.1", httpx.URL(server.url).port))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        began = time.monotonic()
        caller.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        wait_until(lambda: not server.server.gateway.admission.is_idle)
        wait_until(lambda: server.server.gateway.admission.is_idle, 15)  # after 20 s its connection is closed anyway

    assert time.monotonic() - began > 1.0  # up to its deadline, it has its place
