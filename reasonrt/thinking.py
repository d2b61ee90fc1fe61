"""The one split of a text into thinking and answer. Whatever asks where the thinking ends asks here.

A text holds thinking when the prompt has opened it (many chat templates end with `<think>`) or when the text begins
with `<think>`; the thinking lasts up to the first `</think>`. What opens it again immediately after that is more
thinking. All other text is the answer, tags in it included.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Marks:
    """What models of one family open and close their thinking with. A tokenizer reads and writes them as `<think>`.

    Attributes:
        others: what frames an answer, and is no text.
    """

    opening: str
    closing: str
    others: tuple[str, ...] = ()


KNOWN_MARKS = (
    Marks(THINK, END_THINK),
    Marks("[THINK]", "[/THINK]"),  # Magistral
    Marks("<seed:think>", "</seed:think>"),  # Seed-OSS
    Marks("◁think▷", "◁/think▷"),  # Kimi
    Marks("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),  # Command A
    Marks(  # gpt-oss
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        ("<|channel|>final<|message|>",),
    ),
)


def find_marks(vocabulary: Container[str], template: str) -> Marks:
    """The first of `KNOWN_MARKS` that are tokens of their own, or that a chat template writes; else `<think>`.

    Args:
        vocabulary: texts of the tokens that a tokenizer finds in any text.
    """
    found = (marks for marks in KNOWN_MARKS if marks.opening in vocabulary or marks.opening in template)
    return next(found, KNOWN_MARKS[0])


CLOSING = "closing"
"""The author of what closes a thinking that has not ended by itself: no engine has generated it."""

_OPENING_TOKENS = 16  # at the end of a prompt: enough for the tag and white space, a character each


@dataclass(frozen=True, slots=True)
class Split:
    """A text, split; of a text that still grows, what can be shown of it.

    Attributes:
        reasoning: the thinking, without tags and without white space at its ends; a blank line between two of them.
        content: the answer, without white space before it; empty while the thinking lasts.
        is_thinking: the text ends inside the thinking.
        num_reasoning_characters: how much of the text is thinking, tags included; the answer stands after it.
    """

    reasoning: str
    content: str
    is_thinking: bool
    num_reasoning_characters: int


def split(text: str, prompt_opens_thinking: bool = False, *, is_whole: bool = True) -> Split:
    """The thinking and the answer in `text`.

    Unless `is_whole`, what could still become a tag is held back, so that nothing shown is ever taken back: the
    reasoning and the content of a longer text begin with those of a shorter one.
    """
    thoughts: list[str] = []
    is_open, has_closed, end = prompt_opens_thinking, False, 0  # of the last tag
    while True:
        body = text[end:].lstrip()
        if body.startswith(THINK):  # some write it although the prompt has, or again after they have closed it
            is_open, end = True, len(text) - len(body) + len(THINK)
        elif is_open:
            thought, tag, rest = body.partition(END_THINK)
            if not tag:
                shown = body if is_whole else without_beginning(body, (END_THINK,))
                is_held = not is_whole and THINK.startswith(body)
                return Split(_joined([*thoughts, "" if is_held else shown]), "", True, len(text))
            thoughts.append(thought)
            is_open, has_closed, end = False, True, len(text) - len(rest)
        elif has_closed and body.startswith(END_THINK):  # once more, of nothing
            end = len(text) - len(body) + len(END_THINK)
        else:
            tags = (THINK, END_THINK) if has_closed else (THINK,)
            is_held = not is_whole and any(tag.startswith(body) for tag in tags)
            return Split(_joined(thoughts), "" if is_held else body, False, end)


def opens_thinking(decode: Callable[[Sequence[int]], str], prompt_token_ids: Sequence[int]) -> bool:
    """Whether a prompt ends with an open `<think>`, so that what is written after it begins inside the thinking.

    The template must have written it: a question may end so, too, and then a control token follows.

    Args:
        decode: of the tokenizer that the ids belong to; control tokens decode to nothing.
    """
    end = prompt_token_ids[-_OPENING_TOKENS:]
    controls = [place for place, token_id in enumerate(end) if not decode([token_id])]
    return decode(end[controls[-1] + 1 if controls else 0 :]).rstrip().endswith(THINK)


def closing_text(before: str) -> str:
    """What closes a thinking that ends with the text `before`."""
    return f"{'' if before.endswith(chr(10)) else chr(10)}{END_THINK}\n\n"


def ends_thinking(text: str) -> bool:
    """Whether a part of a text, such as a step, closes the thinking that was open before it."""
    return END_THINK in text


def _joined(thoughts: Iterable[str]) -> str:
    return "\n\n".join(filter(None, (thought.strip() for thought in thoughts)))


def without_beginning(text: str, words: Iterable[str]) -> str:
    """`text` without the longest end with which one of `words` begins: more text could complete that word."""
    longest = 0
    for word in words:
        start = text.find(word[0], max(0, len(text) - len(word) + 1))  # most texts end without even a first character
        while start >= 0 and not word.startswith(text[start:]):
            start = text.find(word[0], start + 1)
        longest = max(longest, len(text) - start if start >= 0 else 0)
    return text[: len(text) - longest]
