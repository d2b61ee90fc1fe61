"""Servers that have `/chat/completions` alone: the conversation is sent, and an answer comes from its start.

A text that has been begun they continue only where they take `continue_final_message`, as vLLM and SGLang do, and no
thinking: that is no part of a message. What they tell of the thinking beside the answer (`reasoning_content` or
`reasoning`) stands in the text between the marks of the engine's thinking.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from reasonrt.errors import CapabilityError
from reasonrt.ports import Engine
from reasonrt.thinking import END_THINK, THINK, opens_thinking
from reasonrt.types import Message, PromptIds

ROUTE = "chat/completions"
CONTINUES = {"continue_final_message": True, "add_generation_prompt": False}
CONTRADICTION = {"continue_final_message": True, "add_generation_prompt": True}
"""What only a server refuses that knows these fields: others take them in silence, and begin the answer anew."""

_OF_IDS = ("prompt", "return_token_ids", "return_tokens_as_token_ids", "logprobs", "logprob_token_ids")


def chat_body(body: Mapping[str, Any], engine: Engine, prompt: Sequence[int], *, continues: bool) -> dict[str, Any]:
    """A completion after `prompt`, as a chat.

    Raises:
        CapabilityError: the prompt is no conversation, or more of an answer than `continues` allows for.
    """
    if not isinstance(prompt, PromptIds) or prompt.tools:
        what = "continues no plain text" if not isinstance(prompt, PromptIds) else "is shown no tools"
        raise CapabilityError(f"the server of engine {engine.name!r} has chat alone, and {what}; use another engine")
    chat = {name: value for name, value in body.items() if name not in _OF_IDS}
    chat["messages"] = [_as_json(message) for message in prompt.messages]
    if begun := engine.tokenizer.decode(prompt.begun):
        is_in_thinking = THINK in begun or END_THINK in begun or prompt_is_open(engine, prompt)
        if not continues or is_in_thinking:
            what = "thinking" if continues else "text"
            raise CapabilityError(
                f"the server of engine {engine.name!r} has chat alone, and continues no {what}; "
                "use a policy in which it writes from the start, such as target"
            )
        chat["messages"].append({"role": "assistant", "content": begun})
        chat |= CONTINUES
    return chat


def prompt_is_open(engine: Engine, prompt: PromptIds) -> bool:
    """Whether the template opens the thinking, so that what is written after it begins inside."""
    return opens_thinking(engine.tokenizer.decode, prompt[: prompt.num_tokens])


class Spoken:
    """What a chat brings, as one text.

    Args:
        is_open: the prompt has opened the thinking already.
        tells_thinking: the server is known to tell the thinking apart: an answer without any has skipped it.
    """

    def __init__(self, *, is_open: bool, tells_thinking: bool) -> None:
        self._is_open, self.tells_thinking = is_open, tells_thinking

    def pieces(self, choice: Mapping[str, Any]) -> list[tuple[str, bool]]:
        """The texts that a chunk adds, and whether each is a mark of ours.

        Raises:
            AttributeError: it is no chunk of a chat.
        """
        delta = choice.get("delta") or choice.get("message") or {}
        thought, content = thinking_of(delta), delta.get("content") or ""
        added: list[tuple[str, bool]] = []
        if thought:
            self.tells_thinking = True
            if not self._is_open:
                added.append((f"{THINK}\n", True))
            self._is_open = True
            added.append((thought, False))
        if content:
            if self._is_open and self.tells_thinking:
                added.append((f"\n{END_THINK}\n\n", True))
                self._is_open = False
            added.append((content, False))
        return added


def thinking_of(message: Mapping[str, Any]) -> str:
    """The thinking of a message or a delta."""
    thought: str = message.get("reasoning_content") or message.get("reasoning") or ""
    return thought


def _as_json(message: Message) -> dict[str, Any]:
    """As OpenAI has it."""
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        shown["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    named = {"tool_call_id": message.tool_call_id, "name": message.name}
    return shown | {name: value for name, value in named.items() if value}
