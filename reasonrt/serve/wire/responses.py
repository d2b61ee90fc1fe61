"""Answers on the wire: what is sent is built from these models, and `/openapi.json` shows the same ones."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from reasonrt.types import EngineUsage


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


class OwnOfChoice(Answer):
    """`finish_reason` is finer than OpenAI's; `details` is what the policy found out, and `warnings` what it could not
    do of what was asked for, and why."""

    finish_reason: str
    seconds: float
    details: dict[str, Any]
    warnings: dict[str, str] | None = None
    trace: list[TracedStep] | None = None


class OwnOfAnswer(Answer):
    """`ignored`: paths of the fields of the request that are not known."""

    policy: str
    options: dict[str, Any]
    usage: dict[str, EngineUsage]
    ignored: list[str] | None = None


class AssistantMessage(Answer):
    role: Literal["assistant"]
    content: str
    reasoning: str | None = None
    reasoning_content: str | None = None


class ChatChoice(Answer):
    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None
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
    logprobs: None
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


class StepOfChunk(Answer):
    step: TracedStep


class ChunkChoice(Answer):
    index: int
    delta: Delta
    finish_reason: Literal["stop", "length"] | None
    logprobs: None
    reasonrt: StepOfChunk | OwnOfChoice | None = None


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
    logprobs: None
    reasonrt: StepOfChunk | OwnOfChoice | None = None


class TextCompletionChunk(Answer):
    """One event of a stream; without choices, it holds the usage."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChunkChoice]
    usage: Usage | None = None
    reasonrt: OwnOfAnswer | None = None
