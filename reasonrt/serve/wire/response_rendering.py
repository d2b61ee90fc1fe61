"""Answers of `POST /v1/responses`: the events of the one choice become items, and events about items.

A whole answer is made by the same steps as a stream, whose events are left out.
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from reasonrt.serve.catalog import Job
from reasonrt.serve.choice import Choice, Shown, Token
from reasonrt.serve.wire.errors import ApiError
from reasonrt.serve.wire.rendering import chat_logprobs, finish_reason, own_fields, usage
from reasonrt.serve.wire.response_answers import (
    CallDeltaEvent,
    CallDoneEvent,
    EffectiveReasoning,
    EffectiveText,
    Event,
    IncompleteDetails,
    InputTokensDetails,
    ItemEvent,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    OutputTokensDetails,
    OwnOfResponse,
    PartEvent,
    ReasoningDeltaEvent,
    ReasoningDoneEvent,
    ReasoningText,
    ResponseError,
    ResponseResource,
    ResponseStateEvent,
    ResponseUsage,
    Status,
    TextDeltaEvent,
    TextDoneEvent,
)
from reasonrt.serve.wire.response_request import ResponseRequest
from reasonrt.serve.wire.responses import TokenLogprob, TracedStep
from reasonrt.types import FunctionTool, ToolCall, total_usage

Kind = TypeVar("Kind", bound=Event)


class ResponseFormat:
    """One answer; as `ReplyFormat`, of a request for one choice.

    Args:
        body: what was asked for; the answer says so.
    """

    def __init__(self, body: ResponseRequest, job: Job) -> None:
        self._body, self._job = body, job
        self.id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._num_events = 0
        self._items: list[OutputItem] = []

    def whole(self, choices: Sequence[Choice]) -> bytes:
        (choice,) = choices
        for _ in self._written(choice.shown):
            pass
        for _ in self._closed(choice):
            pass
        return self._ended(choice).to_json()

    def first(self, choice: Choice) -> bytes:
        begun = self._resource("in_progress")
        return self._state("response.created", begun) + self._state("response.in_progress", begun)

    def delta(self, choice: Choice, new: Shown) -> bytes:
        return b"".join(map(_to_event, self._written(new)))

    def event(self, choice: Choice) -> bytes:
        return b""  # clients take the standard events only; the whole answer has them

    def last(self, choice: Choice, new: Shown) -> bytes:
        return self.delta(choice, new) + b"".join(map(_to_event, self._closed(choice)))

    def end(self, choices: Sequence[Choice]) -> bytes:
        (choice,) = choices
        ended = self._ended(choice)
        return self._state(f"response.{ended.status}", ended)

    def keep_alive(self) -> bytes:
        """An event, since clients do not take comments for a sign of life."""
        return self._state("response.in_progress", self._resource("in_progress"))

    def failed(self, error: ApiError) -> bytes:
        for item in self._items:
            item.status = "completed" if item.status == "completed" else "incomplete"
        codes = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
        told = ResponseError(code=codes.get(error.status, "server_error"), message=error.message)
        return self._state("response.failed", self._resource("failed", error=told, output=self._items))

    # what is written becomes items

    def _written(self, new: Shown) -> Iterator[Event]:
        if new.reasoning and self._job.shows_reasoning:
            if not self._items:
                yield from self._open(
                    OutputReasoning(type="reasoning", id=_new_id("rs"), summary=[], content=[], status="in_progress")
                )
                yield self._part("added", ReasoningText(type="reasoning_text", text=""))
            self._text().text += new.reasoning
            yield self._place(ReasoningDeltaEvent, "response.reasoning_text.delta", delta=new.reasoning)
        tokens = [token for token in new.tokens if token.is_answer]
        has_message = bool(self._items) and isinstance(self._items[-1], OutputMessage)
        if new.content or (tokens and has_message):
            yield from self._begin_message()
            logprobs = self._logprobs(tokens)
            text = self._text()
            text.text += new.content
            if isinstance(text, OutputText):
                text.logprobs += logprobs
            yield self._place(TextDeltaEvent, "response.output_text.delta", delta=new.content, logprobs=logprobs)

    def _closed(self, choice: Choice) -> Iterator[Event]:
        reason = finish_reason(choice)
        status: Status = "incomplete" if reason == "length" else "completed"
        if reason == "stop":
            yield from self._begin_message()  # it may be empty, where a stop text of the caller begins it
        if self._items:
            yield from self._close(status)
        for call in choice.shown.tool_calls:
            yield from self._called(call)

    def _begin_message(self) -> Iterator[Event]:
        if self._items and isinstance(self._items[-1], OutputMessage):
            return
        if self._items:
            yield from self._close("completed")
        yield from self._open(
            OutputMessage(type="message", id=_new_id("msg"), status="in_progress", role="assistant", content=[])
        )
        yield self._part("added", OutputText(type="output_text", text="", annotations=[], logprobs=[]))

    def _called(self, call: ToolCall) -> Iterator[Event]:
        item = OutputCall(
            type="function_call", id=_new_id("fc"), call_id=call.id, name=call.name, arguments="", status="in_progress"
        )
        yield from self._open(item)
        place = {"item_id": item.id, "output_index": len(self._items) - 1}
        item.arguments, item.status = call.arguments, "completed"
        yield self._event(CallDeltaEvent, "response.function_call_arguments.delta", delta=call.arguments, **place)
        yield self._event(CallDoneEvent, "response.function_call_arguments.done", arguments=call.arguments, **place)
        yield self._of_item("done")

    def _open(self, item: OutputItem) -> Iterator[Event]:
        self._items.append(item)
        yield self._of_item("added")

    def _close(self, status: Status) -> Iterator[Event]:
        """The last item is whole."""
        text = self._text()
        if isinstance(text, OutputText):
            done = {"text": text.text, "logprobs": text.logprobs}
            yield self._place(TextDoneEvent, "response.output_text.done", **done)
        else:
            yield self._place(ReasoningDoneEvent, "response.reasoning_text.done", text=text.text)
        yield self._part("done", text)
        self._items[-1].status = status
        yield self._of_item("done")

    def _text(self) -> ReasoningText | OutputText:
        """The one part of the last item, which is no call."""
        text: ReasoningText | OutputText = self._content()[0]
        return text

    def _content(self) -> list[Any]:
        item = self._items[-1]
        return [] if isinstance(item, OutputCall) else item.content

    def _logprobs(self, tokens: Sequence[Token]) -> list[TokenLogprob]:
        highest = self._job.request.logprobs
        return [] if highest is None else chat_logprobs(tokens, highest).content

    # events

    def _of_item(self, state: str) -> Event:
        place = len(self._items) - 1
        return self._event(ItemEvent, f"response.output_item.{state}", output_index=place, item=self._items[-1])

    def _part(self, state: str, part: ReasoningText | OutputText) -> Event:
        if state == "added":
            self._content().append(part)
        return self._place(PartEvent, f"response.content_part.{state}", part=part.model_copy())

    def _place(self, kind: type[Kind], name: str, **fields: Any) -> Kind:
        place = {"item_id": self._items[-1].id, "output_index": len(self._items) - 1, "content_index": 0}
        return self._event(kind, name, **place, **fields)

    def _state(self, name: str, resource: ResponseResource) -> bytes:
        return _to_event(self._event(ResponseStateEvent, name, response=resource))

    def _event(self, kind: type[Kind], name: str, **fields: Any) -> Kind:
        number, self._num_events = self._num_events, self._num_events + 1
        return kind(type=name, sequence_number=number, **fields)

    # the response

    def _ended(self, choice: Choice) -> ResponseResource:
        changes: dict[str, Any] = {"output": self._items, "usage": _usage(choice), "reasonrt": self._own(choice)}
        if finish_reason(choice) != "length":
            return self._resource("completed", completed_at=int(time.time()), **changes)
        return self._resource("incomplete", incomplete_details=IncompleteDetails(reason="max_output_tokens"), **changes)

    def _own(self, choice: Choice) -> OwnOfResponse:
        request, of_choice = self._job.request, own_fields(choice).model_dump(exclude_unset=True)
        own = OwnOfResponse(
            policy=request.policy,
            options=dict(request.options),
            usage=dict(total_usage([choice.completion.usage])),
            **of_choice,
        )
        if self._job.ignored:
            own.ignored = list(self._job.ignored)
        if self._job.has_trace:
            own.trace = list(map(TracedStep.of, choice.steps, choice.step_seconds))
            own.events = choice.reports
        if request.logprobs is not None:
            own.authors = [token.author for token in choice.shown.tokens if token.is_answer]
        return own

    def _resource(self, status: str, **changes: Any) -> ResponseResource:
        body, request = self._body, self._job.request
        wanted = body.text.format.model_dump(by_alias=True, exclude_unset=True, warnings=False)
        choice = body.tool_choice
        fields: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "model": self._job.model,
            "output": [],
            "usage": None,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions or None,
            "metadata": body.metadata,
            "reasoning": EffectiveReasoning(effort=body.effort(), summary=None),
            "text": EffectiveText(format=wanted | {"type": body.text.format.type}, verbosity="medium"),
            "max_output_tokens": body.token_limit(),
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_logprobs": request.logprobs or 0,
            "presence_penalty": body.presence_penalty,
            "frequency_penalty": body.frequency_penalty,
            "tools": list(map(_told, request.tools)),
            "tool_choice": choice if isinstance(choice, str) else {"type": "function", "name": choice.function.name},
            "parallel_tool_calls": body.parallel_tool_calls,
            "max_tool_calls": None,
            "truncation": "disabled",
            "service_tier": "default",
            "store": False,
            "background": False,
            "previous_response_id": None,
            "prompt_cache_key": body.prompt_cache_key,
            "safety_identifier": None,
        }
        return ResponseResource(**fields | changes)


def _usage(choice: Choice) -> ResponseUsage:
    told = usage([choice])
    cached = told.prompt_tokens_details.cached_tokens if told.prompt_tokens_details else 0
    return ResponseUsage(
        input_tokens=told.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=cached, cache_write_tokens=0),
        output_tokens=told.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=choice.reasoning_tokens()),
        total_tokens=told.total_tokens,
    )


def _told(tool: FunctionTool) -> dict[str, Any]:
    """A tool that was offered."""
    of_function: dict[str, Any] = tool.to_json()["function"]
    return {"type": "function"} | of_function | {"description": tool.description, "strict": tool.is_strict}


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _to_event(event: Event) -> bytes:
    return b"event: " + event.type.encode() + b"\ndata: " + event.to_json() + b"\n\n"
