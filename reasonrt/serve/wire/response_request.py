"""Requests to `POST /v1/responses`, as chats in other words: items become messages, and the rest is that of a chat.

Nothing is stored: a request brings its whole conversation.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag, model_validator
from pydantic.json_schema import SkipJsonSchema

from reasonrt.serve.wire.errors import ApiError
from reasonrt.serve.wire.fields import REASONING_FIELDS, RESPONSE_FIELDS, Known
from reasonrt.serve.wire.requests import ChatMessage, ChatRequest, Count, Function, Many, Text, Wire, refusal
from reasonrt.types import Document

LOGPROBS = "message.output_text.logprobs"
"""The value of `include` that asks for log-probabilities."""

_SYSTEM = frozenset({"developer", "system"})
_OF_MESSAGES = frozenset({"id", "phase", "status"})  # that say nothing to a model


class TextFormat(Wire):
    """What the answer must be; a schema is held to, whatever it is called and `strict` says."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Annotated[str, Field(max_length=256)] | None = None
    description: Text | None = None
    strict: bool | None = None
    schema_: dict[str, JsonValue] | None = Field(default=None, alias="schema")


class TextControls(Wire):
    _known: ClassVar[Mapping[str, Known]] = {"verbosity": RESPONSE_FIELDS["verbosity"]}
    format: TextFormat = TextFormat()


class ReasoningItem(Wire):
    """The reasoning of an earlier answer: it is taken and left out, as chat templates expect it."""

    _known = REASONING_FIELDS
    type: Literal["reasoning"]


def _as_message(item: Any) -> Any:
    """An item of a conversation in the words of a chat."""
    if not isinstance(item, dict):
        return item
    kind = item.get("type") or "message"
    said = {name: value for name, value in item.items() if name not in _OF_MESSAGES and value is not None}
    if kind == "message":
        return said
    if kind == "function_call":
        function, rest = _split(said, "name", "arguments")
        call, rest = _split(rest, "type", "call_id")
        tool_call = {"id": call.get("call_id"), "function": function}
        return _with_rest({"role": "assistant", "tool_calls": [tool_call]}, rest)
    if kind == "function_call_output":
        known, rest = _split(said, "type", "call_id", "output")
        return _with_rest({"role": "tool", "tool_call_id": known.get("call_id"), "content": known.get("output")}, rest)
    named = kind[:64] if isinstance(kind, str) else kind
    raise refusal("type", f"items of type {named!r:.80} are not served: messages, reasoning and function calls are")


