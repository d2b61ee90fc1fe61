"""Chunks on one grid, searches that end, spans that say where they are."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.programs.context import MOST_HITS, SIZES, Context, Coverage, SearchError, Span
from reasonrt.types import Document

TEXTS = st.lists(st.text(alphabet="ab \nä", max_size=3000), max_size=3)


def context_of(*texts: str) -> Context:
    return Context([Document(text) for text in texts])


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search may take longer than it does on a slow machine."""
    monkeypatch.setattr("reasonrt.programs.context._SEARCH_S", 60.0)


@settings(max_examples=50, deadline=None)
@given(texts=TEXTS, size=st.integers(1, 5000))
def test_chunks_cover_each_document_once_and_in_order(texts: list[str], size: int) -> None:
    context = context_of(*texts)
    chunks = context.chunks(size)

    for index, text in enumerate(texts):
        assert "".join(context.text(span) for span in chunks if span.document == index) == text
    assert all(span.end > span.start for span in chunks)
    assert all(span.end - span.start <= 2 * max(SIZES[0], size) for span in chunks)


def test_sizes_that_are_nearly_the_same_give_the_same_chunks() -> None:
    context = context_of("line of text\n" * 5000)

    assert context.chunks(8000) == context.chunks(12_345)
    assert context.chunks(8000) != context.chunks(7999)


def test_cuts_stand_after_lines() -> None:
    text = "line of text\n" * 1000
    context = context_of(text)

    assert all(text[span.end - 1] == "\n" for span in context.chunks(1000))


def test_a_line_longer_than_a_chunk_is_cut() -> None:
    context = context_of("x" * 10_000)

    assert {span.end - span.start for span in context.chunks(4000)} == {4000, 2000}


async def test_grep_gives_the_line_and_its_place() -> None:
    context = context_of("one\ntwo apples\nthree", "an apple\n")

    first, second = await context.grep(r"apples?")

    assert (first.text, first.match, first.line, first.span.document) == ("two apples", "apples", 2, 0)
    assert (second.text, second.line, second.span.document) == ("an apple", 1, 1)
    assert context.text(first.span) == first.text


@settings(max_examples=50, deadline=None)
@given(texts=TEXTS)
def test_every_hit_says_what_stands_there(texts: list[str]) -> None:
    context = context_of(*texts)

    for hit in asyncio.run(context.grep("a+b|ä", max_hits=100)):
        assert context.text(hit.span) == hit.text
        assert hit.match in hit.text
        assert context.line_of(hit.span) <= hit.line


async def test_hits_say_what_stands_there_also_where_there_are_more_of_them() -> None:
    hits = await context_of("one a\ntwo a\n", "three a").grep("a", max_hits=2)

    assert [hit.text for hit in hits] == ["one a", "two a"]


async def test_a_long_line_is_shown_about_the_match() -> None:
    context = context_of("x" * 50_000 + "needle" + "y" * 50_000)

    (hit,) = await context.grep("needle")

    assert "needle" in hit.text
    assert len(hit.text) < 1000


@pytest.mark.usefixtures("unhurried")
async def test_grep_of_a_large_text_that_is_not_ascii_is_quick() -> None:
    """Acceptance test (f)."""
    context = context_of("Zeile über Straße und Ähre nummer x\n" * 290_000 + "der Schlüssel ist 77\n")
    assert len(context.documents[0].text.encode()) > 10_000_000
    began = time.perf_counter()

    (hit,) = await context.grep("Schlüssel ist")

    assert hit.text == "der Schlüssel ist 77"
    assert time.perf_counter() - began < 10


async def test_a_pattern_that_never_ends_is_ended() -> None:
    context = context_of("a" * 40 + "b")

    with pytest.raises(SearchError, match="simpler"):
        await context.grep(r"(a|aa)+$")


async def test_a_search_ends_by_the_clock_also_where_each_match_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reasonrt.programs.context._SEARCH_S", -1.0)

    with pytest.raises(SearchError, match="takes too long"):
        await context_of("text").grep("t")


