"""Steps are cut at blank lines, whatever the tokens are, and nowhere else."""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.boundaries import LONGEST_STEP, Boundaries, BoundaryKind, Segment, StepSplitter
from reasonrt.types import Message


class ChunkTokenizer:
    """Its vocabulary is a list of texts; the ids are their places in it."""

    fingerprint = "chunks"
    eos_token_ids = frozenset({-1})

    def __init__(self, chunks: Sequence[str]) -> None:
        self.chunks = list(chunks)

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def encode_text(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.chunks[i] for i in token_ids)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        raise NotImplementedError

    def vocabulary(self) -> Mapping[int, str]:
        return dict(enumerate(self.chunks))


def split(chunks: Sequence[str], kind: BoundaryKind = "blank_line") -> list[Segment]:
    splitter = StepSplitter(Boundaries(ChunkTokenizer(chunks), kind))
    segments = splitter.feed(range(len(chunks)))
    rest = splitter.flush()
    return [*segments, rest] if rest else segments


def texts(chunks: Sequence[str]) -> list[str]:
    return [segment.text for segment in split(chunks)]


def cut(text: str, places: Sequence[int]) -> list[str]:
    """`text` in pieces that end at `places`, none of them empty."""
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(ends)]


awkward = st.text(alphabet="ab.\n\n\n `$\\[]{}", max_size=60) | st.lists(
    st.sampled_from(["\n", "\n\n", ".\n\n", "```", "$$", r"\[", r"\]", r"\begin{a}", r"\end{a}", "x", " ", r"\\[2pt]"]),
    max_size=40,
).map("".join)
places = st.lists(st.integers(0, 500), max_size=80)


@given(text=awkward, places=places)
def test_segments_hold_every_token_once_and_in_order(text: str, places: list[int]) -> None:
    chunks = cut(text, places)

    segments = split(chunks)

    assert [i for segment in segments for i in segment.token_ids] == list(range(len(chunks)))
    assert "".join(segment.text for segment in segments) == text


@given(text=awkward, places=places)
def test_no_complete_step_is_blank_and_each_ends_in_a_blank_line(text: str, places: list[int]) -> None:
    for segment in texts(cut(text, places))[:-1]:
        assert segment.strip()
        assert re.search(r"\n *\n\s*\Z", segment)


@given(text=awkward, places=places, groups=places)
def test_feeding_in_any_groups_gives_the_same_steps(text: str, places: list[int], groups: list[int]) -> None:
    chunks = cut(text, places)
    tokenizer = ChunkTokenizer(chunks)
    ids = list(range(len(chunks)))
    ends = sorted({0, len(ids), *(group % (len(ids) + 1) for group in groups)})

    together, apart = StepSplitter(Boundaries(tokenizer)), StepSplitter(Boundaries(tokenizer))
    at_once = together.feed(ids)
    in_groups = [segment for a, b in pairwise(ends) for segment in apart.feed(ids[a:b])]

    assert in_groups == at_once
    assert apart.flush() == together.flush()


paragraphs = st.text(alphabet="ab 1=.", max_size=12).map(lambda text: f"p{text}")
inner = st.lists(st.text(alphabet="xy +&", max_size=6), min_size=1, max_size=6).map("\n\n".join)
blocks = (
    paragraphs
    | inner.map(lambda text: f"```python\n{text}\n$$ and \\[ in code\n```")
    | inner.map(lambda text: f"\\[\n{text}\n\\]")
    | inner.map(lambda text: f"$${text}$$")
    | inner.map(lambda text: f"\\begin{{align*}}{text} \\\\[4pt] {text}\\end{{align*}}")
    | inner.map(lambda text: f"\\begin{{a}}\\begin{{a}}{text}\\end{{a}}\n\n{text}\\end{{a}}")
    | inner.map(lambda text: f"$$\\begin{{cases}}{text}\\end{{cases}}\n\n{text}$$")
)


