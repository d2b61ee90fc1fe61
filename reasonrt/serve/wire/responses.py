"""Answers on the wire, as `/openapi.json` describes them and as the tests hold them to it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorBody(_Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(_Answer):
    error: ErrorBody


class Model(_Answer):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(_Answer):
    object: Literal["list"] = "list"
    data: list[Model]


class EngineTokens(_Answer):
    calls: int
    prefilled: int
    cached: int
    generated: int
    discarded: int
    probe: int
    passes: int


class CompletionDetails(_Answer):
    reasoning_tokens: int
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


class PromptDetails(_Answer):
    cached_tokens: int


class Usage(_Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionDetails | None = None
    prompt_tokens_details: PromptDetails | None = None


class TracedStep(_Answer):
    """One committed step; `seconds` since the request began to be worked on."""

    author: str
    text: str
    tokens: int
    is_complete: bool
    mean_logprob: float | None
    scores: dict[str, float]
    seconds: float


class OwnOfChoice(_Answer):
    """`finish_reason` is finer than OpenAI's; `details` is what the policy found out."""

    finish_reason: str
    seconds: float
    details: dict[str, Any]
    trace: list[TracedStep] | None = None


class OwnOfAnswer(_Answer):
    policy: str
    options: dict[str, Any]
    usage: dict[str, EngineTokens]


class AssistantMessage(_Answer):
    role: Literal["assistant"]
    content: str
    reasoning: str | None = None
    reasoning_content: str | None = None


class ChatChoice(_Answer):
    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None
    reasonrt: OwnOfChoice


class ChatCompletion(_Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    reasonrt: OwnOfAnswer


class TextChoice(_Answer):
    index: int
    text: str
    reasoning: str | None = None
    reasoning_content: str | None = None
    finish_reason: Literal["stop", "length"]
    logprobs: None = None
    reasonrt: OwnOfChoice


class TextCompletion(_Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    reasonrt: OwnOfAnswer


class Delta(_Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class StepOfChunk(_Answer):
    step: TracedStep


class ChunkChoice(_Answer):
    index: int
    delta: Delta
    finish_reason: Literal["stop", "length"] | None
    logprobs: None = None
    reasonrt: StepOfChunk | OwnOfChoice | None = None


class ChatCompletionChunk(_Answer):
    """One event of a stream; without choices, it holds the usage."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    reasonrt: OwnOfAnswer | None = None
