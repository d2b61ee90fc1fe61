"""Requests on the wire, and what they ask for in our words. HTTP's words end here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

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
from pydantic_core import PydanticCustomError, to_json

from reasonrt.errors import in_one_line
from reasonrt.serve.config import Effort
from reasonrt.serve.wire.errors import ApiError
from reasonrt.serve.wire.fields import MESSAGE_FIELDS, PART_FIELDS, REQUEST_FIELDS, Known
from reasonrt.types import Document, Message

SEEDS = 2**63


Text = Annotated[str, Field(max_length=1 << 26)]
Level = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
ThinkingTokens = Annotated[int, Field(ge=0, le=10**9)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=1 << 22)]


_STRUCTURE_BYTES = 1 << 16
_STRUCTURES: Mapping[str, Callable[[Any], bool]] = {
    "json": lambda value: isinstance(value, dict),
    "json_object": lambda value: value is True,
    "regex": lambda value: isinstance(value, str) and value != "",
    "choice": lambda value: isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value),
    "grammar": lambda value: isinstance(value, str) and value.strip() != "",
}


class _Wire(BaseModel):
    """Takes what it knows, refuses what it cannot honour, and leaves the rest aside; null is absent.

    What is left aside is in `model_extra`; an object that only we read leaves nothing aside, as a misspelt field would
    otherwise do nothing.
    """

    model_config = ConfigDict(extra="allow", strict=True)
    _known: ClassVar[Mapping[str, Known]] = {}
    _refuses_others: ClassVar[str | None] = None  # why

    @model_validator(mode="before")
    @classmethod
    def _sort_out(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kept = {}
        for name, value in values.items():
            if value is None:
                continue
            if name in cls.model_fields or (name not in cls._known and cls._refuses_others is None):
                kept[name] = value
            elif name not in cls._known:
                raise refusal(name, str(cls._refuses_others))
            elif not cls._known[name].takes(value):
                raise refusal(name, f"not served: {cls._known[name].why}")
        return kept

    def unknown_fields(self) -> Iterator[str]:
        """Paths of what was left aside, as the caller has written them."""
        yield from self.model_extra or ()
        for name in type(self).model_fields:
            value = getattr(self, name)
            parts = [(name, value)] if isinstance(value, _Wire) else []
            if isinstance(value, list):
                parts = [(f"{name}.{index}", part) for index, part in enumerate(value) if isinstance(part, _Wire)]
            for path, part in parts:
                yield from (f"{path}.{inner}" for inner in part.unknown_fields())


def refusal(name: str, reason: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{reason}", {"reason": reason, "param": name})


def _is_list(value: Any) -> str:
    return "#many" if isinstance(value, list) else "#one"


class StreamOptions(_Wire):
    """`continuous_usage_stats` is vLLM's: each chunk says what has been used so far."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] = False


class TextPart(_Wire):
    """A part of a message; the two longer types are those of OpenAI's other interface."""

    _known = PART_FIELDS
    type: Literal["text", "input_text", "output_text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, values: Any) -> Any:
        kind = values.get("type") if isinstance(values, dict) else None
        if isinstance(kind, str) and kind not in ("text", "input_text", "output_text"):
            raise refusal("type", f"parts of type {kind[:64]!r} are not served: only text is")
        return values


class ChatMessage(_Wire):
    """One message; the reasoning of earlier answers is taken and left out, as chat templates expect it."""

    _known = MESSAGE_FIELDS
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag("#one")] | Annotated[list[TextPart], Field(max_length=1024), Tag("#many")],
        Discriminator(_is_list),  # or an error would name both
    ] = ""
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

    _refuses_others = "unknown field"
    name: Annotated[str, Field(max_length=1024)] = ""
    text: Text


Context = Annotated[
    Annotated[Text, Tag("#one")] | Annotated[list[ContextDocument], Field(max_length=1 << 16), Tag("#many")],
    Discriminator(_is_list),
]


class OwnFields(_Wire):
    """The object `reasonrt` of a request: what OpenAI has no words for.

    `risk` picks among our certificates: levels by the names of risks, or a number, which is that of `lost_correct`.
    `context` is what the question is about: a text, or documents. The policy must be one that reads context.
    """

    _refuses_others = "unknown field"
    policy: Annotated[str, Field(max_length=128)] | None = None
    options: Annotated[dict[str, JsonValue], Field(max_length=64)] = Field(default_factory=dict)
    context: Context = Field(default_factory=list)
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    max_engine_calls: Count | None = None
    risk: Level | dict[str, Level] | None = None
    trace: bool = False


class Reasoning(_Wire):
    """As OpenRouter and OpenAI's other interface have it."""

    _known: ClassVar[Mapping[str, Known]] = {"summary": Known("the reasoning itself is sent")}
    effort: Effort | None = None
    enabled: bool | None = None
    exclude: bool = False
    max_tokens: ThinkingTokens | None = None


class Thinking(_Wire):
    """As Anthropic has it."""

    type: Literal["enabled", "disabled", "adaptive"] = "enabled"
    budget_tokens: ThinkingTokens | None = None


class TemplateSettings(_Wire):
    """`chat_template_kwargs` of vLLM: the names under which templates switch the thinking off."""

    _refuses_others = "not served: the model's own template is used as it stands"
    enable_thinking: bool | None = None
    thinking: bool | None = None

    @property
    def switches(self) -> tuple[bool | None, ...]:
        return self.enable_thinking, self.thinking


