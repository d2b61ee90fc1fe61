"""What a server as an engine does wrong, as the callers of ours see it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from reasonrt.engines.remote import RemoteEngine
from tests.engines.fake_server import FakeServer, Manner

TEXT = "One.\n\nTwo.\n\n\\boxed{7}"
TEXTS = Manner(ids=False)
ASK: Any = {"model": "target", "messages": [{"role": "user", "content": "?"}]}
JSON = {"content-type": "application/json"}
Serve = Callable[..., Any]


@pytest.fixture
async def serve(start: Any, tokenizer_folder: Path) -> AsyncIterator[Serve]:
    """A client of a server whose target is on this fake one."""
    async with AsyncExitStack() as stack:

        async def begin(server: FakeServer, **keys: Any) -> httpx.AsyncClient:
            listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
            stack.callback(listening.close)
            port = listening.sockets[0].getsockname()[1]
            engine = RemoteEngine("far", f"http://127.0.0.1:{port}/v1", "m", tokenizer=tokenizer_folder)
            running = await asyncio.to_thread(start, engines={"target": engine}, **keys)
            # it listens before its engines have started
            await asyncio.to_thread(running.wait_until, lambda: running.server.gateway.backend.ready)
            return await stack.enter_async_context(httpx.AsyncClient(base_url=f"{running.url}/v1", timeout=20))

        yield begin


class Miscounting(FakeServer):
    """Says that it has written one token, and that the prompt was long."""

    def _usage(self, num_tokens: int, when: str) -> dict[str, Any]:
        return {"usage": {"completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 10**6}}}


@pytest.mark.parametrize("manner", [TEXTS, replace(TEXTS, chat=True), Manner()], ids=["text", "chat", "ids"])
@pytest.mark.parametrize("policy", ["target", "self_consistency"])
async def test_no_count_of_a_server_makes_usage_negative(
    serve: Serve, tokenizer_folder: Path, manner: Manner, policy: str
) -> None:
    client = await serve(Miscounting(tokenizer_folder, TEXT, manner))
    response = await client.post("/chat/completions", json=ASK | {"model": policy})

    assert response.status_code == 200
    usage = response.json()["reasonrt"]["usage"]["far"]
    assert min(usage.values()) >= 0
    assert usage["generated"] >= len(TEXT.replace("\n\n", ""))  # a blank line is one token with the full stop


async def test_number_that_json_does_not_know_is_the_callers(serve: Serve, tokenizer_folder: Path) -> None:
    client = await serve(FakeServer(tokenizer_folder, TEXT, Manner()))
    body = '{"model": "target", "messages": [{"role": "user", "content": "?"}], "structured_outputs": {"json": '
    response = await client.post("/chat/completions", content=body + '{"minimum": 1e999}}}', headers=JSON)

    assert response.status_code == 400
    assert "numbers in a structure must be finite" in response.json()["error"]["message"]


class Failing(FakeServer):
    """Gives up each generation after its first step."""

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from islice(super()._events(body), 6)
        yield {"error": {"message": "out of memory"}}


async def test_chat_that_cannot_be_continued_is_told_of_as_what_broke_off(
    serve: Serve, tokenizer_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing in the request is wrong."""
    client = await serve(Failing(tokenizer_folder, TEXT, replace(TEXTS, chat=True)))
    response = await client.post("/chat/completions", json=ASK)

    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_error")
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "gave up a generation: out of memory" in str(record.exc_info and record.exc_info[1])


@pytest.mark.parametrize(
    ("turned_away", "asked"),
    [
        ((429, {"Retry-After": "0"}), 4),
        ((503, {"Retry-After": "0", "x-should-retry": "false"}), 1),
        ((500, {"x-should-retry": "false"}), 1),
        ((400, {}), 1),
        ((401, {}), 1),
        ((500, {}), 2),  # it may have died, and come back
    ],
    ids=str,
)
async def test_server_that_turns_a_request_away_is_asked_no_more_than_it_says(
    serve: Serve, tokenizer_folder: Path, turned_away: tuple[int, dict[str, str]], asked: int
) -> None:
    server = FakeServer(tokenizer_folder, TEXT, TEXTS)
    client = await serve(server, max_resumes=1)
    server.busy, before = [turned_away] * 20, len(server.bodies)
    response = await client.post("/chat/completions", json=ASK)

    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_error")
    assert len(server.bodies) - before == asked
