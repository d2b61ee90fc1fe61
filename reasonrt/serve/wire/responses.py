"""Answers on the wire: what is sent is built from these models, and `/openapi.json` shows the same ones."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from reasonrt.types import EngineUsage, Step


class Answer(BaseModel):
    """The root of all bodies. A field with a default is absent from the body unless it was set."""

    model_config = ConfigDict(extra="forbid")

    def to_json(self) -> bytes:
        """The body. Numbers that JSON does not know are null, values that it does not know are text."""
        # as `model_dump_json` does, without a string in between
        return self.__pydantic_serializer__.to_json(self, exclude_unset=True, fallback=str)


class ErrorBody(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    error: ErrorBody


class Health(Answer):
    alive: bool


class Readiness(Answer):
    ready: bool
    reason: str = ""


class Version(Answer):
    version: str


class Model(Answer):
    """`context_length` (tokens) and `supported_parameters` are OpenRouter's words; absent where they are not known."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int | None = None
    supported_parameters: list[str] | None = None


class ModelList(Answer):
    object: Literal["list"]
    data: list[Model]


class CompletionDetails(Answer):
    reasoning_tokens: int
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


class PromptDetails(Answer):
    cached_tokens: int


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionDetails | None = None
    prompt_tokens_details: PromptDetails | None = None


class TracedStep(Answer):
    """One committed step; `seconds` since the request began to be worked on."""

    author: str
    text: str
    tokens: int
    is_complete: bool
    mean_logprob: float | None
    scores: dict[str, float | None]
    seconds: float

    @classmethod
    def of(cls, step: Step, seconds: float) -> Self:
        return cls(
            author=step.author,
            text=step.text,
            tokens=len(step.token_ids),
            is_complete=step.is_complete,
            mean_logprob=step.mean_logprob,
            scores=dict(step.scores),
            seconds=round(seconds, 6),
        )


class OwnOfChoice(Answer):
    """`finish_reason` is finer than OpenAI's; `details` is what the policy found out, and `warnings` what it could not
    do of what was asked for, and why. `trace` has the steps, and `events` what was paid for beside them. `authors`: of
    each token of `logprobs`, who wrote it."""

    finish_reason: str
    seconds: float
    details: dict[str, Any]
    warnings: dict[str, str] | None = None
    trace: list[TracedStep] | None = None
    events: list[dict[str, Any]] | None = None
    authors: list[str] | None = None


class OwnOfAnswer(Answer):
    """`ignored`: paths of the fields of the request that are not known."""

    policy: str
    options: dict[str, Any]
    usage: dict[str, EngineUsage]
    ignored: list[str] | None = None


class TopLogprob(TypedDict):
    """A token and its natural log-probability, -9999 for one that cannot be; `bytes` are those of its text.

    No model: an answer may hold hundreds of thousands.
    """

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """Of each token of reasoning and content; where the reasoning is not sent, of the content."""

    content: list[TokenLogprob]


class TextLogprobs(Answer):
    """Of each token of the text, and of a prompt's first token none; `text_offset` is its place there."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CalledFunction(Answer):
    """`arguments` is a JSON object, as text."""

    name: str
    arguments: str


class CallOfTool(Answer):
    id: str
    type: Literal["function"]
    function: CalledFunction


class CallOfToolDelta(CallOfTool):
    """A whole call: they are sent at the end."""

    index: int


FinishReason = Literal["stop", "length", "tool_calls"]


class AssistantMessage(Answer):
    """`content` is null where there are only calls of tools."""

    role: Literal["assistant"]
    content: str | None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallOfTool] | None = None


class ChatChoice(Answer):
    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None
    reasonrt: OwnOfChoice


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    reasonrt: OwnOfAnswer


class TextChoice(Answer):
    index: int
    text: str
    reasoning: str | None = None
    reasoning_content: str | None = None
    finish_reason: Literal["stop", "length"]
    logprobs: TextLogprobs | None
    reasonrt: OwnOfChoice


class TextCompletion(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    reasonrt: OwnOfAnswer


class Delta(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallOfToolDelta] | None = None


class OwnOfChunk(Answer):
    """`step` is what was asked for as a trace, and `event` one of its `events`, as it comes; `authors` as in the choice
    of a whole answer."""

    step: TracedStep | None = None
    event: dict[str, Any] | None = None
    authors: list[str] | None = None


class ChunkChoice(Answer):
    index: int
    delta: Delta
    finish_reason: FinishReason | None
    logprobs: ChatLogprobs | None
    reasonrt: OwnOfChunk | OwnOfChoice | None = None


class ChatCompletionChunk(Answer):
    """One event of a stream; without choices, it holds the usage."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    reasonrt: OwnOfAnswer | None = None


class TextChunkChoice(Answer):
    index: int
    text: str
    reasoning: str | None = None
    reasoning_content: str | None = None
    finish_reason: Literal["stop", "length"] | None
    logprobs: TextLogprobs | None
    reasonrt: OwnOfChunk | OwnOfChoice | None = None


class TextCompletionChunk(Answer):
    """One event of a stream; without choices, it holds the usage."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChunkChoice]
    usage: Usage | None = None
    reasonrt: OwnOfAnswer | None = None