def _split(values: Mapping[str, Any], *names: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands under `names`, and the rest."""
    known = {name: values[name] for name in names if name in values}
    return known, {name: value for name, value in values.items() if name not in known}


def _with_rest(message: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """`rest` is not known: it stands in the message only to be named."""
    if taken := rest.keys() & ChatMessage.model_fields.keys() - {"name"}:
        raise refusal(min(taken), "an item of this type has no such field")
    return message | rest


def _kind_of_item(item: Any) -> str:
    return "#reasoning" if isinstance(item, dict) and item.get("type") == "reasoning" else "#message"


Item = Annotated[
    Annotated[ReasoningItem, Tag("#reasoning")] | Annotated[ChatMessage, BeforeValidator(_as_message), Tag("#message")],
    Discriminator(_kind_of_item),
]


_AS_WRITTEN = (
    (re.compile(r"^(input\.\d+)\.tool_calls\.0\.function\b"), r"\1"),
    (re.compile(r"^(input\.\d+)\.(tool_calls\.0\.id|tool_call_id)\b"), r"\1.call_id"),
    (re.compile(r"^(tools\.\d+|tool_choice)\.function\b"), r"\1"),
)
"""Paths of a chat, in the words of an item."""


class ResponseRequest(ChatRequest):
    """`POST /v1/responses`: what is asked stands in `instructions` and `input`."""

    _known = RESPONSE_FIELDS
    messages: SkipJsonSchema[Many[ChatMessage]] = Field(default_factory=list)  # made of the input
    input: Annotated[
        Annotated[Text, Tag("#text")] | Annotated[Many[Item], Field(min_length=1, max_length=4096), Tag("#items")],
        Discriminator(lambda value: "#items" if isinstance(value, list) else "#text"),
    ]
    instructions: Text = ""
    max_output_tokens: Count | None = None
    n: Literal[1] = 1
    text: TextControls = TextControls()
    include: Annotated[Many[Annotated[str, Field(max_length=128)]], Field(max_length=32)] = Field(default_factory=list)
    metadata: Annotated[dict[str, JsonValue], Field(max_length=64)] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _as_chat(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if values.get("messages"):
            raise refusal("messages", "send them as input")
        values = {name: value for name, value in values.items() if name != "messages"}
        if isinstance(tools := values.get("tools"), list):
            values["tools"] = list(map(_as_offered, tools))
        if isinstance(choice := values.get("tool_choice"), dict) and choice.get("type") == "function":
            function, rest = _split(choice, "name")
            values["tool_choice"] = choice if "function" in choice else rest | {"function": function}
        return values

    @model_validator(mode="after")
    def _with_messages(self) -> Self:
        told = [ChatMessage(role="system", content=self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            asked = [ChatMessage(role="user", content=self.input)]
        else:
            asked = [item for item in self.input if isinstance(item, ChatMessage)]
        if not asked:
            raise refusal("input", "give at least one message")
        self.messages = []
        for message in (*told, *asked):
            last = self.messages[-1].role if self.messages else ""
            if {last, message.role} <= _SYSTEM or last == message.role == "assistant":  # to templates they are one
                message = _joined(self.messages.pop(), message)
            self.messages.append(message)
        return self

    @classmethod
    def as_written(cls, path: str) -> str:
        for ours, written in _AS_WRITTEN:
            path = ours.sub(written, path)
        return path

    def unknown_fields(self) -> Any:
        return (path for path in super().unknown_fields() if not path.startswith("messages."))

    def without_context(self, part_characters: int | None) -> tuple[Self, tuple[Document, ...]]:
        rest, documents = super().without_context(part_characters)
        return rest.model_copy(update={"input": ""}), documents  # it stands in the messages

    def token_limit(self) -> int | None:
        usual = super().token_limit()
        if None not in (self.max_output_tokens, usual) and self.max_output_tokens != usual:
            raise ApiError(400, "max_output_tokens and max_tokens differ; give one", "max_output_tokens")
        return self.max_output_tokens or usual

    @property
    def limit_field(self) -> str:
        return super().limit_field if self.max_output_tokens is None else "max_output_tokens"

    def num_logprobs(self) -> int | None:
        is_asked = LOGPROBS in self.include or self.logprobs or bool(self.top_logprobs)
        return (self.top_logprobs or 0) if is_asked else None

    def answer_format(self) -> tuple[str, dict[str, Any]]:
        kind = self.text.format.type
        if kind == "text":
            return super().answer_format()
        return "text.format", {"json_object": True} if kind == "json_object" else {"json": self.text.format.schema_}


def _joined(first: ChatMessage, second: ChatMessage) -> ChatMessage:
    """Two messages of one role; calls of tools stand after the text."""
    role: Any = "system" if first.role in _SYSTEM else first.role
    texts = first.to_message().content, second.to_message().content
    calls = [*first.tool_calls, *second.tool_calls]
    return ChatMessage(role=role, content="\n\n".join(filter(None, texts)), tool_calls=calls)


def _as_offered(tool: Any) -> Any:
    """A function that the caller offers, in the words of a chat."""
    if not isinstance(tool, dict) or tool.get("type") != "function" or "function" in tool:
        return tool
    function, rest = _split(tool, *Function.model_fields)
    return rest | {"function": function}
