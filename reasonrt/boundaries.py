"""Where a step ends, on token ids.

A boundary is a blank line outside code fences and LaTeX environments. Which tokens can close one is worked out
once per vocabulary, merged tokens such as `.\\n\\n` included; only at those is the text looked at.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from reasonrt.types import Tokenizer

_MARKS = re.compile(r"```|\$\$|\\\[|\\\]|\\begin\{\w+\*?\}|\\end\{\w+\*?\}")


class Boundaries:
    """The boundary tokens of one vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.vocabulary()
        self.closing = frozenset(i for i, text in vocabulary.items() if "\n\n" in text)
        self.opens_line = frozenset(i for i, text in vocabulary.items() if text.startswith("\n"))
        self.ends_line = frozenset(i for i, text in vocabulary.items() if text.endswith("\n"))


@cache
def boundaries_of(tokenizer: Tokenizer) -> Boundaries:
    """The boundaries of `tokenizer`, worked out once."""
    return Boundaries(tokenizer)


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that make one step, with their text and log-probabilities (empty when none were asked for)."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] = ()


class StepSplitter:
    """Cuts a stream of token ids into steps. Every id that goes in comes out once, in order."""

    def __init__(self, boundaries: Boundaries) -> None:
        self._boundaries = boundaries
        self._pending: list[int] = []
        self._logprobs: list[float] = []
        self._scanned = 0  # of _pending: how far _open_marks knows the text
        self._open_marks: list[str] = []
        self._last_id = -1

    def feed(self, token_ids: Sequence[int], logprobs: Sequence[float] = ()) -> list[Segment]:
        """Take in new tokens and return the steps that they complete, most often none."""
        segments = []
        for index, token_id in enumerate(token_ids):
            self._pending.append(token_id)
            if logprobs:
                self._logprobs.append(logprobs[index])
            if self._may_close(token_id) and self._is_outside_marks():
                text = self._boundaries.tokenizer.decode(self._pending)
                if text.strip():  # blank lines alone are the beginning of the next step
                    segments.append(self._cut(text))
            self._last_id = token_id
        return segments

    def flush(self) -> Segment | None:
        """What has not been closed by a boundary; None when nothing is left."""
        return self._cut(self._boundaries.tokenizer.decode(self._pending)) if self._pending else None

    def _may_close(self, token_id: int) -> bool:
        known = self._boundaries
        return token_id in known.closing or (token_id in known.opens_line and self._last_id in known.ends_line)

    def _is_outside_marks(self) -> bool:
        for mark in _MARKS.findall(self._boundaries.tokenizer.decode(self._pending[self._scanned :])):
            closes = self._open_marks and mark == _closing_mark(self._open_marks[-1])
            inside_code = self._open_marks and self._open_marks[-1] == "```"
            if closes:
                self._open_marks.pop()
            elif not inside_code and not mark.startswith((r"\end", r"\]")):
                self._open_marks.append(mark)
        self._scanned = len(self._pending)
        return not self._open_marks

    def _cut(self, text: str) -> Segment:
        segment = Segment(tuple(self._pending), text, tuple(self._logprobs))
        self._pending, self._logprobs, self._scanned = [], [], 0
        return segment


def _closing_mark(opening: str) -> str:
    return {r"\[": r"\]"}.get(opening, opening.replace(r"\begin", r"\end"))
