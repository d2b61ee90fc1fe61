"""Where a step ends, on token ids.

A boundary is a token that ends in a blank line outside code fences and LaTeX environments; of a model that writes none,
the end of a line or of a sentence. Which tokens can be one is worked out once per vocabulary, merged tokens such as
`.\\n\\n` included; only at those is the text looked at. No step is longer than `LONGEST_STEP`, whatever is written.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from reasonrt.types import Tokenizer

BoundaryKind = Literal["blank_line", "line", "sentence"]
LONGEST_STEP = 256
"""Tokens; of a step that has half as many, every end of a line is the end."""

# after a backslash a mark is none: `\\[4pt]` is a line break in a formula
_MARKS = re.compile(r"```|(?<!\\)(?:\\\\)*(\$\$|\\\[|\\\]|\\begin\{\w+\*?\}|\\end\{\w+\*?\})")
_FENCE = "```"
_BOTH_ENDS = (_FENCE, "$$")  # open and close alike
_STRAY_AFTER = 16  # blank lines
_SHORTEST_SENTENCE = 8  # tokens: what is shorter is an item's number, or an abbreviation
_CHARACTER_TOKENS = 4  # of one character, at most
_CLOSING = {
    "blank_line": re.compile(r"\n[^\S\n]*\n\s*\Z"),  # spaces in it do not show, nor the CR of CRLF
    "line": re.compile(r"\n\s*\Z"),
    "sentence": re.compile(r"\n\s*\Z|[.!?][\"')\]]*\s+\Z"),
}


class Boundaries:
    """The boundary tokens of one vocabulary.

    Args:
        kind: what ends a step: a blank line; a line, of a model that writes no blank ones; or a sentence.
    """

    def __init__(self, tokenizer: Tokenizer, kind: BoundaryKind = "blank_line") -> None:
        self.tokenizer, self.kind = tokenizer, kind
        vocabulary = tokenizer.vocabulary()
        lines = {token_id: text for token_id, text in vocabulary.items() if "\n" in text}
        self.closing = frozenset(i for i, text in vocabulary.items() if _CLOSING[kind].search(text))
        self.opens_line = frozenset(i for i, text in lines.items() if text.isspace())
        self.ends_line = frozenset(i for i, text in lines.items() if not text.rpartition("\n")[2].strip())
        self.spaces = frozenset(i for i, text in vocabulary.items() if text.isspace() and "\n" not in text)
        self.marked = self.closing | self.ends_line | self.spaces  # all others stand within a line
        self.opens_word, self.ends_sentence = frozenset[int](), frozenset[int]()
        if kind == "sentence":
            self.opens_word = frozenset(i for i, text in vocabulary.items() if text[:1].isspace())
            self.ends_sentence = frozenset(i for i, text in vocabulary.items() if re.search(r"[.!?][\"')\]]*\Z", text))


def boundaries_of(tokenizer: Tokenizer) -> Boundaries:
    """The boundaries of `tokenizer`, worked out once for each kind; its own is its attribute `boundary`, if any."""
    return _boundaries_of(tokenizer, getattr(tokenizer, "boundary", "blank_line"))


@lru_cache(maxsize=32)
def _boundaries_of(tokenizer: Tokenizer, kind: BoundaryKind) -> Boundaries:
    return Boundaries(tokenizer, kind)


class Ends:
    """Sees in a stream of token ids where a step may end, by the ids alone; whether one does, its text says.

    A step that becomes too long ends elsewhere, too.
    """

    def __init__(self, boundaries: Boundaries) -> None:
        self._boundaries = boundaries
        self._is_at_line_begin = False
        self._last_id = -1

    def before(self, token_id: int) -> bool:
        """Whether a step may end before this token, if it is the next."""
        return token_id in self._boundaries.opens_word and self._last_id in self._boundaries.ends_sentence

    def after(self, token_id: int) -> bool:
        """Whether a step may end with this token, which is the next."""
        known, self._last_id = self._boundaries, token_id
        if token_id not in known.marked:
            self._is_at_line_begin = False
            return False
        may_end = token_id in known.closing or (token_id in known.opens_line and self._is_at_line_begin)
        if token_id not in known.spaces:
            self._is_at_line_begin = token_id in known.ends_line
        return may_end


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that make one step, with their text."""

    token_ids: tuple[int, ...]
    text: str


class StepSplitter:
    """Cuts a stream of token ids into steps. Every id that goes in comes out once, in order.

    A formula or environment that holds more than 16 blank lines was none: its opening mark is taken for a stray one,
    and steps are cut again. So is any mark at the end of a step that has become too long.
    """

    def __init__(self, boundaries: Boundaries) -> None:
        self._boundaries = boundaries
        self._pending: list[int] = []
        self._text = ""  # of the ids that _marks have been looked for in
        self._num_read = 0  # of these ids
        self._marks: list[str] = []  # open ones, the innermost last
        self._blank_lines = 0  # inside of _marks
        self._ends = Ends(boundaries)
        self._peeked, self._num_peeked = "", 0  # text of so many of the pending ids

    def feed(self, token_ids: Sequence[int]) -> list[Segment]:
        """Take in new tokens and return the steps that they complete, most often none."""
        segments = []
        has_sentences = bool(self._boundaries.opens_word)
        for token_id in token_ids:
            if has_sentences and self._ends.before(token_id) and self._is_sentence() and self._closes():
                segments.append(self._cut())
            self._pending.append(token_id)
            is_long = len(self._pending) >= LONGEST_STEP // 2
            if (self._ends.after(token_id) and self._closes()) or (is_long and self._is_too_long(token_id)):
                segments.append(self._cut())
        return segments

    def peek(self) -> Segment:
        """What has not been closed by a boundary so far; it stays where it is."""
        text = self._boundaries.tokenizer.decode(self._pending[self._num_peeked :])
        if text.endswith("\ufffd"):  # within a character
            return Segment(tuple(self._pending), self._peeked + text)
        self._peeked, self._num_peeked = self._peeked + text, len(self._pending)
        return Segment(tuple(self._pending), self._peeked)

    def flush(self) -> Segment | None:
        """What has not been closed by a boundary; None when nothing is left."""
        if not self._pending:
            return None
        self._read()
        return self._cut()

    def _closes(self) -> bool:
        self._read()
        # blank lines alone are the beginning of the next step
        return self._is_outside_marks() and bool(self._text.strip())

    def _is_sentence(self) -> bool:
        return len(self._pending) >= _SHORTEST_SENTENCE

    def _is_too_long(self, token_id: int) -> bool:
        length = len(self._pending)
        if length < LONGEST_STEP and token_id not in self._boundaries.ends_line:
            return False
        is_within_character = self._boundaries.tokenizer.decode(self._pending[-_CHARACTER_TOKENS:]).endswith("\ufffd")
        if is_within_character and length < LONGEST_STEP + _CHARACTER_TOKENS:
            return False
        self._read()
        return bool(self._text.strip())

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
        self._peeked, self._num_peeked = "", 0
        self._marks.clear()  # of a step that was too long: what closes the next one depends on nothing before it
        self._blank_lines = 0
        return segment
