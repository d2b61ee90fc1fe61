"""What a choice has shown is never taken back, holds no stop text, and is the completion's own split."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt import Completion, FinishReason, Step
from reasonrt.serve.backends.base import Accepted
from reasonrt.serve.choice import Choice, Shown
from reasonrt.serve.wire.rendering import finish_reason

PIECES = st.sampled_from(["<think>", "</think>", "\n\n", " ", "a", "b", "ab", "<", "/thi", "nk>", "\\boxed{7}"])
TEXTS = st.lists(PIECES, max_size=12)
STOPS = st.lists(st.text("ab\n ", min_size=1, max_size=3), max_size=3)


def play(
    pieces: list[str], is_open: bool, stop_texts: list[str], reason: FinishReason = FinishReason.STOP
) -> tuple[Choice, list[Shown]]:
    """A choice after these steps, and what it has shown with each; a stop text ends it."""
    choice = Choice(0, stop_texts)
    choice.accepted = Accepted(3, is_open, frozenset({"target"}))
    shown: list[Shown] = []
    steps: list[Step] = []
    for piece in pieces:
        steps.append(Step(piece, (1, 2), "target"))
        shown.append(choice.add(steps[-1]))
        if shown[-1].stop_text is not None:
            break
    end = Completion(tuple(steps), reason, {}, 0.0, prompt_opens_thinking=is_open)
    return choice, [*shown, choice.add(end)]


@given(pieces=TEXTS, is_open=st.booleans(), stop_texts=STOPS)
def test_what_was_shown_step_by_step_is_what_is_shown_at_the_end(
    pieces: list[str], is_open: bool, stop_texts: list[str]
) -> None:
    choice, shown = play(pieces, is_open, stop_texts)

    assert "".join(new.reasoning for new in shown) == choice.shown.reasoning
    assert "".join(new.content for new in shown) == choice.shown.content
    whole, _ = play(["".join(pieces)], is_open, stop_texts)
    if choice.shown.stop_text is None:
        assert choice.shown == whole.shown
    else:  # it ended there, whatever came after
        assert whole.shown.stop_text is not None


@given(pieces=TEXTS, is_open=st.booleans(), stop_texts=STOPS)
def test_content_holds_no_stop_text_and_none_is_missed(pieces: list[str], is_open: bool, stop_texts: list[str]) -> None:
    (cut, _), (free, _) = play(["".join(pieces)], is_open, stop_texts), play(["".join(pieces)], is_open, [])

    assert not [stop_text for stop_text in stop_texts if stop_text in cut.shown.content]
    assert free.shown.content.startswith(cut.shown.content)
    assert cut.shown.reasoning == free.shown.reasoning
    if cut.shown.stop_text is None:
        assert cut.shown.content == free.shown.content
    else:
        assert cut.shown.stop_text in stop_texts


@given(pieces=TEXTS, is_open=st.booleans())
def test_choice_is_split_as_its_completion_is(pieces: list[str], is_open: bool) -> None:
    choice, _ = play(pieces, is_open, [])

    assert choice.shown == Shown(choice.completion.reasoning, choice.completion.content)


@pytest.mark.parametrize(
    ("pieces", "is_open", "reasoning_tokens"),
    [
        (["<think>ab", "</think>", "cd"], False, 4),
        (["ab", "</think>", "cd"], True, 4),
        (["ab</think>", "cd"], False, 0),
        (["ab</think>" + "c" * 10], True, 1),  # half of the step
        (["<think>", "ab"], False, 4),
        (["ab"], True, 2),
        (["ab"], False, 0),
        ([], True, 0),
    ],
)
def test_reasoning_tokens_are_those_of_the_thinking_with_its_tags(
    pieces: Any, is_open: bool, reasoning_tokens: int
) -> None:
    choice, _ = play(pieces, is_open, [])

    assert choice.reasoning_tokens() == reasoning_tokens


@given(
    pieces=TEXTS,
    is_open=st.booleans(),
    stop_texts=STOPS,
    reason=st.sampled_from(FinishReason),
    size=st.integers(1, 9),  # characters
)
def test_no_answer_is_empty_and_whole_however_a_stream_is_cut(
    pieces: list[str], is_open: bool, stop_texts: list[str], reason: FinishReason, size: int
) -> None:
    text = "".join(pieces)
    cuts = [text[place : place + size] for place in range(0, len(text), size)]
    choice, shown = play(cuts, is_open, stop_texts, reason)
    whole, _ = play([text], is_open, stop_texts, reason)

    assert "".join(new.content for new in shown) == choice.shown.content
    assert finish_reason(choice) == finish_reason(whole) or choice.shown.stop_text is not None
    if finish_reason(choice) == "stop" and choice.shown.stop_text is None:
        assert choice.shown.content
        assert reason is FinishReason.STOP
