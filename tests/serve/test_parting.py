"""Reasoning and answer, out of text that grows: nothing shown is ever taken back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt import Completion, FinishReason, Step
from reasonrt.serve.parting import num_reasoning_characters, part

PIECES = st.sampled_from(["<think>", "</think>", "\n\n", " ", "a", "b", "ab", "<", "/thi", "nk>", "\\boxed{7}"])
TEXTS = st.lists(PIECES, max_size=12).map("".join)
STOPS = st.lists(st.text("ab\n ", min_size=1, max_size=3), max_size=3)


@given(pieces=st.lists(PIECES, max_size=12), is_thinking=st.booleans(), stops=STOPS)
def test_parts_only_grow(pieces: list[str], is_thinking: bool, stops: list[str]) -> None:
    known = part("", is_thinking, stops)
    for end in range(len(pieces) + 1):
        grown = part("".join(pieces[:end]), is_thinking, stops)
        assert grown.reasoning.startswith(known.reasoning)
        assert grown.content.startswith(known.content)
        known = grown
        if known.stop is not None:  # here the request ends
            break
    whole = part("".join(pieces[:end]), is_thinking, stops, is_whole=True)
    assert whole.reasoning.startswith(known.reasoning)
    assert whole.content.startswith(known.content)


@given(text=TEXTS, is_thinking=st.booleans(), stops=STOPS)
def test_answer_holds_no_stop_text_and_none_is_missed(text: str, is_thinking: bool, stops: list[str]) -> None:
    free = part(text, is_thinking, is_whole=True)
    cut = part(text, is_thinking, stops, is_whole=True)

    assert not [stop for stop in stops if stop in cut.content]
    assert free.content.startswith(cut.content)
    assert (cut.stop is None) or cut.stop in stops
    assert cut.reasoning == free.reasoning
    if cut.stop is None:
        assert cut.content == free.content


@given(text=TEXTS)
def test_whole_text_is_parted_as_a_completion_parts_it(text: str) -> None:
    completion = Completion((Step(text, (1,), "target"),), FinishReason.STOP, {}, 0.0, prompt_opens_thinking="</think>" in text)
    parts = part(text, "</think>" in text, is_whole=True)

    assert parts.content == completion.content.strip()
    if "</think>" in text or text.lstrip().startswith("<think>"):
        assert parts.reasoning == completion.reasoning


@pytest.mark.parametrize(
    ("text", "is_thinking", "expected"),
    [
        ("<think>ab</think>cd", False, len("<think>ab</think>")),
        ("ab</think>cd", True, len("ab</think>")),
        ("ab</think>cd", False, 0),
        ("<think>ab", False, len("<think>ab")),
        ("ab", True, 2),
        ("ab", False, 0),
    ],
)
def test_reasoning_is_counted_with_its_tags(text: str, is_thinking: bool, expected: int) -> None:
    assert num_reasoning_characters(text, is_thinking) == expected
