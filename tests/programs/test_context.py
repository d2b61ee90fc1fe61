"""Chunks on one grid, searches that end, spans that say where they are."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.programs.context import SIZES, Context, Coverage, SearchError, Span
from reasonrt.types import Document

TEXTS = st.lists(st.text(alphabet="ab \nä", max_size=3000), max_size=3)


def context_of(*texts: str) -> Context:
    return Context([Document(text) for text in texts])


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


async def test_grep_of_a_large_text_that_is_not_ascii_takes_less_than_a_second() -> None:
    """Acceptance test (f)."""
    context = context_of("Zeile über Straße und Ähre nummer x\n" * 290_000 + "der Schlüssel ist 77\n")
    assert len(context.documents[0].text.encode()) > 10_000_000
    began = time.perf_counter()

    (hit,) = await context.grep("Schlüssel ist")

    assert hit.text == "der Schlüssel ist 77"
    assert time.perf_counter() - began < 1


async def test_a_pattern_that_never_ends_is_ended() -> None:
    context = context_of("a" * 40 + "b")

    with pytest.raises(SearchError, match="simpler"):
        await context.grep(r"(a|aa)+$")


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "(?P<n>a)(?P<n>"])
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