class ResponseFormat(_Wire):
    """As OpenAI has it; `json_schema` holds the schema under `schema`, beside its name."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, JsonValue] = Field(default_factory=dict)


class _Generation(_Wire):
    """What chats and plain completions have in common."""

    _known = REQUEST_FIELDS
    model: Annotated[str, Field(min_length=1, max_length=256)]
    max_tokens: Count | None = None
    n: Count = 1
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] = 0
    min_p: Level = 0.0
    seed: Annotated[int, Field(gt=-SEEDS, lt=SEEDS)] | None = None
    stop: Annotated[
        Annotated[StopText, Tag("#one")] | Annotated[list[StopText], Field(max_length=4), Tag("#many")],
        Discriminator(_is_list),
    ] = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    reasoning_effort: Effort | None = None
    reasoning: Reasoning = Reasoning()
    thinking: Thinking = Thinking()
    thinking_token_budget: ThinkingTokens | None = None
    thinking_budget: ThinkingTokens | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: TemplateSettings = TemplateSettings()
    include_reasoning: bool = True
    response_format: ResponseFormat = ResponseFormat(type="text")
    structured_outputs: dict[str, JsonValue] = Field(default_factory=dict)
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    reasonrt: OwnFields = OwnFields()

    def conversations(self, decode: Callable[[Sequence[int]], str]) -> list[tuple[Message, ...]]:
        """What is to be answered, each by `n` choices.

        Args:
            decode: token ids to text, for the model that will write.

        Raises:
            ApiError: token ids that are none of that model's.
        """
        raise NotImplementedError

    def effort(self) -> Effort | None:
        """Raises: ApiError: two fields name different ones."""
        if self.reasoning.effort is not None and self.reasoning_effort not in (None, self.reasoning.effort):
            raise ApiError(400, "it differs from reasoning_effort; give one", "reasoning.effort")
        return self.reasoning_effort or self.reasoning.effort

    def thinking_tokens(self) -> int | None:
        """The smallest limit that a field sets to the thinking, in tokens; 0 switches it off, None is no limit."""
        switches = (self.reasoning.enabled, self.enable_thinking, *self.chat_template_kwargs.switches)
        if False in switches or self.thinking.type == "disabled":
            return 0
        budgets = (
            self.reasoning.max_tokens,
            self.thinking.budget_tokens,
            self.thinking_token_budget,
            self.thinking_budget,
        )
        return min((budget for budget in budgets if budget is not None), default=None)

    def structure(self) -> dict[str, Any]:
        """What the answer must be, in vLLM's words; empty where it may be any text.

        Raises:
            ApiError: two structures, one that is none, or a large one.
        """
        given: dict[str, Any] = {name: value for name, value in self.structured_outputs.items() if value is not None}
        where = "structured_outputs"
        if self.response_format.type != "text":
            if given:
                raise ApiError(400, "structured_outputs and response_format differ; give one", where)
            where = "response_format"
            is_object = self.response_format.type == "json_object"
            given = {"json_object": True} if is_object else {"json": self.response_format.json_schema.get("schema")}
        for name, value in given.items():
            if len(given) > 1 or name not in _STRUCTURES or not _STRUCTURES[name](value):
                one_of = "one of json (a schema), json_object (true), regex, choice (texts) and grammar"
                raise ApiError(400, f"{where}: give {one_of}; {name[:64]!r} is none, or one too many", where)
            if len(to_json(value)) > _STRUCTURE_BYTES:
                raise ApiError(400, f"{where}: a structure has at most {_STRUCTURE_BYTES} bytes here", where)
        return given

    @property
    def shows_reasoning(self) -> bool:
        return self.include_reasoning and not self.reasoning.exclude

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

    def conversations(self, decode: Callable[[Sequence[int]], str]) -> list[tuple[Message, ...]]:
        return [tuple(message.to_message() for message in self.messages)]

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


def _kind_of_prompt(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return "#text" if isinstance(value, str) else "#texts"
    return "#id_lists" if isinstance(value[0], list) else "#ids" if isinstance(value[0], int) else "#texts"


class CompletionRequest(_Generation):
    """`POST /v1/completions`: each prompt becomes the message of a chat, since the models are chat models."""

    prompt: Annotated[
        Annotated[Text, Tag("#text")]
        | Annotated[list[Text], Field(min_length=1, max_length=1024), Tag("#texts")]
        | Annotated[TokenIds, Tag("#ids")]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=1024), Tag("#id_lists")],
        Discriminator(_kind_of_prompt),
    ]

    def conversations(self, decode: Callable[[Sequence[int]], str]) -> list[tuple[Message, ...]]:
        given = self.prompt
        prompts: Sequence[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else given
        texts = [prompt if isinstance(prompt, str) else decode(prompt) for prompt in prompts]
        return [(Message("user", text),) for text in texts]


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
    where = [str(part) for part in first["loc"] if not str(part).startswith("#")]  # our word for one of several forms
    if param := first.get("ctx", {}).get("param"):
        where.append(param)
    name, message = in_one_line(".".join(where)), in_one_line(str(first["msg"]), 200)
    return ApiError(400, f"{name}: {message}" if name else message, name or None)
