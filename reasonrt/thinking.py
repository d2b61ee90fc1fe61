"""The one split of a text into thinking and answer. Whatever asks where the thinking ends asks here.

A text holds thinking when the prompt has opened it (many chat templates end with `<think>`) or when the text begins
with `<think>`; the thinking lasts up to the first `</think>`. All other text is the answer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

THINK, END_THINK = "<think>", "</think>"

_OPENING_TOKENS = 16  # at the end of a prompt: enough for the tag and white space, a character each


@dataclass(frozen=True, slots=True)
class Split:
    """A text, split; of a text that still grows, what can be shown of it.

    Attributes:
        reasoning: the thinking, without tags and without white space at its ends.
        content: the answer, without white space before it; empty while the thinking lasts.
        is_thinking: the text ends inside the thinking.
        num_reasoning_characters: how much of the text is thinking, tags included.
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
    body = text.lstrip()
    if body.startswith(THINK):  # some write it although the prompt has
        body, has_thinking = body[len(THINK) :], True
    else:
        has_thinking = prompt_opens_thinking
        if not is_whole and THINK.startswith(body):
            return Split("", "", has_thinking, len(text) if has_thinking else 0)
    if not has_thinking:
        return Split("", body, False, 0)
    reasoning, end, content = body.partition(END_THINK)
    if end:
        return Split(reasoning.strip(), content.lstrip(), False, len(text) - len(content))
    shown = reasoning if is_whole else without_beginning(reasoning, (END_THINK,))
    return Split(shown.strip(), "", True, len(text))


def opens_thinking(decode: Callable[[Sequence[int]], str], prompt_token_ids: Sequence[int]) -> bool:
    """Whether a prompt ends with an open `<think>`, so that what is written after it begins inside the thinking.

    The template must have written it: a question may end so, too, and then a control token follows.

    Args:
        decode: of the tokenizer that the ids belong to; control tokens decode to nothing.
    """
    end = prompt_token_ids[-_OPENING_TOKENS:]
    controls = [place for place, token_id in enumerate(end) if not decode([token_id])]
    return decode(end[controls[-1] + 1 if controls else 0 :]).rstrip().endswith(THINK)


def ends_thinking(text: str) -> bool:
    """Whether a part of a text, such as a step, closes the thinking that was open before it."""
    return END_THINK in text


def without_beginning(text: str, words: Iterable[str]) -> str:
    """`text` without the longest end with which one of `words` begins: more text could complete that word."""
    longest = 0
    for word in words:
        start = text.find(word[0], max(0, len(text) - len(word) + 1))  # most texts end without even a first character
        while start >= 0 and not word.startswith(text[start:]):
            start = text.find(word[0], start + 1)
        longest = max(longest, len(text) - start if start >= 0 else 0)
    return text[: len(text) - longest]
