"""How models write calls of tools: known formats, found from a chat template, each with vLLM's parser for it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How models of one family write calls.

    Attributes:
        parser: the name of vLLM's parser.
        signs: all of them stand in a chat template of such a model.
        marks: what a call begins with in the text of an answer.
    """

    parser: str
    signs: tuple[str, ...]
    marks: tuple[str, ...]


KNOWN_FORMATS = (  # of two that fit, the first
    CallFormat("qwen3_coder", ("<tool_call>", "<function="), ("<tool_call>", "<function=")),
    CallFormat("glm45", ("<tool_call>", "<arg_key>"), ("<tool_call>",)),
    CallFormat("hermes", ("<tool_call>", '"arguments"'), ("<tool_call>",)),  # Qwen 2.5 and 3, Hermes
    CallFormat("hermes", ("<tool_call>", r"\"arguments\""), ("<tool_call>",)),
    CallFormat("mistral", ("[TOOL_CALLS]",), ("[TOOL_CALLS]",)),
    CallFormat("llama3_json", ("<|python_tag|>",), ("<|python_tag|>", "{")),
    CallFormat("deepseek_v3", ("<｜tool▁calls▁begin｜>", "```json"), ("<｜tool▁calls▁begin｜>",)),
    CallFormat("deepseek_v31", ("<｜tool▁calls▁begin｜>",), ("<｜tool▁calls▁begin｜>",)),
    CallFormat("kimi_k2", ("<|tool_calls_section_begin|>",), ("<|tool_calls_section_begin|>",)),
    CallFormat("minimax_m2", ("<minimax:tool_call>",), ("<minimax:tool_call>",)),
    CallFormat("seed_oss", ("<seed:tool_call>",), ("<seed:tool_call>",)),
)


def find_format(template: str) -> CallFormat | None:
    """The format that a chat template writes calls in; None where it writes none, or none that is known."""
    return next((known for known in KNOWN_FORMATS if all(sign in template for sign in known.signs)), None)


def marks_of(parser: str) -> tuple[str, ...]:
    """What a call that `parser` reads begins with; empty where that is not known."""
    return next((known.marks for known in KNOWN_FORMATS if known.parser == parser), ())


def may_frame_calls(token: str) -> bool:
    """Whether a special token is a part of calls, and so is text to a parser."""
    lowered = token.casefold()
    words = ("tool", "function", "python_tag", "arg_", "[args]", "[call_id]")
    return any(word in lowered for word in words)
