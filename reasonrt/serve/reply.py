"""One answer as it is sent: whole or as a stream, given up as soon as the caller leaves."""

import asyncio
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from reasonrt.serve.backends.base import Accepted
from reasonrt.serve.catalog import Job
from reasonrt.serve.choice import Choice
from reasonrt.serve.gateway import Gateway, Update
from reasonrt.serve.wire.errors import ApiError, to_api_error
from reasonrt.serve.wire.rendering import DONE, KEEP_ALIVE, ReplyFormat, own_fields, to_event, usage, warning
from reasonrt.tasks import cancel
from reasonrt.types import Completion

_SEND_S = 30.0  # beyond the deadline, for a caller that reads slowly: after it, its place goes to others
_STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
_STREAM_HEADERS |= {"x-accel-buffering": "no"}  # a proxy must not collect steps


class Reply(Response):
    """Solves `job` while it answers.

    Args:
        key: whose places it takes.
        note: gets what the log should say of it.
    """

    def __init__(self, gateway: Gateway, job: Job, layout: ReplyFormat, key: str, note: dict[str, Any]) -> None:
        self._gateway, self._job, self._layout, self._key, self._note = gateway, job, layout, key, note
        self.background = None
        self._is_started = self._is_over = False

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
            self._note["left"] = not work.done()
        finally:
            await cancel(work, leaving)
            self._gateway.replies.discard(work)
        if not work.cancelled():
            work.result()
        elif self._gateway.is_over and not self._note["left"]:
            await self._break_off(send)

    async def _break_off(self, send: Send) -> None:
        error = ApiError(503, "the server is shutting down", code="draining", retry_after_s=5.0)
        if self._is_over:
            return
        if not self._is_started:
            raise error
        self._note["error"] = error.message
        await send({"type": "http.response.body", "body": to_event(error.body()) + DONE})

    async def _whole(self, send: Send) -> None:
        choices: dict[int, Choice] = {}
        async with aclosing(self._gateway.solve(self._job, self._key)) as updates:
            async for update in updates:
                if update is not None:
                    choices[update.choice.index] = update.choice
        ended = [choices[index] for index in sorted(choices)]
        self._note_end(ended)
        body = self._layout.whole(ended)
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        self._is_over = True
        await _start(send, headers | warning(self._job))
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send: Send, request_id: str) -> None:
        ended: dict[int, Choice] = {}
        try:
            async with aclosing(self._gateway.solve(self._job, self._key)) as updates:
                async for update in updates:
                    if not self._is_started and update is not None:
                        await _start(send, _STREAM_HEADERS | warning(self._job))
                        self._is_started = True
                    if self._is_started and (chunk := self._chunk(update)):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    if update is not None and isinstance(update.event, Completion):
                        ended[update.choice.index] = update.choice
            choices = [ended[index] for index in sorted(ended)]
            self._note_end(choices)
            end = self._layout.usage_chunk(choices) if self._job.has_usage_chunk else b""
        except Exception as error:
            if not self._is_started:
                raise
            told = to_api_error(error, request_id)
            self._note["error"] = told.message
            end = to_event(told.body())
        self._is_over = True
        await send({"type": "http.response.body", "body": end + DONE})

    def _chunk(self, update: Update | None) -> bytes:
        if update is None:
            return KEEP_ALIVE
        if isinstance(update.event, Accepted):
            return self._layout.first(update.choice)
        if isinstance(update.event, Completion):
            return self._layout.last(update.choice, update.new)
        return self._layout.delta(update.choice, update.new)

    def _note_end(self, choices: list[Choice]) -> None:
        counted = usage(choices, self._job.num_prompts)
        self._note["finish_reason"] = [own_fields(choice).finish_reason for choice in choices]
        self._note |= counted.model_dump(include={"prompt_tokens", "completion_tokens"})


async def _start(send: Send, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})


async def _left(receive: Receive) -> None:
    """Return when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
