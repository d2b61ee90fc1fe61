"""A Hugging Face tokenizer folder as a `Tokenizer`.

Reads the files itself, by `tokenizers` and Jinja: no torch, no transformers, a start in milliseconds. Nothing is
ever added, cut or padded, whatever the folder asks for.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as BackendTokenizer

from reasonrt.boundaries import BoundaryKind
from reasonrt.engines.call_formats import find_format, may_frame_calls
from reasonrt.engines.control_tokens import ControlTokens, encode_with
from reasonrt.errors import ConfigError, RequestError
from reasonrt.thinking import END_THINK, THINK, Marks, find_marks
from reasonrt.types import FunctionTool, Message, ToolCall

_ANCHOR = "a"
_SWITCHES = frozenset({"enable_thinking", "thinking"})  # of templates of models that can do without
_BEFORE = ("\n", ".", "1", _ANCHOR)  # what may stand before a text; one of them merges with nothing


class HFTokenizer:
    """The tokenizer in `folder`.

    `encode` finds special tokens in any text, as every Hugging Face tokenizer does; to `encode_text`, and in the
    messages and tools of a `chat`, they are text. To `decode` they are nothing: the end token decodes to "". Those that
    frame calls of tools decode to themselves, as a parser looks for them.

    Texts and ids are pieces of a longer text, so that what is decoded or encoded piece by piece is what it is as a
    whole. Tokenizers of SentencePiece's kind put a space before a text and take one from its beginning: they would add
    and lose one at every cut. Only a `chat` begins as they do it.

    Args:
        folder: with `tokenizer.json`, `tokenizer_config.json` and a chat template.
        boundary: what ends a step of the model's.
        thinking_marks: what the model opens and closes its thinking with; None looks for known ones.

    Attributes:
        can_skip_thinking: the template has a switch for the thinking.
        knows_tools: the template shows tools to the model.
        call_format: how the model writes calls of them; None where that is not known.
        frames_calls_unseen: special tokens frame its calls, which a text without such tokens does not show.
        frames_thinking_unseen: so they do its thinking.

    Raises:
        ConfigError: one of these is missing or cannot be read.
    """

    def __init__(
        self, folder: Path, boundary: BoundaryKind = "blank_line", thinking_marks: tuple[str, str] | None = None
    ) -> None:
        self.boundary = boundary
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ConfigError(f"{folder} holds no tokenizer.json; give the folder of a model with a fast tokenizer")
        content = file.read_bytes()
        try:
            self._backend = BackendTokenizer.from_buffer(content)
        except Exception as error:  # noqa: BLE001 (the backend raises the bare class)
            raise ConfigError(f"{file} is no tokenizer: {_first_line(error)}; fetch it again") from None
        self._backend.no_truncation()
        self._backend.no_padding()
        settings = _read_json(folder / "tokenizer_config.json")
        names = _special_tokens(settings)
        template = _chat_template(folder, settings)
        try:
            self._template = _JINJA.from_string(template)
            parsed = _JINJA.parse(template)
        except jinja2.TemplateError as error:
            raise ConfigError(f"the chat template in {folder} is broken: {_first_line(error)}; correct it") from None
        used = meta.find_undeclared_variables(parsed)
        self._names = {name: names[name] for name in sorted(used & names.keys())}
        self.can_skip_thinking = bool(used & _SWITCHES)
        self.knows_tools = "tools" in used
        self.call_format = find_format(template) if self.knows_tools else None
        self.eos_token_ids = self._find_eos(folder, names.get("eos_token"))
        self._controls = ControlTokens(self._backend, self.eos_token_ids, [*self._names.values(), *_written_by(parsed)])
        added = {token.content: token.special for token in self._backend.get_added_tokens_decoder().values()}
        self._marks = Marks(*thinking_marks) if thinking_marks else find_marks(added, template)
        self._of_marks = self._find_tokens(added)
        of_calls = self._find_call_tokens(added)
        self._kept, self.frames_calls_unseen = self._of_marks | of_calls, bool(of_calls)
        self.frames_thinking_unseen = bool(self._of_marks)
        parts = [content, template.encode(), json.dumps(self._names).encode()]
        if thinking_marks:
            parts.append(json.dumps(thinking_marks).encode())
        self._anchor = self._backend.encode(_ANCHOR, add_special_tokens=False).ids
        self._anchor_length = len(self._backend.decode(self._anchor))
        spaced = self._backend.encode(f"{_ANCHOR} 1 x", add_special_tokens=False).ids
        self._loses_space = "".join(map(self._decode_alone, zip(spaced))) != self._decode_alone(spaced)
        self._adds_space = self.decode(self._anchor) != _ANCHOR
        self.fingerprint = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
        self._vocabulary: dict[int, str] = {}

    @cached_property
    def vocabulary_fingerprint(self) -> str:
        """Equal where each id stands for the same token, and the same ones end a text; the template may be another."""
        tokens = self._backend.get_vocab(with_added_tokens=True)
        decoder = json.loads(self._backend.to_str())["decoder"]
        known = json.dumps([sorted(tokens.items()), sorted(self.eos_token_ids), decoder], sort_keys=True)
        return hashlib.sha256(known.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        own = text.replace(THINK, self._marks.opening).replace(END_THINK, self._marks.closing)
        return self._inside(self._encode_alone, own)

    def encode_text(self, text: str) -> list[int]:
        """As `encode`, for what people, documents and models write: what reads like a control token is text."""
        if not self._controls.may_stand_in(text):
            return self._inside(self._encode_alone, text)
        with _valid_unicode():
            return self._inside(self._controls.encode_text, text)

    def decode(self, token_ids: Sequence[int]) -> str:
        if not self._kept and self._marks.opening == THINK:
            return self._text_of(token_ids)
        runs = groupby(token_ids, key=self._kept.get)  # a special token would decode to nothing
        shown = "".join([kept * len(list(run)) if kept else self._text_of(list(run)) for kept, run in runs])
        text = shown.replace(self._marks.closing, END_THINK).replace(self._marks.opening, THINK)
        for other in (*self._marks.others, *self._of_marks.values()):
            text = text if other in (THINK, END_THINK) else text.replace(other, "")
        return text

    def prompt_text(self, token_ids: Sequence[int]) -> str:
        """The text of a prompt with its control tokens, for a server that reads no ids.

        What the tokenizer puts before every text is left out, as the server's puts it there, too.

        Raises:
            RequestError: what is text in the prompt would be a control token there.
        """
        ids, beginning = list(token_ids), self._backend.encode("").ids
        if beginning and ids[: len(beginning)] == beginning:
            ids = ids[len(beginning) :]
        text: str = self._backend.decode(ids, skip_special_tokens=False)
        if self._controls.among(self._encode_alone(text)) != self._controls.among(ids):
            raise RequestError("the prompt quotes control tokens, and the engine's server takes no ids; leave them out")
        return text

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """See the protocol; raises as `chat_with_tools`."""
        return self.chat_with_tools(messages, ())

    def chat_with_tools(self, messages: Sequence[Message], tools: Sequence[FunctionTool]) -> list[int]:
        """See `types.ShowsTools`.

        Raises:
            RequestError: the model's template refuses the conversation, by a role that it does not know for instance.
        """
        shown = {"messages": [_as_json(message) for message in messages]}
        if tools:
            shown["tools"] = [tool.to_json() for tool in tools]
        if not any(self._controls.may_stand_in(text) for text in _texts_in(shown)):
            return self._encode_alone(self._render(shown))
        secret = secrets.token_hex(16)  # a new one each time, as a template may show it in an error
        hidden = _with_texts(shown, lambda text: self._controls.hide(text, secret))
        with _valid_unicode():
            return self._controls.encode(self._render(hidden), secret)

    def vocabulary(self) -> Mapping[int, str]:
        if not self._vocabulary:
            ids = sorted(self._backend.get_vocab(with_added_tokens=True).values())
            self._vocabulary = {token_id: self.decode([token_id]) for token_id in ids}
        return self._vocabulary

    def _text_of(self, token_ids: Sequence[int]) -> str:
        return self._decode_inside(token_ids) if self._loses_space else self._decode_alone(token_ids)

    def _find_tokens(self, added: Mapping[str, bool]) -> dict[int, str]:
        """The special tokens that the marks are made of, by id."""
        marks = (self._marks.opening, self._marks.closing, *self._marks.others)
        texts = [text for text, is_special in added.items() if is_special and any(text in mark for mark in marks)]
        return {token_id: text for text in texts if (token_id := self._backend.token_to_id(text)) is not None}

    def _find_call_tokens(self, added: Mapping[str, bool]) -> dict[int, str]:
        """The special tokens that calls of tools are made of, by id."""
        texts = [text for text, is_special in added.items() if is_special and may_frame_calls(text)]
        found = {token_id: text for text in texts if (token_id := self._backend.token_to_id(text)) is not None}
        return {token_id: text for token_id, text in found.items() if token_id not in self.eos_token_ids}

    def _encode_alone(self, text: str) -> list[int]:
        with _valid_unicode():
            return encode_with(self._backend, text)

    def _inside(self, encode: Callable[[str], list[int]], text: str) -> list[int]:
        """What `encode` makes of `text` where something stands before it."""
        if self._adds_space and text:
            for before in _BEFORE:
                begun, ids = encode(before), encode(before + text)
                if begun and ids[: len(begun)] == begun and self._decode_inside(begun).endswith(before):
                    return ids[len(begun) :]
        return encode(text)

    def _decode_alone(self, token_ids: Sequence[int]) -> str:
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=True)
        return text

    def _decode_inside(self, token_ids: Sequence[int]) -> str:
        """Many decoders take the space from the beginning of a first token."""
        return self._decode_alone([*self._anchor, *token_ids])[self._anchor_length :]

    def _render(self, shown: Mapping[str, Any]) -> str:
        try:
            return self._template.render(add_generation_prompt=True, **self._names, **shown)
        except (jinja2.TemplateError, TypeError) as error:
            raise RequestError(f"the model's chat template refuses the messages: {_first_line(error)}") from None

    def _find_eos(self, folder: Path, eos_token: str | None) -> frozenset[int]:
        found: set[int] = set()
        for file in ("generation_config.json", "config.json"):
            value = _read_json(folder / file).get("eos_token_id")
            found.update(value if isinstance(value, list) else [] if value is None else [value])
        if eos_token is not None and (token_id := self._backend.token_to_id(eos_token)) is not None:
            found.add(token_id)
        if not found:
            raise ConfigError(f"{folder} names no end token; set eos_token in its tokenizer_config.json")
        return frozenset(found)


def _as_json(message: Message) -> dict[str, Any]:
    """As templates expect it."""
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        shown["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}
            for call in message.tool_calls
        ]
    named = {"tool_call_id": message.tool_call_id, "name": message.name}
    return shown | {name: value for name, value in named.items() if value}


def _arguments(call: ToolCall) -> dict[str, Any]:
    """What templates take. A call that is badly spelt does not make all later turns of its conversation fail."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError:
        arguments = None
    return arguments if isinstance(arguments, dict) else {}


