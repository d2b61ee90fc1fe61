"""Committed text, parted into reasoning and answer as it grows. What has been shown is never taken back."""

from collections.abc import Sequence
from dataclasses import dataclass

from reasonrt.types import END_THINK, THINK


@dataclass(frozen=True, slots=True)
class Parts:
    """What of a text can be shown; `stop` is the stop text that ended the answer, if one did."""

    reasoning: str = ""
    content: str = ""
    stop: str | None = None


def part(text: str, is_thinking: bool, stops: Sequence[str] = (), is_whole: bool = False) -> Parts:
    """The reasoning and the answer in `text`, without tags and without white space at their ends.

    Unless `is_whole`, what could still become a tag or a stop text is held back: the parts of a longer text begin
    with those of a shorter one, up to the step that meets a stop text.

    Args:
        text: the steps so far.
        is_thinking: the prompt has opened the reasoning.
        stops: the answer ends before the first of these.
    """
    text = text.lstrip()
    if not is_whole and THINK.startswith(text):
        return Parts()
    if text.startswith(THINK):  # some write it though the prompt has
        text, is_thinking = text[len(THINK) :], True
    reasoning, end, answer = text.partition(END_THINK) if is_thinking else ("", "", text)
    if is_thinking and not end:
        return Parts(_free(reasoning, (END_THINK,), is_whole).strip())
    reasoning, answer = reasoning.strip(), answer.lstrip()
    found = [(place, stop) for stop in stops if (place := answer.find(stop)) >= 0]
    if found:
        place, stop = min(found)
        return Parts(reasoning, answer[:place].rstrip(), stop)
    return Parts(reasoning, _free(answer, stops, is_whole).rstrip())


def num_reasoning_characters(text: str, is_thinking: bool) -> int:
    """How much of `text` is reasoning, tags included."""
    if not is_thinking and not text.lstrip().startswith(THINK):
        return 0
    end = text.find(END_THINK)
    return len(text) if end < 0 else end + len(END_THINK)


def _free(text: str, wanted: Sequence[str], is_whole: bool) -> str:
    """`text` without the longest end that is the beginning of one of `wanted`."""
    if is_whole:
        return text
    longest = min(len(text), max(map(len, wanted), default=0))
    for size in range(longest, 0, -1):
        if any(word.startswith(text[-size:]) for word in wanted):
            return text[:-size]
    return text
