"""Answers of `POST /v1/responses`, whole and as events; `/openapi.json` shows the same models."""

from typing import Final, Literal

from pydantic import JsonValue

from reasonrt.serve.wire.responses import Answer, OwnOfAnswer, OwnOfChoice, TokenLogprob

Status = Literal["in_progress", "completed", "incomplete"]


class ReasoningText(Answer):
    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(Answer):
    """The thinking before the answer; `summary` is empty, as the text itself is sent."""

    type: Literal["reasoning"]
    id: str
    summary: list[JsonValue]
    content: list[ReasoningText]
    status: Status


class OutputText(Answer):
    type: Literal["output_text"]
    text: str
    annotations: list[JsonValue]
    logprobs: list[TokenLogprob]


class OutputMessage(Answer):
    type: Literal["message"]
    id: str
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(Answer):
    """A call of a function, which the caller runs; `arguments` is a JSON object, as text."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


OutputItem = OutputReasoning | OutputMessage | OutputCall


class InputTokensDetails(Answer):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Answer):
    reasoning_tokens: int


class ResponseUsage(Answer):
    """As in a chat's `usage`; `cached_tokens` is 0 where more than one call has read the prompt."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(Answer):
    """Whatever limit it was; `reasonrt.finish_reason` is finer."""

    reason: Literal["max_output_tokens"]


class ResponseError(Answer):
    code: str
    message: str


class EffectiveReasoning(Answer):
    effort: str | None
    summary: None


class EffectiveText(Answer):
    format: dict[str, JsonValue]
    verbosity: Literal["medium"]


class OwnOfResponse(OwnOfAnswer, OwnOfChoice):
    """`reasonrt` of an answer and of its one choice."""


class ResponseResource(Answer):
    """A response: what was asked for, as far as it was understood, and the items that answer it."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    metadata: dict[str, JsonValue]
    reasoning: EffectiveReasoning
    text: EffectiveText
    max_output_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    presence_penalty: float
    frequency_penalty: float
    tools: list[JsonValue]
    tool_choice: JsonValue
    parallel_tool_calls: bool
    max_tool_calls: None
    truncation: Literal["disabled"]
    service_tier: Literal["default"]
    store: Literal[False]
    background: Literal[False]
    previous_response_id: None
    prompt_cache_key: str | None
    safety_identifier: None
    reasonrt: OwnOfResponse | None = None


class Event(Answer):
    """The root of all events; their numbers begin with 0."""

    type: str
    sequence_number: int


class ResponseStateEvent(Event):
    """One of these begins a stream, one ends it; `response.in_progress` is sent again while nothing else is."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: ResponseResource


class ItemEvent(Event):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class PartEvent(Event):
    type: Literal["response.content_part.added", "response.content_part.done"]
    item_id: str
    output_index: int
    content_index: int
    part: ReasoningText | OutputText


class ReasoningDeltaEvent(Event):
    type: Literal["response.reasoning_text.delta"]
    item_id: str
    output_index: int
    content_index: int
    delta: str


class ReasoningDoneEvent(Event):
    type: Literal["response.reasoning_text.done"]
    item_id: str
    output_index: int
    content_index: int
    text: str


class TextDeltaEvent(Event):
    type: Literal["response.output_text.delta"]
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenLogprob]


class TextDoneEvent(Event):
    type: Literal["response.output_text.done"]
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenLogprob]


class CallDeltaEvent(Event):
    """All of the arguments: they come at the end."""

    type: Literal["response.function_call_arguments.delta"]
    item_id: str
    output_index: int
    delta: str


class CallDoneEvent(Event):
    type: Literal["response.function_call_arguments.done"]
    item_id: str
    output_index: int
    arguments: str


RESPONSE_EVENTS: Final = (
    ResponseStateEvent,
    ItemEvent,
    PartEvent,
    ReasoningDeltaEvent,
    ReasoningDoneEvent,
    TextDeltaEvent,
    TextDoneEvent,
    CallDeltaEvent,
    CallDoneEvent,
)
"""All that a stream may hold."""