def _texts_in(shown: Any) -> Iterator[str]:
    """Every text in JSON values, names of fields included."""
    if isinstance(shown, str):
        yield shown
    parts = (*shown, *shown.values()) if isinstance(shown, Mapping) else shown if isinstance(shown, list) else ()
    for part in parts:
        yield from _texts_in(part)


def _with_texts(shown: Any, change: Callable[[str], str]) -> Any:
    """JSON values, with each text changed."""
    if isinstance(shown, str):
        return change(shown)
    if isinstance(shown, Mapping):
        return {change(name): _with_texts(value, change) for name, value in shown.items()}
    return [_with_texts(part, change) for part in shown] if isinstance(shown, list) else shown


@contextmanager
def _valid_unicode() -> Iterator[None]:
    try:
        yield
    except (TypeError, UnicodeEncodeError):
        raise RequestError("the text holds half of a surrogate pair; send valid Unicode") from None


def _written_by(template: nodes.Template) -> Iterator[str]:
    """The texts that stand in a template."""
    yield from (node.data for node in template.find_all(nodes.TemplateData))
    yield from (node.value for node in template.find_all(nodes.Const) if isinstance(node.value, str))


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template") or _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    if not isinstance(template, str):
        raise ConfigError(f"{folder} has no chat template; put the model's own into {file.name}, or use a chat model")
    return template


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and its like, as templates name them."""
    tokens = {name: value for name, value in settings.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in tokens.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{file} is no JSON: {_first_line(error)}; fetch it again") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no JSON object; fetch it again")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class _GenerationTag(Extension):
    """`{% generation %}`, with which templates mark what the assistant wrote for training: its body, unchanged."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None, **layout: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **layout)  # jinja's own escapes for HTML


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


# templates come with models: they are sandboxed, and find the names that transformers gives them
_JINJA = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
_JINJA.filters["tojson"] = _tojson
_JINJA.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