@given(blocks=st.lists(blocks, min_size=1, max_size=6), places=places)
def test_fences_and_formulas_are_never_cut(blocks: list[str], places: list[int]) -> None:
    """With tokens of any shape a step ends only where a block does; with single characters, at every one."""
    pieces = [block + "\n\n" for block in blocks]
    text = "".join(pieces)
    block_ends = set(accumulate(len(piece) for piece in pieces))

    assert set(accumulate(map(len, texts(cut(text, places))))) <= block_ends
    assert texts(list(text)) == pieces


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (["One", ".\n\n", "Two"], ["One.\n\n", "Two"]),
        (["One.", "\n", "\n", "Two"], ["One.\n\n", "Two"]),
        (["One.\n", "\n", "Two"], ["One.\n\n", "Two"]),
        (["One.", "\n\n", "\n\n", "Two", "\n\n"], ["One.\n\n", "\n\nTwo\n\n"]),
        (["One.", "\n\n\n", "\n", "Two"], ["One.\n\n\n", "\nTwo"]),
        (["\n\n", "One", "\n\n"], ["\n\nOne\n\n"]),
        (["One.", "\n\nTwo", " three", "\n\n"], ["One.\n\nTwo three\n\n"]),  # no token ends where the line is blank
        (["One.", "\n", "Two", "\n"], ["One.\nTwo\n"]),
        (["One.", "\r\n\r\n", "Two"], ["One.\r\n\r\n", "Two"]),
        (["One.", "\r\n", "\r\n", "Two"], ["One.\r\n\r\n", "Two"]),
        (["One.", "\r", "\n", "\r", "\n", "Two"], ["One.\r\n\r\n", "Two"]),
        (["One.", "\n", "  ", "\n", "Two"], ["One.\n  \n", "Two"]),
        (["One.", "\n", "a", "  ", "\n", "Two"], ["One.\na  \nTwo"]),
        (["```\na", "\n\n", "b\n```", "\n\n", "c"], ["```\na\n\nb\n```\n\n", "c"]),
        (["$", "$x", "\n\n", "y$", "$", "\n\n", "c"], ["$$x\n\ny$$\n\n", "c"]),
        (["a \\\\[2pt] b", "\n\n", "c"], ["a \\\\[2pt] b\n\n", "c"]),
        (["costs \\$$", "\n\n", "c"], ["costs \\$$\n\n", "c"]),
        ([r"\end{x} \]", "\n\n", "c"], ["\\end{x} \\]\n\n", "c"]),
        ([r"\begin{a}\begin{b}\end{a}", "\n\n", "c"], ["\\begin{a}\\begin{b}\\end{a}\n\n", "c"]),
    ],
)
def test_examples(chunks: list[str], expected: list[str]) -> None:
    assert texts(chunks) == expected


@pytest.mark.parametrize("mark", ["$$", r"\[", r"\begin{align}"])
def test_a_mark_that_is_never_closed_does_not_hold_for_ever(mark: str) -> None:
    steps = texts([f"a {mark} b", *["\n\n", "step"] * 40])

    assert 20 <= len(steps) <= 30
    assert all(step == "step\n\n" for step in steps[1:-1])


@pytest.mark.parametrize("line", [["so", "\n"], ["so", " it"], ["so", "\r\n"]])
@pytest.mark.parametrize("mark", ["", "```", "$$", r"\["])
def test_no_text_makes_one_step_of_everything(mark: str, line: list[str]) -> None:
    """Single line feeds, none at all, or a mark that is never closed."""
    segments = split([mark or "so", *line * 1000])

    lengths = [len(segment.token_ids) for segment in segments]
    assert max(lengths) <= LONGEST_STEP
    assert min(lengths[:-1]) >= LONGEST_STEP // 2
    assert all(segment.text.endswith("\n") for segment in segments[:-1]) or "\n" not in line[1]


def test_step_that_is_too_long_ends_within_no_character() -> None:
    class Bytes(ChunkTokenizer):
        def decode(self, token_ids: Sequence[int]) -> str:
            return bytes(token_ids).decode(errors="replace")

        def vocabulary(self) -> Mapping[int, str]:
            return {byte: self.decode([byte]) for byte in range(256)}

    text = "x" + "数" * 500
    splitter = StepSplitter(Boundaries(Bytes([])))

    segments = splitter.feed(text.encode())

    assert len(segments) >= 4
    assert "\ufffd" not in "".join(segment.text for segment in segments)


@pytest.mark.parametrize(
    ("kind", "chunks", "expected"),
    [
        ("line", ["One", ".\n", "Two", "\n", "\n", "Three"], ["One.\n", "Two\n", "\nThree"]),
        ("line", ["```\n", "a", "\n", "```", "\n", "b"], ["```\na\n```\n", "b"]),
        ("sentence", [*["So"] * 8, ".", " Then", " 3", ".", "14"], ["So" * 8 + ".", " Then 3.14"]),
        ("sentence", [*["So"] * 8, "?\n", "Then", "\n", "x"], ["So" * 8 + "?\n", "Then\n", "x"]),
        ("sentence", ["1", ".", " So", " it", " is"], ["1. So it is"]),
    ],
)
def test_other_boundaries(kind: BoundaryKind, chunks: list[str], expected: list[str]) -> None:
    assert [segment.text for segment in split(chunks, kind)] == expected


@given(text=awkward, places=places, kind=st.sampled_from(["blank_line", "line", "sentence"]))
def test_watching_a_step_shows_what_it_is_made_of(text: str, places: list[int], kind: BoundaryKind) -> None:
    chunks = cut(text, places)
    splitter = StepSplitter(Boundaries(ChunkTokenizer(chunks), kind))
    closed = ""

    for token_id in range(len(chunks)):
        closed += "".join(segment.text for segment in splitter.feed([token_id]))
        assert closed + splitter.peek().text == "".join(chunks[: token_id + 1])


def test_watching_a_step_takes_time_in_proportion_to_its_length() -> None:
    """Each token is decoded twice at most: once to be shown, once where the step may end."""

    class Counting(ChunkTokenizer):
        decoded = 0

        def decode(self, token_ids: Sequence[int]) -> str:
            self.decoded += len(token_ids)
            return super().decode(token_ids)

    tokenizer = Counting(["so "] * 2000)
    splitter = StepSplitter(Boundaries(tokenizer))

    for token_id in range(2000):
        splitter.feed([token_id])
        splitter.peek()

    assert tokenizer.decoded <= 2 * 2000 + 100
