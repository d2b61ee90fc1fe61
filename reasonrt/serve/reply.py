"""One answer as it is sent: whole or as a stream, given up as soon as the caller leaves."""

import asyncio
import time
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from reasonrt.serve.backends.base import Accepted
from reasonrt.serve.catalog import Job
from reasonrt.serve.choice import Choice
from reasonrt.serve.gateway import Gateway, Update
from reasonrt.serve.wire.errors import ApiError, draining, to_api_error
from reasonrt.serve.wire.rendering import Layout, own_fields, usage, warning
from reasonrt.tasks import cancel
from reasonrt.types import Completion, Report

_SEND_S = 30.0  # beyond the deadline, for a caller that reads slowly: after it, its place goes to others
_STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
_STREAM_HEADERS |= {"x-accel-buffering": "no"}  # a proxy must not collect steps


class Reply(Response):
    """Solves `job` while it answers.

    Args:
        key: whose places it takes.
        note: gets what the log should say of it.
    """

    def __init__(self, gateway: Gateway, job: Job, layout: Layout, key: str, note: dict[str, Any]) -> None:
        self._gateway, self._job, self._layout, self._key, self._note = gateway, job, layout, key, note
        self.background = None
        self._is_started = self._is_over = False
        self._sending, self._sent_s = asyncio.Lock(), time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises what `Gateway.solve` raises, as long as nothing was sent."""
        request = self._job.request
        self._note |= {"model": self._job.model, "policy": request.policy, "stream": self._job.is_stream}
        if self._job.ignored:
            self._note["ignored"] = self._job.ignored
        if self._gateway.config.log_prompts:
            self._note["messages"] = [[message.role, message.content] for message in request.messages]
        request_id = scope["state"]["request_id"]
        work = asyncio.ensure_future(self._stream(send, request_id) if self._job.is_stream else self._whole(send))
        self._gateway.replies.add(work)
        leaving = asyncio.ensure_future(_left(receive))
        deadline_s = request.limits.deadline_s
        patience_s = None if deadline_s is None else deadline_s + _SEND_S
        try:
            await asyncio.wait({work, leaving}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            self._note["left"] = leaving.done() and not work.done()
        finally:
            await cancel(work, leaving)
            self._gateway.replies.discard(work)
        if not work.cancelled():
            work.result()
        elif self._gateway.is_over and not self._note["left"]:
            await self._break_off(send)
        elif not self._is_started and not self._is_over and not self._note["left"]:
            raise ApiError(503, f"it was not answered {_SEND_S:g} s after its deadline", code="late")

    async def _break_off(self, send: Send) -> None:
        error = draining()
        if self._is_over:
            return
        if not self._is_started:
            raise error
        self._note["error"] = error.message
        await send({"type": "http.response.body", "body": self._layout.failed(error)})

    async def _whole(self, send: Send) -> None:
        choices: dict[int, Choice] = {}
        async with aclosing(self._gateway.solve(self._job, self._key)) as updates:
            async for update in updates:
                choices[update.choice.index] = update.choice
        ended = [choices[index] for index in sorted(choices)]
        self._note_end(ended)
        body = self._layout.whole(ended)
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        await _start(send, headers | warning(self._job))
        self._is_over = True  # nothing else fits its length
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send: Send, request_id: str) -> None:
        ended: dict[int, Choice] = {}
        filling: asyncio.Future[None] | None = None
        try:
            async with aclosing(self._gateway.solve(self._job, self._key)) as updates:
                async for update in updates:
                    if not self._is_started:
                        await _start(send, _STREAM_HEADERS | warning(self._job))
                        self._is_started = True
                        filling = asyncio.ensure_future(self._fill_silence(send))
                    if chunk := self._chunk(update):
                        await self._send(send, chunk)
                    if isinstance(update.event, Completion):
                        ended[update.choice.index] = update.choice
            choices = [ended[index] for index in sorted(ended)]
            self._note_end(choices)
            end = self._layout.end(choices)
        except Exception as error:
            if not self._is_started:
                raise
            told = to_api_error(error, request_id)
            self._note["error"] = told.message
            end = self._layout.failed(told)
        finally:
            await cancel(filling)
        await send({"type": "http.response.body", "body": end})  # it waits before it writes: cut off, nothing is sent
        self._is_over = True

    async def _send(self, send: Send, chunk: bytes) -> None:
        async with self._sending:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._sent_s = time.monotonic()

    async def _fill_silence(self, send: Send) -> None:
        """Whoever stands between closes a stream on which nothing comes."""
        most_s = self._gateway.config.keep_alive_s
        while True:
            await asyncio.sleep(max(0.0, self._sent_s + most_s - time.monotonic()))
            if self._sending.locked():  # what is sent waits for the caller to read
                await asyncio.sleep(most_s)
            elif time.monotonic() >= self._sent_s + most_s:
                await self._send(send, self._layout.keep_alive())

    def _chunk(self, update: Update) -> bytes:
        if isinstance(update.event, Accepted):
            return self._layout.first(update.choice)
        if isinstance(update.event, Completion):
            return self._layout.last(update.choice, update.new)
        if isinstance(update.event, Report):
            return self._layout.event(update.choice)
        return self._layout.delta(update.choice, update.new)

    def _note_end(self, choices: list[Choice]) -> None:
        counted = usage(choices, self._job.num_prompts)
        self._note["finish_reason"] = [own_fields(choice).finish_reason for choice in choices]
        if warnings := [dict(choice.completion.warnings) for choice in choices if choice.completion.warnings]:
            self._note["warnings"] = warnings
        self._note |= counted.model_dump(include={"prompt_tokens", "completion_tokens"})


async def _start(send: Send, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})


async def _left(receive: Receive) -> None:
    """Return when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
