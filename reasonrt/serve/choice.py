"""What one choice of an HTTP answer has shown so far. What has been shown is never taken back."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from reasonrt.serve.backends.base import Accepted
from reasonrt.thinking import Split, split, without_beginning
from reasonrt.types import Completion, Report, Step, Tokenizer, ToolCall

STOP_TEXT = "stop_text"
"""The key in a completion's details under which the stop text stands that ended it."""


@dataclass(frozen=True, slots=True)
class Token:
    """A committed token and its log-probability.

    Attributes:
        text: what it reads alone; a part of a character reads U+FFFD.
        begin: of what was committed, so many characters stand before it.
        author: of its step; what no engine has drawn is certain.
        logprob: natural logarithm; NaN for the first of a prompt.
        top: the highest ones at its place, by the texts of their tokens, in descending order.
        is_answer: it stands after the thinking.
    """

    text: str
    begin: int
    author: str
    logprob: float
    top: tuple[tuple[str, float], ...]
    is_answer: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """Text that can be shown, without white space at its ends; `stop_text` is the one that ended the content.

    `tokens` are those of reasoning and content, tags and white space included, without end tokens.
    Calls of tools are there at the end, all of them.
    """

    reasoning: str = ""
    content: str = ""
    stop_text: str | None = None
    tokens: tuple[Token, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


class Choice:
    """One solution while it is written: what was committed, and what of it has been shown.

    Args:
        index: among the choices of the answer.
        stop_texts: the content ends before the first of these; the reasoning is not searched.
        tokenizers: of the engines, by their names; None where nobody asks for log-probabilities.
        is_echo: the first step is a prompt, and what follows continues it: all of it is content, as it stands.

    Attributes:
        completion: there from the end on.
        steps, step_seconds: what was committed, and when, in seconds since the work on it began.
        content_begin: where the content begins in what was committed.
        reports: what a traced request has told, with the same seconds, and after how many committed tokens.
        is_thinking: all that was committed so far ends inside the thinking.
    """

    completion: Completion

    def __init__(
        self,
        index: int,
        stop_texts: Sequence[str] = (),
        tokenizers: Mapping[str, Tokenizer] | None = None,
        *,
        is_echo: bool = False,
    ) -> None:
        self.index, self._stop_texts, self._tokenizers, self._is_echo = index, stop_texts, tokenizers, is_echo
        self.accepted = Accepted(0, False, frozenset())
        self.shown = Shown()
        self.steps: list[Step] = []
        self.step_seconds: list[float] = []
        self.reports: list[dict[str, Any]] = []
        self.committed_tokens = 0
        self.is_thinking = False
        self._text = ""
        self._held: list[Token] = []
        self._num_reasoning_characters = self.content_begin = 0
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
            if self._tokenizers is not None:
                self._held += self._tokens_of(event, self._tokenizers)
            self._text += event.text
        if self._is_echo:
            parts = Split("", self._text, is_thinking=False, num_reasoning_characters=0)
        else:
            parts = split(self._text, self.accepted.prompt_opens_thinking, is_whole=is_whole)
        self.is_thinking, self._num_reasoning_characters = parts.is_thinking, parts.num_reasoning_characters
        self.content_begin = len(self._text) - len(parts.content)
        prompt = self.steps[0].text if self._is_echo and self.steps else ""
        answer, tool_calls = self._answer(parts.content[len(prompt) :], event)
        kept, stop_text = cut(answer, self._stop_texts, is_whole=is_whole)
        kept = prompt + kept
        content, before = kept if self._is_echo else kept.rstrip(), self.shown
        if stop_text is not None:
            tool_calls = ()
        elif not content.startswith(before.content):  # a parser may leave out what stands between two calls
            content = before.content
        tokens = self._release(parts, kept, is_whole=is_whole and stop_text is None)
        self.shown = Shown(parts.reasoning, content, stop_text, (*before.tokens, *tokens), tool_calls)
        reasoning, content = parts.reasoning[len(before.reasoning) :], content[len(before.content) :]
        return Shown(reasoning, content, stop_text, tokens, tool_calls)

    def _answer(self, text: str, event: Step | Completion) -> tuple[str, tuple[ToolCall, ...]]:
        """What of an answer is text, as far as that is known, and the calls of tools in it."""
        if isinstance(event, Completion) and event.parsed is not None:
            return event.parsed.content, event.parsed.tool_calls
        marks = self.accepted.call_marks
        if marks is None:
            return text, ()
        if not marks:  # a call may begin anywhere
            return (text if isinstance(event, Completion) else ""), ()
        return cut(text, marks, is_whole=isinstance(event, Completion))[0], ()

    def report(self, report: Report) -> None:
        place = {"at_tokens": self.committed_tokens, "seconds": round(time.perf_counter() - self._began, 6)}
        self.reports.append(place | dict(report.known))

    def reasoning_tokens(self) -> int:
        """How many of the committed tokens are thinking; a step that is so in part counts in part."""
        left, num_tokens = self._num_reasoning_characters, 0.0
        for step in self.completion.steps:
            num_tokens += len(step.token_ids) * min(left, len(step.text)) / max(1, len(step.text))
            left -= min(left, len(step.text))
        return round(num_tokens)

    def _tokens_of(self, step: Step, tokenizers: Mapping[str, Tokenizer]) -> list[Token]:
        tokenizer = tokenizers.get(step.author) or next(iter(tokenizers.values()))
        is_drawn = step.author in tokenizers or self._is_echo
        ids = step.token_ids if is_drawn else tokenizer.encode(step.text)  # another vocabulary may have written it
        decode = cache(lambda token_id: tokenizer.decode([token_id]))
        begin, last = len(self._text), len(self._text) + max(0, len(step.text) - 1)
        tokens = []
        for place, token_id in enumerate(ids):
            if token_id in tokenizer.eos_token_ids and not self._is_echo:
                continue
            named = zip(step.top_token_ids[place], step.top_logprobs[place], strict=True) if step.top_token_ids else ()
            top = tuple([(decode(each), logprob) for each, logprob in named])
            text, logprob = decode(token_id), step.logprobs[place] if step.logprobs else 0.0
            tokens.append(Token(text, min(begin, last), step.author, logprob, top))
            begin += len(text)
        return tokens

    def _release(self, parts: Split, kept: str, *, is_whole: bool) -> tuple[Token, ...]:
        """The tokens of what can be shown now, and could not be before."""
        end = self.content_begin + len(kept)
        if not parts.is_thinking and not parts.content:
            end = parts.num_reasoning_characters  # what follows may still turn out to be a tag
        count = len(self._held) if is_whole else sum(token.begin < end for token in self._held)
        released, self._held = self._held[:count], self._held[count:]
        return tuple([self._placed(token, parts) for token in released])

    @staticmethod
    def _placed(token: Token, parts: Split) -> Token:
        is_answer = not parts.is_thinking and token.begin >= parts.num_reasoning_characters
        return replace(token, is_answer=True) if is_answer else token


def cut(content: str, stop_texts: Sequence[str], *, is_whole: bool) -> tuple[str, str | None]:
    """`content` up to the first of `stop_texts`, and which one that was.

    Unless `is_whole`, what could still become a stop text is held back.
    """
    found = [(place, stop_text) for stop_text in stop_texts if (place := content.find(stop_text)) >= 0]
    if found:
        place, stop_text = min(found)
        return content[:place], stop_text
    return content if is_whole else without_beginning(content, stop_texts), None
