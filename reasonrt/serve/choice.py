"""What one choice of an HTTP answer has shown so far. What has been shown is never taken back."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from reasonrt.serve.backends.base import Accepted
from reasonrt.thinking import split, without_beginning
from reasonrt.types import Completion, Step

STOP_TEXT = "stop_text"
"""The key in a completion's details under which the stop text stands that ended it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Text that can be shown, without white space at its ends; `stop_text` is the one that ended the content."""

    reasoning: str = ""
    content: str = ""
    stop_text: str | None = None


class Choice:
    """One solution while it is written: what was committed, and what of it has been shown.

    Args:
        index: among the choices of the answer.
        stop_texts: the content ends before the first of these; the reasoning is not searched.

    Attributes:
        completion: there from the end on.
        steps, step_seconds: what was committed, and when, in seconds since the work on it began.
        is_thinking: all that was committed so far ends inside the thinking.
    """

    completion: Completion

    def __init__(self, index: int, stop_texts: Sequence[str] = ()) -> None:
        self.index, self._stop_texts = index, stop_texts
        self.accepted = Accepted(0, False, frozenset())
        self.shown = Shown()
        self.steps: list[Step] = []
        self.step_seconds: list[float] = []
        self.committed_tokens = 0
        self.is_thinking = False
        self._text = ""
        self._num_reasoning_characters = 0
        self._began = time.perf_counter()

    def add(self, event: Step | Completion) -> Shown:
        """Take an event in; what can be shown since the last one."""
        is_whole = isinstance(event, Completion)
        if isinstance(event, Completion):
            self.completion = event
        else:
            self.steps.append(event)
            self.step_seconds.append(time.perf_counter() - self._began)
            self.committed_tokens += len(event.token_ids)
            self._text += event.text
        parts = split(self._text, self.accepted.prompt_opens_thinking, is_whole=is_whole)
        self.is_thinking, self._num_reasoning_characters = parts.is_thinking, parts.num_reasoning_characters
        content, stop_text = cut(parts.content, self._stop_texts, is_whole=is_whole)
        before, self.shown = self.shown, Shown(parts.reasoning, content, stop_text)
        return Shown(parts.reasoning[len(before.reasoning) :], content[len(before.content) :], stop_text)

    def reasoning_tokens(self) -> int:
        """How many of the committed tokens are thinking; a step that is so in part counts in part."""
        left, num_tokens = self._num_reasoning_characters, 0.0
        for step in self.completion.steps:
            num_tokens += len(step.token_ids) * min(left, len(step.text)) / max(1, len(step.text))
            left -= min(left, len(step.text))
        return round(num_tokens)


def cut(content: str, stop_texts: Sequence[str], *, is_whole: bool) -> tuple[str, str | None]:
    """`content` up to the first of `stop_texts`, and which one that was.

    Unless `is_whole`, what could still become a stop text is held back.
    """
    found = [(place, stop_text) for stop_text in stop_texts if (place := content.find(stop_text)) >= 0]
    if found:
        place, stop_text = min(found)
        return content[:place].rstrip(), stop_text
    return (content if is_whole else without_beginning(content, stop_texts)).rstrip(), None
