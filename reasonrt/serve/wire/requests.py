"""Requests on the wire, and what they ask for in our words. HTTP's words end here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, to_json

from reasonrt.errors import RequestError, in_one_line
from reasonrt.serve.config import Effort
from reasonrt.serve.wire.errors import ApiError
from reasonrt.serve.wire.fields import CALL_FIELDS, CHAT_FIELDS, MESSAGE_FIELDS, PART_FIELDS, TEXT_FIELDS, Known
from reasonrt.types import Document, FunctionTool, Message, ToolCall

SEEDS = 2**63

Request = TypeVar("Request", bound="Generation")
Item = TypeVar("Item")

Many = Annotated[list[Item], Field(fail_fast=True)]
"""Any list of a request: one that is wrong throughout has one error, and not one for each item."""

Text = Annotated[str, Field(max_length=1 << 26)]
Level = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
NumLogprobs = Annotated[int, Field(ge=0, le=20)]
ThinkingTokens = Annotated[int, Field(ge=0, le=10**9)]
TokenIds = Annotated[Many[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=1 << 22)]


MOST_TOOLS = 128
_MOST_RISKS = 16
_TOOLS_BYTES = 1 << 18
_STRUCTURE_BYTES = 1 << 16
_STRUCTURES: Mapping[str, Callable[[Any], bool]] = {
    "json": lambda value: isinstance(value, dict),
    "json_object": lambda value: value is True,
    "regex": lambda value: isinstance(value, str) and value != "",
    "choice": lambda value: isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value),
    "grammar": lambda value: isinstance(value, str) and value.strip() != "",
}


class Wire(BaseModel):
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
            parts = [(name, value)] if isinstance(value, Wire) else []
            if isinstance(value, list):
                parts = [(f"{name}.{index}", part) for index, part in enumerate(value) if isinstance(part, Wire)]
            for path, part in parts:
                yield from (f"{path}.{inner}" for inner in part.unknown_fields())


def refusal(name: str, reason: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{reason}", {"reason": reason, "param": name})


def _is_list(value: Any) -> str:
    return "#many" if isinstance(value, list) else "#one"


class StreamOptions(Wire):
    """`continuous_usage_stats` is vLLM's: each chunk says what has been used so far."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] = False


class TextPart(Wire):
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


def _of_function(values: Any, what: str) -> Any:
    kind = values.get("type") if isinstance(values, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise refusal("type", f"{what} of type {kind[:64]!r} are not served: only functions are")
    return values


class FunctionCall(Wire):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: Text = ""


class CallInHistory(Wire):
    """A call of a tool in an earlier answer."""

    _known = CALL_FIELDS
    id: Annotated[str, Field(max_length=256)] = ""
    type: Annotated[str, Field(max_length=256)] = "function"
    function: FunctionCall

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, values: Any) -> Any:
        return _of_function(values, "calls")


class Function(Wire):
    name: Annotated[str, Field(max_length=256)]
    description: Text = ""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    strict: bool = False


class OfferedTool(Wire):
    """A tool that the caller runs."""

    type: str
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, values: Any) -> Any:
        return _of_function(values, "tools")

    def to_tool(self) -> FunctionTool:
        """Raises: RequestError: a name or a schema that cannot be."""
        function = self.function
        return FunctionTool(function.name, function.description, function.parameters, function.strict)


class _Named(Wire):
    name: Annotated[str, Field(max_length=256)]


class NamedTool(Wire):
    """A tool that must be asked for."""

    type: str
    function: _Named

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, values: Any) -> Any:
        return _of_function(values, "choices")


class ChatMessage(Wire):
    """One message; the reasoning of earlier answers is taken and left out, as chat templates expect it."""

    _known = MESSAGE_FIELDS
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        Annotated[Text, Tag("#one")] | Annotated[Many[TextPart], Field(max_length=1024), Tag("#many")],
        Discriminator(_is_list),  # or an error would name both
    ] = ""
    name: Annotated[str, Field(max_length=256)] = ""
    reasoning: Text = ""
    reasoning_content: Text = ""
    tool_calls: Annotated[Many[CallInHistory], Field(max_length=1024)] = Field(default_factory=list)
    tool_call_id: Annotated[str, Field(max_length=256)] = ""

    def to_message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        if self.role == "tool":
            return Message(self.role, text, tool_call_id=self.tool_call_id, name=self.name)
        calls = [ToolCall(call.id, call.function.name, call.function.arguments) for call in self.tool_calls]
        return Message("system" if self.role == "developer" else self.role, text, tuple(calls))

    def without_long_parts(self, most_characters: int) -> tuple[Self, list[str]]:
        """What is left of a user's message, and its parts of more than `most_characters`."""
        if self.role != "user" or isinstance(self.content, str):
            return self, []
        short = [part for part in self.content if len(part.text) <= most_characters]
        long_texts = [part.text for part in self.content if len(part.text) > most_characters]
        return self.model_copy(update={"content": short}), long_texts


