"""Requests on the wire, and what they ask for in our words. HTTP's words end here."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from reasonrt.errors import in_one_line
from reasonrt.serve.config import Effort
from reasonrt.serve.wire.errors import ApiError
from reasonrt.serve.wire.fields import NO_EFFECT, REFUSED
from reasonrt.types import Document, Message

SEEDS = 2**63


Text = Annotated[str, Field(max_length=1 << 26)]
Level = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]


class _Wire(BaseModel):
    """Takes what it knows and refuses the rest; null is absent."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _sort_out(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kept = {}
        for name, value in values.items():
            if value is None:
                continue
            if name in cls.model_fields:
                kept[name] = value
            elif name in REFUSED and not any(_is_same(value, neutral) for neutral in REFUSED[name][0]):
                raise _refusal(name, f"not served: {REFUSED[name][1]}")
            elif name not in REFUSED and name not in NO_EFFECT:
                raise _refusal(name, "unknown field")
        return kept


def _is_same(value: Any, neutral: Any) -> bool:
    """For JSON: to Python, false is 0 and true is 1."""
    return value == neutral and isinstance(value, bool) is isinstance(neutral, bool)


def _refusal(name: str, reason: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{reason}", {"reason": reason, "param": name})


class StreamOptions(_Wire):
    """`continuous_usage_stats` is vLLM's: each chunk says what has been used so far."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] = False


class TextPart(_Wire):
    type: Literal["text"]
    text: Text


class ChatMessage(_Wire):
    """One message; the reasoning of earlier answers is taken and left out, as chat templates expect it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=1024)] = ""
    name: Annotated[str, Field(max_length=256)] = ""
    reasoning: Text = ""
    reasoning_content: Text = ""

    def to_message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)

    def without_long_parts(self, most_characters: int) -> tuple[Self, list[str]]:
        """What is left of a user's message, and its parts of more than `most_characters`."""
        if self.role != "user" or isinstance(self.content, str):
            return self, []
        short = [part for part in self.content if len(part.text) <= most_characters]
        long_texts = [part.text for part in self.content if len(part.text) > most_characters]
        return self.model_copy(update={"content": short}), long_texts


class ContextDocument(_Wire):
    """A text that the request is about, of any length."""

    name: Annotated[str, Field(max_length=1024)] = ""
    text: Text


Context = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[ContextDocument], Field(max_length=1 << 16), Tag("documents")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "documents"),  # or an error would name both
]


class OwnFields(_Wire):
    """The object `reasonrt` of a request: what OpenAI has no words for.

    `risk` picks among our certificates: levels by the names of risks, or a number, which is that of `lost_correct`.
    `context` is what the question is about: a text, or documents. The policy must be one that reads context.
    """

    policy: Annotated[str, Field(max_length=128)] | None = None
    options: Annotated[dict[str, JsonValue], Field(max_length=64)] = Field(default_factory=dict)
    context: Context = Field(default_factory=list)
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_engine_calls: Count | None = None
    risk: Level | dict[str, Level] | None = None
    trace: bool = False


class _Generation(_Wire):
    """What chats and plain completions have in common."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    max_tokens: Count | None = None
    n: Count = 1
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(gt=-SEEDS, lt=SEEDS)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    reasoning_effort: Effort | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    reasonrt: OwnFields = OwnFields()

    def to_messages(self) -> tuple[Message, ...]:
        raise NotImplementedError

    def without_context(self, part_characters: int | None) -> tuple[Self, tuple[Document, ...]]:
        """What remains of the request, and the documents that it brings.

        Args:
            part_characters: longer parts of the user's messages are documents, too; None leaves them where they are.
        """
        given = self.reasonrt.context
        texts = [ContextDocument(text=given)] if isinstance(given, str) and given else given or []
        documents = tuple(Document(document.text, document.name) for document in texts)
        return self.model_copy(update={"reasonrt": self.reasonrt.model_copy(update={"context": []})}), documents

    def token_limit(self) -> int | None:
        return self.max_tokens


class ChatRequest(_Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None

    def to_messages(self) -> tuple[Message, ...]:
        return tuple(message.to_message() for message in self.messages)

    def without_context(self, part_characters: int | None) -> tuple[Self, tuple[Document, ...]]:
        rest, documents = super().without_context(part_characters)
        if part_characters is None:
            return rest, documents
        split = [message.without_long_parts(part_characters) for message in self.messages]
        texts = [text for _, long_texts in split for text in long_texts]
        parts = (Document(text, f"part {number}") for number, text in enumerate(texts, 1))
        return rest.model_copy(update={"messages": [message for message, _ in split]}), (*documents, *parts)

    def token_limit(self) -> int | None:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ApiError(400, "max_tokens and max_completion_tokens differ; give one", "max_tokens")
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Generation):
    """`POST /v1/completions`: the prompt becomes the message of a chat, since the models are chat models."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)]

    def to_messages(self) -> tuple[Message, ...]:
        return (Message("user", self.prompt if isinstance(self.prompt, str) else self.prompt[0]),)


def parse(kind: type[ChatRequest] | type[CompletionRequest], body: bytes) -> ChatRequest | CompletionRequest:
    """The wire model that `body` holds.

    Raises:
        ApiError: no JSON, or not what the model takes; the message names the first field that is wrong.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise wrong_field(error.errors(include_url=False, include_input=False)) from None


def wrong_field(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's errors, without the value: it may be long, or a secret."""
    first = errors[0]
    where = [str(part) for part in first["loc"]]
    if param := first.get("ctx", {}).get("param"):
        where.append(param)
    name, message = in_one_line(".".join(where)), in_one_line(str(first["msg"]), 200)
    return ApiError(400, f"{name}: {message}" if name else message, name or None)
