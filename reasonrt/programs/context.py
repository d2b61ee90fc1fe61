"""The documents that a question is about: looked into, cut into chunks and searched by the host, at its speed.

A place in them is a `Span`: document, start, end, in characters, the end exclusive. Programs handle spans instead of
copies of text; whoever reads one is noted, so that coverage is known, and a span given as evidence can be verified.
"""

import asyncio
import re
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from reasonrt.types import Document

SIZES = tuple(1000 * 2**power for power in range(8))
"""Chunks have one of these sizes, in characters, whatever size was asked for: candidates that ask for about the same
get the same chunks, and the prefix cache of the engine holds them."""

MOST_HITS = 10_000
"""Of one search, however many are asked for."""

_LINE_CHARACTERS = 400  # of a hit's line that is shown
_PIECE_CHARACTERS = 24  # long enough to be found again in the right place
_PIECES = 4  # lines at each end of a text that are looked for, each at the cost of a walk through the context
_END_CHARACTERS = 1 << 16  # of a text, at each end, in which these lines are
_SEARCHED_CHARACTERS = 1 << 30  # of walks through the context, to note what was read
_SEARCH_S = 2.0  # of one pattern; patterns come from models and may never end
_PATTERN_CHARACTERS = 10_000
_PATTERN_NODES = 1 << 18  # of a pattern once it is compiled: tens of MB, and well below a second
_REPEAT = re.compile(r"\+|\{0*([1-9][0-9]{0,8})")
_VERBOSE = re.compile(r"\(\?[A-Za-z0-9]*x")  # in which anything may stand between a group and how often it repeats


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a document, by its characters."""

    document: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Hit:
    """One match of a search: the line that it is in, cut to what can be shown, as a span with its text.

    Attributes:
        line: number of the line, from 1.
        match: what the pattern matched.
    """

    span: Span
    line: int
    text: str
    match: str


class SearchError(Exception):
    """A pattern that is no regular expression, or that took too long; the message is for who wrote it."""


class Context:
    """Documents, read only."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = tuple(documents)
        self.num_characters = sum(len(document.text) for document in self.documents)

    @property
    def names(self) -> list[str]:
        """Of each document; one that has none is named by its place."""
        return [document.name or f"document {index}" for index, document in enumerate(self.documents)]

    @property
    def is_ascii(self) -> bool:
        return all(document.text.isascii() for document in self.documents)

    def as_value(self) -> str | list[str]:
        """What a program sees as `context`: one text, or lists where that is not ASCII: of lines, or of documents.

        In the sandbox a place in a text that is not ASCII costs a walk to it; lines are short.
        """
        texts = [document.text for document in self.documents]
        if self.is_ascii:
            return "\n\n".join(texts)
        return texts[0].split("\n") if len(texts) == 1 else texts

    def as_documents(self) -> list[str]:
        """What a program sees as `documents`."""
        return [document.text for document in self.documents]

    def describe(self) -> str:
        """One line on what `context` is, for a prompt."""
        num_lines = sum(document.text.count("\n") + 1 for document in self.documents)
        size = f"{self.num_characters:,} characters in {num_lines:,} lines"
        num = len(self.documents)
        if self.is_ascii:
            parts = (
                f", {num} documents one after the other; the list `documents` has them one by one" if num > 1 else ""
            )
            return f"a str, {size}{parts}"
        kind = "a list of lines (str)" if num == 1 else f"a list of {num} documents (str)"
        return f"{kind}, since it is not ASCII, {size}"

    def text(self, span: Span) -> str:
        """The characters of a span; what lies outside of the document is left out."""
        return self.documents[span.document].text[max(0, span.start) : max(0, span.end)]

    def chunks(self, max_characters: int, document: int | None = None) -> list[Span]:
        """The documents cut at multiples of a size of `SIZES`, each cut moved back to the end of a line.

        Args:
            max_characters: the size is the largest one up to it; below the smallest one it is that.
            document: only this one; None is all.
        """
        size = max((size for size in SIZES if size <= max_characters), default=SIZES[0])
        which = range(len(self.documents)) if document is None else [document]
        return [span for index in which for span in self._grid(index, size)]

    def _grid(self, index: int, size: int) -> Iterator[Span]:
        text = self.documents[index].text
        start = 0
        for multiple in range(size, len(text), size):
            newline = text.rfind("\n", start, multiple)
            end = newline + 1 if newline >= 0 else multiple
            if end > start:
                yield Span(index, start, end)
                start = end
        if start < len(text):
            yield Span(index, start, len(text))

    async def grep(
        self, pattern: str, *, document: int | None = None, max_hits: int = 1000, ignore_case: bool = False
    ) -> list[Hit]:
        """The first hits of a regular expression, in order, one for each match; outside of the event loop.

        Raises:
            SearchError: it is no regular expression, or searching takes longer than two seconds.
        """
        return await asyncio.to_thread(self._grep, pattern, document, max_hits, ignore_case)

    def _grep(self, pattern: str, document: int | None, max_hits: int, ignore_case: bool) -> list[Hit]:
        import regex

        end_s = time.monotonic() + _SEARCH_S
        flags = regex.MULTILINE | (regex.IGNORECASE if ignore_case else 0)
        if len(pattern) > _PATTERN_CHARACTERS or _VERBOSE.search(pattern) or _num_nodes(pattern) > _PATTERN_NODES:
            raise SearchError(f"{pattern[:80]!r} is too large a pattern; use a simpler one, without the flag x")
        try:
            compiled = regex.compile(pattern, flags, cache_pattern=False)
        except Exception as error:  # noqa: BLE001 (it has many beside its own)
            raise SearchError(f"{pattern[:80]!r} is no regular expression: {str(error)[:80]}") from None
        finally:
            regex.purge()  # what it knows of patterns, it keeps also of those that it does not cache
        hits: list[Hit] = []
        max_hits = min(max_hits, MOST_HITS)
        try:
            for index in range(len(self.documents)) if document is None else [document]:
                text, line, seen = self.documents[index].text, 1, 0
                # concurrent: without the lock of the interpreter
                left_s = max(0.001, end_s - time.monotonic())
                for match in compiled.finditer(text, timeout=left_s, concurrent=True):
                    if len(hits) >= max_hits:
                        return hits
                    if time.monotonic() > end_s:  # its own clock is for what it does between two matches
                        raise TimeoutError
                    start, end = match.span()
                    line += text.count("\n", seen, start)
                    seen = start
                    shown = self._line_around(index, start, end)
                    hits.append(Hit(shown, line, self.text(shown), text[start : min(end, start + _LINE_CHARACTERS)]))
        except (TimeoutError, MemoryError):
            raise SearchError(f"searching for {pattern[:80]!r} takes too long; use a simpler pattern") from None
        return hits

    def _line_around(self, index: int, start: int, end: int) -> Span:
        text = self.documents[index].text
        # of a longer line no more is looked at: it is cut in any case
        least, most = max(0, start - _LINE_CHARACTERS - 1), min(len(text), end + _LINE_CHARACTERS + 1)
        first = text.rfind("\n", least, start)
        first = least if first < 0 else first + 1
        last = text.find("\n", end, most)
        last = most if last < 0 else last
        if last - first > _LINE_CHARACTERS:  # about the match
            first = max(first, start - _LINE_CHARACTERS // 2)
            last = min(last, max(first + _LINE_CHARACTERS, min(end, start + _LINE_CHARACTERS)))
        return Span(index, first, last)

    def find(self, quote: str) -> Span | None:
        """The first place where `quote` stands, word for word; None where it stands nowhere."""
        if not quote:
            return None
        for index, document in enumerate(self.documents):
            if (start := document.text.find(quote)) >= 0:
                return Span(index, start, start + len(quote))
        return None

    def line_of(self, span: Span) -> int:
        """The number of the line in which a span begins, from 1."""
        return self.documents[span.document].text.count("\n", 0, span.start) + 1


def _num_nodes(pattern: str) -> int:
    """At most so many that a pattern has once it is compiled.

    `regex` writes out the body of a repeat as often as it must match and once more, in C, where no clock ends it: a few
    characters of nested repeats would take all memory. Whatever repeats a group counts as nested in all others.
    """
    nodes, product = len(pattern), 1
    for repeat in _REPEAT.finditer(pattern):
        copies = int(repeat[1] or 1) + 1
        if pattern[repeat.start() - 1 : repeat.start()] in ")}?+*":
            product *= copies
        else:
            nodes += copies
        if nodes * product > _PATTERN_NODES:
            break
    return nodes * product


def _pieces(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) >= _PIECE_CHARACTERS]