class ContextDocument(Wire):
    """A text that the request is about, of any length."""

    _refuses_others = "unknown field"
    name: Annotated[str, Field(max_length=1024)] = ""
    text: Text


Context = Annotated[
    Annotated[Text, Tag("#one")] | Annotated[Many[ContextDocument], Field(max_length=1 << 16), Tag("#many")],
    Discriminator(_is_list),
]


def _has_few(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > _MOST_RISKS:
        raise PydanticCustomError("too_long", f"at most {_MOST_RISKS} risks are named")
    return value


class OwnFields(Wire):
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
    risk: Annotated[Level | dict[str, Level], BeforeValidator(_has_few)] | None = None
    trace: bool = False


class Reasoning(Wire):
    """As OpenRouter and OpenAI's other interface have it."""

    _known: ClassVar[Mapping[str, Known]] = {
        "context": Known("earlier reasoning is left out of the prompt", ("auto", "current_turn")),
        "generate_summary": Known("the reasoning itself is sent"),
        "mode": Known("there is one mode", ("standard",)),
        "summary": Known("the reasoning itself is sent"),
    }
    effort: Effort | None = None
    enabled: bool | None = None
    exclude: bool = False
    max_tokens: ThinkingTokens | None = None


class Thinking(Wire):
    """As Anthropic has it."""

    type: Literal["enabled", "disabled", "adaptive"] = "enabled"
    budget_tokens: ThinkingTokens | None = None


class TemplateSettings(Wire):
    """`chat_template_kwargs` of vLLM: the names under which templates switch the thinking off."""

    _refuses_others = "not served: the model's own template is used as it stands"
    enable_thinking: bool | None = None
    thinking: bool | None = None

    @property
    def switches(self) -> tuple[bool | None, ...]:
        return self.enable_thinking, self.thinking


class ResponseFormat(Wire):
    """As OpenAI has it; `json_schema` holds the schema under `schema`, beside its name."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, JsonValue] = Field(default_factory=dict)


class Generation(Wire):
    """What chats and plain completions have in common."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    max_tokens: Count | None = None
    n: Count = 1
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] = 0
    min_p: Level = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    seed: Annotated[int, Field(gt=-SEEDS, lt=SEEDS)] | None = None
    stop: Annotated[
        Annotated[StopText, Tag("#one")] | Annotated[Many[StopText], Field(max_length=4), Tag("#many")],
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

    @classmethod
    def as_written(cls, path: str) -> str:
        """The path of a field of ours, as the caller knows it."""
        return path

    def conversations(self, decode: Callable[[Sequence[int]], str]) -> list[tuple[Message, ...]]:
        """What is to be answered, each by `n` choices.

        Args:
            decode: token ids to text, for the model that will write.

        Raises:
            ApiError: token ids that are none of that model's.
        """
        raise NotImplementedError

    @property
    def needs_vocabulary(self) -> bool:
        """Whether its prompts are encoded or decoded to know what is asked for."""
        return False

    def num_logprobs(self) -> int | None:
        """How many of the highest log-probabilities come with each token's own; None is without both.

        Raises: ApiError: fields contradict each other.
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
        where, formatted = self.answer_format()
        if given and formatted:
            raise ApiError(400, f"structured_outputs and {where} differ; give one", "structured_outputs")
        given, where = (formatted, where) if formatted else (given, "structured_outputs")
        for name, value in given.items():
            if len(given) > 1 or name not in _STRUCTURES or not _STRUCTURES[name](value):
                one_of = "one of json (a schema), json_object (true), regex, choice (texts) and grammar"
                raise ApiError(400, f"{where}: give {one_of}; {name[:64]!r} is none, or one too many", where)
            if len(to_json(value)) > _STRUCTURE_BYTES:
                raise ApiError(400, f"{where}: a structure has at most {_STRUCTURE_BYTES} bytes here", where)
        return given

    def answer_format(self) -> tuple[str, dict[str, Any]]:
        """The field in which OpenAI says what the answer must be, and that in vLLM's words; empty for any text."""
        kind = self.response_format.type
        if kind == "text":
            return "response_format", {}
        schema = self.response_format.json_schema.get("schema")
        return "response_format", {"json_object": True} if kind == "json_object" else {"json": schema}

    @property
    def shows_reasoning(self) -> bool:
        return self.include_reasoning and not self.reasoning.exclude

    @property
    def is_reasoning_apart(self) -> bool:
        """Whether the reasoning has fields of its own; else it stands before the answer, in its tags."""
        return True

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

    @property
    def limit_field(self) -> str:
        """The name under which the caller has given the token limit."""
        return "max_tokens"

    def tool_fields(self) -> dict[str, Any]:
        """What `Request` takes of tools.

        Raises:
            ApiError: a tool that cannot be, or too much of them.
        """
        return {}


class ChatRequest(Generation):
    """`POST /v1/chat/completions`."""

    _known = CHAT_FIELDS
    messages: Annotated[Many[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: NumLogprobs | None = None
    tools: Annotated[Many[OfferedTool], Field(max_length=MOST_TOOLS)] = Field(default_factory=list)
    tool_choice: Annotated[
        Annotated[Literal["none", "auto", "required"], Tag("#one")] | Annotated[NamedTool, Tag("#named")],
        Discriminator(lambda value: "#named" if isinstance(value, dict) else "#one"),
    ] = "auto"
    parallel_tool_calls: bool = True
    separate_reasoning: bool = True

    @property
    def is_reasoning_apart(self) -> bool:
        return self.separate_reasoning

    def conversations(self, decode: Callable[[Sequence[int]], str]) -> list[tuple[Message, ...]]:
        return [tuple(message.to_message() for message in self.messages)]

    def num_logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "set logprobs to true with it", "top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def tool_fields(self) -> dict[str, Any]:
        if not self.tools:
            if self.tool_choice not in ("none", "auto"):
                raise ApiError(400, "tool_choice: there are no tools to choose from; send tools", "tool_choice")
            return {}
        try:
            tools = tuple(offered.to_tool() for offered in self.tools)
        except RequestError as error:
            raise ApiError(400, f"tools: {error}", "tools") from None
        num_bytes = len(to_json([tool.to_json() for tool in tools]))
        choice = self.tool_choice if isinstance(self.tool_choice, str) else self.tool_choice.function.name
        if not isinstance(self.tool_choice, str) and choice not in (tool.name for tool in tools):
            raise ApiError(400, f"tool_choice: no tool is named {in_one_line(choice)}", "tool_choice")
        most = _TOOLS_BYTES if choice in ("none", "auto") else _STRUCTURE_BYTES  # which a grammar is made of
        if num_bytes > most:
            raise ApiError(400, f"tools: they have at most {most} bytes here, got {num_bytes}", "tools")
        return {"tools": tools, "tool_choice": choice, "parallel_tool_calls": self.parallel_tool_calls}

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

    @property
    def limit_field(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"


def _kind_of_prompt(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return "#text" if isinstance(value, str) else "#texts"
    return "#id_lists" if isinstance(value[0], list) else "#ids" if isinstance(value[0], int) else "#texts"


class CompletionRequest(Generation):
    """`POST /v1/completions`: each prompt becomes the message of a chat, since the models are chat models."""

    prompt: Annotated[
        Annotated[Text, Tag("#text")]
        | Annotated[Many[Text], Field(min_length=1, max_length=1024), Tag("#texts")]
        | Annotated[TokenIds, Tag("#ids")]
        | Annotated[Many[TokenIds], Field(min_length=1, max_length=1024), Tag("#id_lists")],
        Discriminator(_kind_of_prompt),
    ]
    _known = TEXT_FIELDS
    max_tokens: Annotated[int, Field(ge=0, le=10**9)] | None = None
    echo: bool = False
    logprobs: NumLogprobs | None = None

    @field_validator("logprobs", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return None if value is False else value

    def num_logprobs(self) -> int | None:
        return self.logprobs

    def token_limit(self) -> int | None:
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(400, "max_tokens must be at least 1, or echo be set", "max_tokens")
        return self.max_tokens

    @property
    def needs_vocabulary(self) -> bool:
        return self.echo or any(not isinstance(prompt, str) for prompt in self.prompts())

    def prompts(self) -> Sequence[str | list[int]]:
        """Each as it was sent."""
        given: Any = self.prompt
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given

    def conversations(self, decode: Callable[[Sequence[int]], str]) -> list[tuple[Message, ...]]:
        texts = [prompt if isinstance(prompt, str) else decode(prompt) for prompt in self.prompts()]
        return [(Message("user", text),) for text in texts]


def parse(kind: type[Request], body: bytes) -> Request:
    """The wire model that `body` holds.

    Raises:
        ApiError: no JSON, or not what the model takes; the message names the first field that is wrong.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _wrong_field(error.errors(include_url=False, include_input=False), kind) from None


def _wrong_field(errors: Sequence[Mapping[str, Any]], kind: type["Generation"]) -> ApiError:
    """The first of pydantic's errors, without the value: it may be long, or a secret."""
    first = errors[0]
    where = [str(part) for part in first["loc"] if not str(part).startswith("#")]  # our word for one of several forms
    if param := first.get("ctx", {}).get("param"):
        where.append(param)
    name, message = in_one_line(kind.as_written(".".join(where))), in_one_line(str(first["msg"]), 200)
    return ApiError(400, f"{name}: {message}" if name else message, name or None)
