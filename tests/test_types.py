"""Values refuse what makes no sense, in one clear line; a completion finds thinking and answer in its text."""

import math
from typing import Any

import pytest

from reasonrt.errors import RequestError
from reasonrt.types import (
    Completion,
    EngineUsage,
    FinishReason,
    Limits,
    Message,
    Request,
    Sampling,
    Step,
)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Limits, {"max_tokens": 0}),
        (Limits, {"max_tokens": -5}),
        (Limits, {"max_tokens": 1_000_001}),
        (Limits, {"deadline_s": 0.0}),
        (Limits, {"deadline_s": -1.5}),
        (Limits, {"deadline_s": math.nan}),
        (Limits, {"max_engine_calls": 0}),
        (Sampling, {"max_tokens": -1}),
        (Sampling, {"max_tokens": 1, "temperature": -0.1}),
        (Sampling, {"max_tokens": 1, "temperature": 2.5}),
        (Sampling, {"max_tokens": 1, "temperature": math.nan}),
        (Sampling, {"max_tokens": 1, "top_p": 0.0}),
        (Sampling, {"max_tokens": 1, "top_p": 1.01}),
        (Sampling, {"max_tokens": 1, "seed": 2**63}),
    ],
)
def test_value_out_of_range_is_refused_by_name(kind: type, fields: dict[str, Any]) -> None:
    name, value = list(fields.items())[-1]

    with pytest.raises(RequestError) as error:
        kind(**fields)

    assert name in str(error.value)
    assert str(value) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("question", ["", "   ", "\n\n"])
def test_empty_prompt_is_refused(question: str) -> None:
    with pytest.raises(RequestError, match="prompt is empty; give a question"):
        Request.ask(question)


def test_request_without_messages_is_refused() -> None:
    with pytest.raises(RequestError, match="prompt is empty"):
        Request(())


def test_request_has_the_bounds_of_its_sampling() -> None:
    with pytest.raises(RequestError, match=r"temperature must be in \[0, 2\], got 3"):
        Request.ask("1 + 1", temperature=3.0)


def test_ask_is_a_request_of_one_user_message() -> None:
    request = Request.ask("1 + 1", "draft", seed=3)

    assert request == Request((Message("user", "1 + 1"),), "draft", seed=3)


@pytest.mark.parametrize(
    ("text", "is_open", "reasoning", "content"),
    [
        ("<think>\na\n\nb\n\n</think>\n\nc\n", False, "a\n\nb", "c"),
        ("\n<think>a</think>c", False, "a", "c"),
        ("a\n\n</think>\n\nc", True, "a", "c"),
        ("<think>\na\n\nb", False, "a\n\nb", ""),  # cut off in the middle of it
        ("a\n\nb", True, "a\n\nb", ""),
        ("just c", False, "", "just c"),
        ("", False, "", ""),
    ],
)
def test_completion_tells_thinking_from_answer(text: str, is_open: bool, reasoning: str, content: str) -> None:
    half = len(text) // 2
    steps = tuple(Step(part, (1,), "target") for part in (text[:half], text[half:]))

    completion = Completion(steps, FinishReason.STOP, {}, 0.0, prompt_opens_thinking=is_open)

    assert completion.text == text
    assert completion.reasoning == reasoning
    assert completion.content == content


def test_completion_adds_up_the_tokens_of_its_engines() -> None:
    usage = {"target": EngineUsage(generated=3), "draft": EngineUsage(generated=4)}

    assert Completion((), FinishReason.STOP, usage, 0.0).generated_tokens == 7