@dataclass
class Coverage:
    """Which characters of a context were read: spans joined as they come."""

    context: Context
    _starts: dict[int, list[int]] = field(default_factory=dict)
    _ends: dict[int, list[int]] = field(default_factory=dict)
    _searched: int = 0

    def add(self, span: Span) -> None:
        """Note that `span` was read."""
        length = len(self.context.documents[span.document].text)
        start, end = max(0, min(span.start, length)), max(0, min(span.end, length))
        if start >= end:
            return
        starts, ends = self._starts.setdefault(span.document, []), self._ends.setdefault(span.document, [])
        first = bisect_right(ends, start - 1)  # the first that reaches up to `start`
        last = bisect_right(starts, end)
        if first < last:
            start, end = min(start, starts[first]), max(end, ends[last - 1])
        starts[first:last], ends[first:last] = [start], [end]

    def add_text(self, text: str) -> None:
        """Note that a text was read that may be, or hold, a piece of the context, cut out by a program."""
        if len(text) < _PIECE_CHARACTERS or self._searched > _SEARCHED_CHARACTERS:
            return
        if span := self._find(text):
            self.add(span)
            return
        head, tail = _pieces(text[:_END_CHARACTERS]), _pieces(text[-_END_CHARACTERS:])
        first = next(filter(None, map(self._find, head[:_PIECES])), None)
        last = next(filter(None, map(self._find, tail[: -_PIECES - 1 : -1])), None)
        for span in filter(None, (first, last)):
            self.add(span)
        if first and last and first.document == last.document and 0 <= last.end - first.start <= len(text):
            self.add(Span(first.document, first.start, last.end))

    def _find(self, text: str) -> Span | None:
        self._searched += self.context.num_characters
        return self.context.find(text) if self._searched <= _SEARCHED_CHARACTERS else None

    @property
    def share(self) -> float:
        """Of all characters, in [0, 1]; 0 for a context without any."""
        covered = sum(
            end - start
            for document, starts in self._starts.items()
            for start, end in zip(starts, self._ends[document], strict=True)
        )
        return covered / self.context.num_characters if self.context.num_characters else 0.0
