"""Where a step ends, on token ids.

A boundary is a token that ends in a blank line outside code fences and LaTeX environments. Which tokens can be one
is worked out once per vocabulary, merged tokens such as `.\\n\\n` included; only at those is the text looked at.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from reasonrt.types import Tokenizer

# after a backslash a mark is none: `\\[4pt]` is a line break in a formula
_MARKS = re.compile(r"```|(?<!\\)(?:\\\\)*(\$\$|\\\[|\\\]|\\begin\{\w+\*?\}|\\end\{\w+\*?\})")
_FENCE = "```"
_BOTH_ENDS = (_FENCE, "$$")  # open and close alike
_STRAY_AFTER = 16  # blank lines


class Boundaries:
    """The boundary tokens of one vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        lines = {token_id: text for token_id, text in tokenizer.vocabulary().items() if "\n" in text}
        self.closing = frozenset(i for i, text in lines.items() if re.search(r"\n\n\s*\Z", text))
        self.opens_line = frozenset(i for i, text in lines.items() if text.startswith("\n") and not text.strip())
        self.ends_line = frozenset(i for i, text in lines.items() if text.endswith("\n"))


@lru_cache(maxsize=32)
def boundaries_of(tokenizer: Tokenizer) -> Boundaries:
    """The boundaries of `tokenizer`, worked out once."""
    return Boundaries(tokenizer)


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that make one step, with their text."""

    token_ids: tuple[int, ...]
    text: str


class StepSplitter:
    """Cuts a stream of token ids into steps. Every id that goes in comes out once, in order.

    A fence that is never closed holds all that follows, as in Markdown. A formula or environment that holds more
    than 16 blank lines was none: its opening mark is taken for a stray one, and steps are cut again.
    """

    def __init__(self, boundaries: Boundaries) -> None:
        self._boundaries = boundaries
        self._pending: list[int] = []
        self._text = ""  # of the ids that _marks have been looked for in
        self._num_read = 0  # of these ids
        self._marks: list[str] = []  # open ones, the innermost last
        self._blank_lines = 0  # inside of _marks
        self._last_id = -1

    def feed(self, token_ids: Sequence[int]) -> list[Segment]:
        """Take in new tokens and return the steps that they complete, most often none."""
        segments = []
        for token_id in token_ids:
            self._pending.append(token_id)
            if self._may_close(token_id):
                self._read()
                # blank lines alone are the beginning of the next step
                if self._is_outside_marks() and self._text.strip():
                    segments.append(self._cut())
            self._last_id = token_id
        return segments

    def peek(self) -> Segment:
        """What has not been closed by a boundary so far; it stays where it is."""
        return Segment(tuple(self._pending), self._boundaries.tokenizer.decode(self._pending))

    def flush(self) -> Segment | None:
        """What has not been closed by a boundary; None when nothing is left."""
        if not self._pending:
            return None
        self._read()
        return self._cut()

    def _may_close(self, token_id: int) -> bool:
        known = self._boundaries
        return token_id in known.closing or (token_id in known.opens_line and self._last_id in known.ends_line)

    def _read(self) -> None:
        # reading stops at white space only, which no mark contains: none is cut in two
        text = self._boundaries.tokenizer.decode(self._pending[self._num_read :])
        self._text += text
        self._num_read = len(self._pending)
        for match in _MARKS.finditer(text):
            self._note(match.group(1) or _FENCE)
        if not self._marks:
            self._blank_lines = 0
        elif text.strip() and self._marks[-1] != _FENCE:  # blank lines in a row are one
            self._blank_lines += 1

    def _note(self, mark: str) -> None:
        if mark != _FENCE and self._marks and self._marks[-1] == _FENCE:
            return  # code, not a formula
        opening = mark.replace(r"\]", r"\[").replace(r"\end", r"\begin")
        may_close = mark in _BOTH_ENDS or mark != opening
        if may_close and opening in self._marks:
            while self._marks.pop() != opening:  # what it holds ends with it
                pass
        elif mark == opening:
            self._marks.append(mark)

    def _is_outside_marks(self) -> bool:
        if self._blank_lines > _STRAY_AFTER:
            self._marks.clear()
            self._blank_lines = 0
        return not self._marks

    def _cut(self) -> Segment:
        segment = Segment(tuple(self._pending), self._text)
        self._pending, self._text, self._num_read = [], "", 0
        return segment
