"""Calls of tools: what a request with tools needs, what its answer is held to, and what is found in it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from reasonrt.errors import CapabilityError, RequestError, shown
from reasonrt.policies.structured import can_call_tools, can_hold_structure
from reasonrt.ports import Capability, Engine, Policy, RequestEngine
from reasonrt.thinking import split
from reasonrt.types import Completion, FinishReason, ParsedAnswer, Request, ToolCall, knows_tools

_JUDGES = frozenset({Capability.SCORE})


def refuse_tools(request: Request, policy: Policy, engines: Mapping[str, Engine]) -> None:
    """Refuse a request with tools, or with calls in its history, that these engines cannot serve.

    Args:
        engines: by role, those of the policy.

    Raises:
        RequestError: why, and what to do instead.
    """
    is_talked_of = any(message.tool_calls or message.role == "tool" for message in request.messages)
    if not request.tools and not is_talked_of:
        return
    if request.tools and not can_call_tools(policy, engines):
        raise RequestError(
            f"policy {request.policy} calls no tools here; leave them out, or name a policy that reads no context and "
            "whose answer an engine with a `tool_parser` writes"
        )
    for engine in engines.values():
        if engine.capabilities != _JUDGES and not knows_tools(engine.tokenizer):
            raise RequestError(
                f"the chat template of engine {engine.name!r} shows no tools, which policy {request.policy} needs; "
                "leave tools and their results out, or name another policy"
            )
    if _must_be_held(request) and not can_hold_structure(policy, engines):
        asked = f"tool_choice {request.tool_choice}" if request.tool_choice != "auto" else "a structure beside tools"
        raise RequestError(
            f"policy {request.policy} cannot hold its answer to {asked} here; the engine that writes it must be one of "
            "vLLM with `structured: true`, or a server that holds texts to one"
        )


async def hold_to_calls(request: Request, engine: RequestEngine) -> Request:
    """`request`, with the structure that its answer must have, where `engine` can hold it to one.

    Raises:
        RequestError: a schema that cannot be held.
    """
    is_strict = any(tool.is_strict for tool in request.tools)
    if not (_must_be_held(request) or is_strict or not request.parallel_tool_calls):
        return request
    if Capability.STRUCTURE not in engine.capabilities:
        return request
    held = await engine.structure_of_calls(
        request.tools, request.tool_choice, is_parallel=request.parallel_tool_calls, structure=request.structure
    )
    return replace(request, structure=held, answer_structure=request.structure)


async def find_calls(content: str, request: Request, engine: RequestEngine) -> tuple[ParsedAnswer, str]:
    """What an answer says and which calls it makes, and what is wrong with one that is left out.

    A call is one of a tool that was offered, with a JSON object; a text in which there is none, or which the engine
    cannot read, is all content.
    """
    try:
        parsed = await engine.parse_calls(content, request.tools, request.tool_choice)
    except CapabilityError as error:
        return ParsedAnswer(content), str(error)
    names, kept, wrong = {tool.name for tool in request.tools}, list[ToolCall](), ""
    for call in parsed.tool_calls:
        if call.name not in names:
            wrong = wrong or f"a call of {shown(call.name)} is left out: it was not offered"
        elif not isinstance(_read(call.arguments), dict):
            wrong = wrong or f"a call of {shown(call.name)} is left out: its arguments are no JSON object"
        else:
            kept.append(call)
    text = content if wrong and not kept else parsed.content
    return ParsedAnswer(text, tuple(kept if request.parallel_tool_calls else kept[:1])), wrong


async def parse_answer(ended: Completion, request: Request, engine: RequestEngine) -> Completion:
    """`ended`, with the calls in its answer told from its text; its warnings name one that is left out."""
    content = split(ended.text, ended.prompt_opens_thinking).content.rstrip()
    parsed, wrong = await find_calls(content, request, engine)
    if not parsed.tool_calls and ended.finish_reason is not FinishReason.STOP:  # cut off, perhaps within a call
        parsed = ParsedAnswer(_before_marks(content, engine.call_marks))
    warnings = {**ended.warnings, **({"tools": wrong} if wrong else {})}
    if any(tool.is_strict for tool in request.tools) and Capability.STRUCTURE not in engine.capabilities:
        warnings["strict"] = f"engine {engine.name!r} holds no arguments to a schema; set `structured: true`"
    return replace(ended, warnings=warnings, parsed=parsed)


def _before_marks(content: str, marks: tuple[str, ...]) -> str:
    """`content` up to where a call begins."""
    begun = [place for mark in marks if (place := content.find(mark)) >= 0]
    return content[: min(begun)].rstrip() if begun else content


def _must_be_held(request: Request) -> bool:
    return bool(request.tools) and (request.tool_choice != "auto" or bool(request.structure))


def _read(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
