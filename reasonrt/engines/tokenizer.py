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
from reasonrt.engines.control_tokens import ControlTokens, encode_with
from reasonrt.errors import ConfigError, RequestError
from reasonrt.thinking import END_THINK, THINK, Marks, find_marks
from reasonrt.types import Message

_ANCHOR = "a"
_SWITCHES = frozenset({"enable_thinking", "thinking"})  # of templates of models that can do without
_BEFORE = ("\n", ".", "1", _ANCHOR)  # what may stand before a text; one of them merges with nothing


class HFTokenizer:
    """The tokenizer in `folder`.

    `encode` finds special tokens in any text, as every Hugging Face tokenizer does; to `encode_text`, and in the
    messages of a `chat`, they are text. To `decode` they are nothing: the end token decodes to "".

    Texts and ids are pieces of a longer text, so that what is decoded or encoded piece by piece is what it is as a
    whole. Tokenizers of SentencePiece's kind put a space before a text and take one from its beginning: they would add
    and lose one at every cut. Only a `chat` begins as they do it.

    Args:
        folder: with `tokenizer.json`, `tokenizer_config.json` and a chat template.
        boundary: what ends a step of the model's.
        thinking_marks: what the model opens and closes its thinking with; None looks for known ones.

    Attributes:
        can_skip_thinking: the template has a switch for the thinking.

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
        self.eos_token_ids = self._find_eos(folder, names.get("eos_token"))
        self._controls = ControlTokens(self._backend, self.eos_token_ids, [*self._names.values(), *_written_by(parsed)])
        added = {token.content: token.special for token in self._backend.get_added_tokens_decoder().values()}
        self._marks = Marks(*thinking_marks) if thinking_marks else find_marks(added, template)
        self._of_marks = self._find_tokens(added)
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
        if not self._of_marks and self._marks.opening == THINK:
            return self._text_of(token_ids)
        runs = groupby(token_ids, key=self._of_marks.get)  # a special token of theirs would decode to nothing
        shown = "".join([mark * len(list(run)) if mark else self._text_of(list(run)) for mark, run in runs])
        text = shown.replace(self._marks.closing, END_THINK).replace(self._marks.opening, THINK)
        for other in (*self._marks.others, *self._of_marks.values()):
            text = text if other in (THINK, END_THINK) else text.replace(other, "")
        return text

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """See the protocol.

        Raises:
            RequestError: the model's template refuses the conversation, by a role that it does not know for instance.
        """
        if not any(self._controls.may_stand_in(message.content) for message in messages):
            return self._encode_alone(self._render(messages))
        secret = secrets.token_hex(16)  # a new one each time, as a template may show it in an error
        hidden = [Message(message.role, self._controls.hide(message.content, secret)) for message in messages]
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

    def _render(self, messages: Sequence[Message]) -> str:
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(messages=conversation, add_generation_prompt=True, **self._names)
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


def _tojson(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # jinja's own escapes for HTML


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


# templates come with models: they are sandboxed, and find the names that transformers gives them
_JINJA = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
_JINJA.filters["tojson"] = _tojson
_JINJA.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