@pytest.mark.parametrize(
    "pattern",
    [
        "|".join(f"word{number}" for number in range(100_000)),
        "a{99999999999}",
        "(?:(?:(?:a){1000}){1000}){1000}",
        "(?:" * 25 + "a" + ")+" * 25,
        "(?:" * 25 + "a" + "){2,3}?" * 25,
        "(" * 9 + "[)]" + "){1}{0010}" * 9,
        "(" * 9 + "a" + "){1}?{10}" * 9,
        "(?ix: " + "(" * 9 + "a" + ") {1 0}" * 9 + ")",
    ],
    ids=range(8),
)
async def test_a_pattern_that_would_take_all_memory_is_never_compiled(pattern: str) -> None:
    """In C, where no clock ends it."""
    began = time.perf_counter()

    with pytest.raises(SearchError, match="too large a pattern; use a simpler one"):
        await context_of("text").grep(pattern)

    assert time.perf_counter() - began < 10


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "123e4567-e89b-12d3-a456-426614174000"),
        (r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", "00:1b:44:11:3a:b7"),
        (r"(?:\d{1,3}\.){3}\d{1,3}(?::\d{2,5})?", "127.0.0.1:8080"),
        (r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?", "2026-12-01 00:00:00.5"),
        (r"((\w+)\s+)+(is|was)\s+(\w+\s+)*(blue|red)(.{0,2000})", "the old needle was once blue"),
        (r"[A-Za-z0-9+/]{1000}", "x" * 1000),
        ("|".join(f"word{number}!" for number in range(1000)), "word999!"),
    ],
    ids=range(7),
)
@pytest.mark.usefixtures("unhurried")
async def test_patterns_that_models_write_are_searched(pattern: str, text: str) -> None:
    (hit,) = await context_of(f"--\n{text}\n").grep(pattern)

    assert hit.match == text[:400]


@pytest.mark.usefixtures("unhurried")
async def test_hits_in_a_line_as_long_as_a_document_are_found_at_once() -> None:
    context = context_of("ab " * 17_000_000)
    began = time.perf_counter()

    hits = await context.grep("ab", max_hits=MOST_HITS)

    assert len(hits) == MOST_HITS
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize("before", [0, 1, 194, 200, 393, 394, 395, 400, 401, 402, 900])
@pytest.mark.parametrize("after", [0, 1, 194, 200, 393, 394, 395, 400, 401, 402, 900])
async def test_a_line_is_shown_whole_where_it_is_short(before: int, after: int) -> None:
    line = "x" * before + "needle" + "y" * after

    (hit,) = await context_of(f"first\n{line}\nlast").grep("needle")

    shown = line if len(line) <= 400 else line[max(0, before - 200) :][:400]
    assert hit.text == shown


@pytest.mark.parametrize("pattern", ["(", "a{2}{3}", "(?P<n>a)(?P<n>", "(?a)(?u)x"])
async def test_what_is_no_pattern_is_named(pattern: str) -> None:
    with pytest.raises(SearchError, match="no regular expression"):
        await context_of("text").grep(pattern)


def test_a_text_is_one_text_and_lists_where_it_is_not_ascii() -> None:
    assert context_of("a\nb").as_value() == "a\nb"
    assert context_of("a", "b").as_value() == "a\n\nb"
    assert context_of("a", "b").as_documents() == ["a", "b"]
    assert context_of("ä\nb").as_value() == ["ä", "b"]
    assert context_of("a", "ä").as_value() == ["a", "ä"]


SPANS = st.tuples(st.integers(0, 1), st.integers(-5, 60), st.integers(-5, 60))


@given(spans=st.lists(SPANS, max_size=20))
def test_coverage_is_the_share_of_characters_in_any_span(spans: list[tuple[int, int, int]]) -> None:
    context = context_of("x" * 50, "y" * 30)
    coverage = Coverage(context)
    read = set()
    for document, start, end in spans:
        coverage.add(Span(document, start, end))
        length = len(context.documents[document].text)
        read |= {(document, place) for place in range(max(0, start), min(end, length))}

    assert coverage.share == pytest.approx(len(read) / 80)


def test_a_piece_that_a_program_cut_out_is_found_again() -> None:
    lines = [f"line number {number} of this text\n" for number in range(1000)]
    text = "".join(lines)
    coverage = Coverage(context_of(text))

    coverage.add_text("".join(lines[100:300]))
    assert coverage.share == pytest.approx(0.2, abs=0.01)

    coverage.add_text("Read this:\n" + "".join(lines[500:600]) + "\nWhat is it about?")
    assert coverage.share == pytest.approx(0.3, abs=0.01)


def test_of_a_long_text_that_a_program_made_both_ends_are_read() -> None:
    lines = [f"line number {number} of this text\n" for number in range(100_000)]
    coverage = Coverage(context_of("".join(lines)))
    made = Prompt("Read this:\n" + "".join(lines[1000:90_000]) + "\nWhat is it about?")

    coverage.add_text(made)

    assert coverage.share == pytest.approx(0.89, abs=0.01)


def test_once_enough_was_searched_no_text_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reasonrt.programs.context._SEARCHED_CHARACTERS", 100)
    coverage = Coverage(context_of("the needle is blue in this text\n" * 4))
    coverage.add_text("the needle is blue in this text\n" * 3)
    monkeypatch.setattr("reasonrt.programs.context._pieces", lambda text: pytest.fail(text))

    coverage.add_text("another text, which stands nowhere in it")

    assert coverage.share == 0


class Prompt(str):
    """A text that is never split whole."""

    def splitlines(self, keepends: bool = False) -> list[str]:
        raise AssertionError("all of it was split")
