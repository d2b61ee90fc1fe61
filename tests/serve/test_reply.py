"""One answer, when the server ends or its time is over: whatever is under way then, the caller is told."""

import asyncio
import json
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from reasonrt import Runtime
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.serve import reply
from reasonrt.serve.backends.local import Worker
from reasonrt.serve.catalog import Catalog
from reasonrt.serve.config import ServeConfig
from reasonrt.serve.gateway import Gateway
from reasonrt.serve.metrics import Metrics
from reasonrt.serve.reply import Reply
from reasonrt.serve.wire.errors import ApiError
from reasonrt.serve.wire.rendering import ReplyFormat
from reasonrt.serve.wire.requests import ChatRequest, parse

BODY = {"model": "target", "messages": [{"role": "user", "content": "?"}]}


class Caller:
    """Reads up to a point, as uvicorn's connections have it: a write waits first, and then writes all of it."""

    def __init__(self, waits_at: str) -> None:
        self.waits_at, self.is_waiting, self.read = waits_at, asyncio.Event(), b""

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Any) -> None:
        is_last = message["type"] == "http.response.body" and not message.get("more_body")
        if ("end" if is_last else message["type"]) == self.waits_at and not self.is_waiting.is_set():
            self.is_waiting.set()
            await asyncio.Event().wait()
        self.read += message.get("body", b"")


@asynccontextmanager
async def answering(
    caller: Caller, is_stream: bool, **bounds: Any
) -> AsyncGenerator[tuple[Gateway, "asyncio.Future[None]"], None]:
    config = ServeConfig.model_validate({"bounds": bounds})
    async with Worker(Runtime({"target": ScriptedEngine("target", r"\boxed{7}")})) as worker:
        gateway = Gateway(worker, config, Metrics())
        asked = parse(ChatRequest, json.dumps(BODY | {"stream": is_stream}).encode())
        job = Catalog(worker.runtime, config).to_job(asked)
        answer = Reply(gateway, job, ReplyFormat("chat", job, config.reasoning_fields), "", {})
        yield gateway, asyncio.ensure_future(answer({"state": {"request_id": "r"}}, caller.receive, caller.send))


async def test_a_stream_whose_end_waits_for_its_reader_still_ends_with_an_event() -> None:
    caller = Caller("end")
    async with answering(caller, is_stream=True) as (gateway, answer):
        await asyncio.wait_for(caller.is_waiting.wait(), 60)
        gateway.cut_off()
        await asyncio.wait_for(answer, 60)

    assert b"draining" in caller.read
    assert caller.read.endswith(b"data: [DONE]\n\n")


async def test_an_answer_that_waits_for_its_reader_before_it_begins_is_refused() -> None:
    caller = Caller("http.response.start")
    async with answering(caller, is_stream=False) as (gateway, answer):
        await asyncio.wait_for(caller.is_waiting.wait(), 60)
        gateway.cut_off()

        with pytest.raises(ApiError, match="shutting down"):
            await asyncio.wait_for(answer, 60)


async def test_what_is_not_answered_in_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply, "_SEND_S", 0.1)
    caller = Caller("http.response.start")
    async with answering(caller, is_stream=False, deadline_s=0.1) as (_, answer):
        with pytest.raises(ApiError, match=r"not answered 0\.1 s after its deadline"):
            await asyncio.wait_for(answer, 60)


@pytest.mark.parametrize("is_told_twice", [False, True])
def test_who_still_sends_its_body_is_told_that_the_server_ends(start: Any, is_told_twice: bool) -> None:
    server = start(grace_s=60 if is_told_twice else 0.2)
    head, _, body = server.raw(BODY, num_bytes=1000).partition(b"\r\n\r\n")
    with server.connect() as connection:
        connection.sendall(head + b"\r\n\r\n" + body)
        server.wait_until(lambda: server.admission.body_bytes > 0)

        for _ in range(1 + is_told_twice):
            server.server.handle_exit(signal.SIGTERM, None)
        answer = connection.recv(4096)

    assert b" 503 " in answer.partition(b"\r\n")[0]
    assert b"shutting down" in answer
