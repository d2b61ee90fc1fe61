"""vLLM's tool parsers: what tells calls of tools from the text of an answer, and what holds an answer to them.

What holds JSON bounds the white space in it, in calls and in plain answers.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from reasonrt.engines.call_formats import marks_of
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.engines.vllm_settings import FOUND, importing_vllm
from reasonrt.errors import CapabilityError, ConfigError, RequestError, in_one_line, shown
from reasonrt.types import TOOL_CHOICES, FunctionTool, ParsedAnswer, ToolCall

_MOST_REASON = 300  # characters of vLLM's own words
_MOST_SPACES = 16  # one after another, in JSON that is held to a schema
_log = logging.getLogger(__name__)


class ToolCalls:
    """What an engine has that calls tools: the parser for its model, loaded when it is first needed.

    Args:
        engine: its name.
        wanted: the name of a parser, `auto` for the one that fits the chat template, or None.
        tokenizer: in whose template the tools are shown.
        folder: of that tokenizer.

    Attributes:
        parser: its name; None where there is none.
        is_found: it is the one that fits the chat template.

    Raises:
        ConfigError: a parser is named, and the template shows no tools.
    """

    def __init__(self, engine: str, wanted: str | None, tokenizer: HFTokenizer, folder: Path) -> None:
        found = tokenizer.call_format.parser if tokenizer.call_format else None
        self.parser, self.is_found = (found, True) if wanted == FOUND else (wanted, False)
        if self.parser is not None and not tokenizer.knows_tools:
            raise ConfigError(
                f"engine {engine!r}: the chat template in {folder} shows no tools, so that tool_parser "
                f"{shown(self.parser)} has none to read calls of; leave it out"
            )
        self._engine, self._folder = engine, folder
        self._loaded: VllmToolParser | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """See `ports.CallsTools.call_marks`."""
        return marks_of(self.parser or "")

    async def load(self) -> bool:
        """Load the parser, if there is one; one that was found, and does not fit, costs the tools alone.

        Raises:
            ConfigError: one that was named does not fit.
        """
        if self.parser is None:
            return False
        try:
            await self._get(self.parser)
        except ConfigError as error:
            if not self.is_found:
                raise ConfigError(f"engine {self._engine!r}: {error}") from None
            _log.warning("engine %s calls no tools: %s", self._engine, error)
            return False
        return True

    async def parse(self, answer: str, tools: Sequence[FunctionTool], choice: str) -> ParsedAnswer:
        """See `ports.CallsTools.parse_calls`."""
        return await asyncio.to_thread((await self._needed()).parse, answer, tools, choice)

    async def structure(
        self, tools: Sequence[FunctionTool], choice: str, *, is_parallel: bool, structure: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """See `ports.CallsTools.structure_of_calls`."""
        return (await self._needed()).structure(tools, choice, is_parallel=is_parallel, structure=structure)

    async def _needed(self) -> "VllmToolParser":
        if self.parser is None:
            raise CapabilityError(f"engine {self._engine!r} tells no calls of tools from text; give it a `tool_parser`")
        try:
            return await self._get(self.parser)
        except ConfigError as error:
            raise CapabilityError(f"engine {self._engine!r} calls no tools: {error}") from None

    async def _get(self, parser: str) -> "VllmToolParser":
        if self._loaded is None:
            self._loaded = await asyncio.to_thread(_load, parser, self._folder)
        return self._loaded


def _load(name: str, folder: Path) -> "VllmToolParser":
    with importing_vllm():  # it imports the parser of that name, too
        return VllmToolParser(name, folder)


class VllmToolParser:
    """One of vLLM's tool parsers, for one model.

    Args:
        name: as in vLLM's `--tool-call-parser`.
        tokenizer: the model's folder, or a tokenizer as vLLM has it.

    Raises:
        ConfigError: vLLM has no such parser, or it does not work with this tokenizer.
    """

    def __init__(self, name: str, tokenizer: Path | Any) -> None:
        try:
            from vllm.parser.parser_manager import ParserManager
            from vllm.tokenizers import get_tokenizer
            from vllm.tool_parsers import ToolParserManager
        except ImportError:
            raise ConfigError("vLLM is not installed here, and its parsers read calls of tools; install it") from None

        for noisy in ("vllm.tool_parsers", "vllm.parser"):  # a traceback for each call that a limit has cut off
            logging.getLogger(noisy).setLevel(logging.CRITICAL)
        if name not in (known := ToolParserManager.list_registered()):
            raise ConfigError(f"vLLM has no tool parser {in_one_line(name)}; it has {', '.join(known)}")
        self._tokenizer = get_tokenizer(str(tokenizer)) if isinstance(tokenizer, Path) else tokenizer
        try:
            parsers = {
                level: ParserManager.get_parser(
                    name, enable_auto_tools=True, tool_strict_level=level, tokenizer=self._tokenizer
                )
                for level in ("auto", "function", "parameter")
            }
        except Exception as error:  # noqa: BLE001 (each parser raises its own)
            raise ConfigError(f"tool parser {name}: {_told(error)}; name another one") from None
        self.name = name
        self._parsers: dict[str, Any] = parsers

    def parse(self, answer: str, tools: Sequence[FunctionTool], choice: str) -> ParsedAnswer:
        """See `ports.CallsTools.parse_calls`."""
        request = _request(tools, choice)
        parser = self._parsers["auto"](self._tokenizer, request.tools)
        _, content, calls = parser.parse(answer, request, enable_auto_tools=True)
        found = [
            ToolCall(call.id or f"call_{uuid.uuid4().hex[:24]}", call.name, call.arguments or "{}")
            for call in calls or ()
        ]
        return ParsedAnswer((content or "").strip(), tuple(found))

    def structure(
        self, tools: Sequence[FunctionTool], choice: str, *, is_parallel: bool, structure: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """See `ports.CallsTools.structure_of_calls`."""
        from vllm.sampling_params import StructuredOutputsParams

        request = _request(tools, choice)
        request.parallel_tool_calls = is_parallel
        if structure:
            request.structured_outputs = StructuredOutputsParams(**structure)
        # arguments that must come fit their schema; beside a structure, calls must be a part of its grammar
        level = "parameter" if choice != "auto" else "function" if structure else "auto"
        parser = self._parsers[level](self._tokenizer, request.tools)
        try:
            held = parser.adjust_request(request).structured_outputs
        except Exception as error:  # noqa: BLE001 (each parser raises its own)
            raise RequestError(f"tools: vLLM refuses them: {_told(error)}") from None
        if held is None or (structure and held.structural_tag is None):
            if choice != "auto" or structure:
                asked = "a structure beside tools" if choice == "auto" else f"tool_choice {choice}"
                raise CapabilityError(f"vLLM's tool parser {self.name} cannot hold an answer to {asked}; leave it out")
            return {}
        if held.structural_tag is None:
            return {"json": held.json}
        return {"structural_tag": json.dumps(_without_long_spaces(json.loads(held.structural_tag)))}


def bounded(structure: Mapping[str, Any]) -> Mapping[str, Any]:
    """`structure`, as in `Sampling`, with bounded white space in its JSON, which small models write up to the limit.

    What xgrammar cannot hold stays as it is: vLLM then asks another backend, or says what is wrong. The first call
    imports vLLM, and a schema is compiled when it first comes: not in an event loop.
    """
    schema = {"type": "object"} if structure.get("json_object") else structure.get("json")
    if schema is None:
        return structure
    tag = _tag_of_json(schema if isinstance(schema, str) else json.dumps(schema))
    return {"structural_tag": tag} if tag else structure


@lru_cache(maxsize=256)
def _tag_of_json(schema: str) -> str | None:
    """The grammar of JSON that fits `schema`; None where xgrammar has none, or is not here."""
    try:
        with importing_vllm():
            import xgrammar
            from vllm.sampling_params import check_json_nesting
            from vllm.v1.structured_output.backend_xgrammar import has_xgrammar_unsupported_json_features

        read = json.loads(schema)
        check_json_nesting(read)
        if has_xgrammar_unsupported_json_features(read):
            return None
        plain = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": read}}
        tag = json.dumps(_without_long_spaces(plain))
        xgrammar.Grammar.from_structural_tag(tag)
    except Exception:  # noqa: BLE001 (of many kinds; vLLM's own words are better)
        return None
    return tag


def _without_long_spaces(tag: Any) -> Any:
    """A grammar of xgrammar's whose JSON has bounded white space: small models would write it up to the limit."""
    if isinstance(tag, list):
        return [_without_long_spaces(part) for part in tag]
    if not isinstance(tag, dict):
        return tag
    if tag.get("type") == "json_schema":  # what is in it is the caller's
        return tag | {"max_whitespace_cnt": _MOST_SPACES}
    return {name: _without_long_spaces(part) for name, part in tag.items()}


def _told(error: Exception) -> str:
    return in_one_line(str(error), _MOST_REASON)


def _request(tools: Sequence[FunctionTool], choice: str) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    offered = [tool.to_json() for tool in tools]
    for one, tool in zip(offered, tools, strict=True):
        one["function"]["strict"] = tool.is_strict
        one["function"]["parameters"] = json.loads(json.dumps(one["function"]["parameters"]))  # vLLM changes it
    named = choice if choice in TOOL_CHOICES else {"type": "function", "function": {"name": choice}}
    return ChatCompletionRequest(messages=[], tools=offered, tool_choice=named)
