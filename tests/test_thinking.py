"""Thinking and answer are told apart in one way, in a whole text and in one that grows."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt import Completion, FinishReason, Limits, Message, Request, Runtime, Step
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.policies.stopping.probes import full_answer
from reasonrt.thinking import END_THINK, THINK, Split, ends_thinking, opens_thinking, split, without_beginning

PIECES = st.sampled_from([THINK, END_THINK, "\n\n", " ", "a", "b", "ab", "<", "/thi", "nk>", "\\boxed{7}"])
UNSEEN = rf"{THINK}|{END_THINK}|\s"
TEXTS = st.lists(PIECES, max_size=12).map("".join)


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        (
            "<think>\na\n\nb\n\n</think>\n\nc\n",
            False,
            Split("a\n\nb", "c\n", False, len("<think>\na\n\nb\n\n</think>")),
        ),
        ("\n<think>a</think>c", False, Split("a", "c", False, len("\n<think>a</think>"))),
        ("a\n\n</think>\n\nc", True, Split("a", "c", False, len("a\n\n</think>"))),
        ("<think>a</think>c", True, Split("a", "c", False, len("<think>a</think>"))),  # although the prompt has
        ("a</think>c", False, Split("", "a</think>c", False, 0)),  # nothing was open
        ("a<think>b</think>c", False, Split("", "a<think>b</think>c", False, 0)),
        ("a</think>b</think>c", True, Split("a", "b</think>c", False, len("a</think>"))),
        ("a</think>\n<think>b</think>c", True, Split("a\n\nb", "c", False, len("a</think>\n<think>b</think>"))),
        ("<think>a</think>\n<think>b", False, Split("a\n\nb", "", True, len("<think>a</think>\n<think>b"))),
        ("a</think></think>c", True, Split("a", "c", False, len("a</think></think>"))),  # once more, of nothing
        ("a</think>b<think>c", True, Split("a", "b<think>c", False, len("a</think>"))),  # an answer about tags
        ("<think>\na\n\n", False, Split("a", "", True, len("<think>\na\n\n"))),
        ("a", True, Split("a", "", True, 1)),
        ("a", False, Split("", "a", False, 0)),
        ("<thi", False, Split("", "<thi", False, 0)),
        ("", True, Split("", "", True, 0)),
        ("", False, Split("", "", False, 0)),
    ],
)
def test_whole_text_is_split(text: str, is_open: bool, expected: Split) -> None:
    assert split(text, is_open) == expected


@given(pieces=st.lists(PIECES, max_size=12), is_open=st.booleans())
def test_what_is_shown_of_a_text_that_grows_is_never_taken_back(pieces: list[str], is_open: bool) -> None:
    known = split("", is_open, is_whole=False)
    for end in range(len(pieces) + 1):
        grown = split("".join(pieces[:end]), is_open, is_whole=False)
        assert grown.reasoning.startswith(known.reasoning)
        assert grown.content.startswith(known.content)
        known = grown
    whole = split("".join(pieces), is_open)
    assert whole.reasoning.startswith(known.reasoning)
    assert whole.content.startswith(known.content)


@given(text=TEXTS, is_open=st.booleans())
def test_split_loses_nothing_that_can_be_seen(text: str, is_open: bool) -> None:
    parts = split(text, is_open)

    thought, said = text[: parts.num_reasoning_characters], text[parts.num_reasoning_characters :]
    assert parts.content == said.lstrip()
    assert re.sub(UNSEEN, "", parts.reasoning) == re.sub(UNSEEN, "", thought)
    if parts.is_thinking:
        assert (said, ends_thinking(thought)) == ("", False)


@given(text=TEXTS, is_open=st.booleans())
def test_completion_is_split_as_the_text_is(text: str, is_open: bool) -> None:
    completion = Completion((Step(text, (1,), "target"),), FinishReason.STOP, {}, 0.0, prompt_opens_thinking=is_open)
    parts = split(text, is_open)

    assert completion.reasoning == parts.reasoning
    assert completion.content == parts.content.rstrip()


@pytest.mark.parametrize(
    ("text", "words", "free"),
    [("ab", ["bc"], "a"), ("abb", ["bbc", "bc"], "a"), ("ab", ["ab"], "ab"), ("ab", [], "ab"), ("", ["a"], "")],
)
def test_end_that_begins_a_word_is_held_back(text: str, words: list[str], free: str) -> None:
    assert without_beginning(text, words) == free


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ("[assistant] <think>", True),
        ("[assistant] <think>\n\n \n", True),
        ("[assistant] <think>\n\n</think>\n\n", False),
        ("[assistant] ", False),
        ("", False),
    ],
)
def test_prompt_that_ends_with_the_tag_opens_the_thinking(prompt: str, is_open: bool) -> None:
    tokenizer = CharacterTokenizer()

    assert opens_thinking(tokenizer.decode, tokenizer.encode(prompt)) is is_open


def test_a_question_that_ends_with_the_tag_opens_nothing(nano_target: Path) -> None:
    """The zoo's template writes a control token after it, and nothing that could be read."""
    tokenizer = HFTokenizer(nano_target)

    prompt = tokenizer.chat([Message("user", "Continue: <think>")])

    assert tokenizer.decode(prompt).endswith("<think>")
    assert not opens_thinking(tokenizer.decode, prompt)
    assert opens_thinking(tokenizer.decode, [*prompt, *tokenizer.encode("<think>\n")])


def opening_runtime(tokenizer: CharacterTokenizer, text: str) -> Runtime:
    engine = ScriptedEngine("target", text)
    engine.tokenizer = tokenizer
    return Runtime({"target": engine})


async def test_answer_after_thinking_that_the_template_opened(opening_tokenizer: CharacterTokenizer) -> None:
    runtime = opening_runtime(opening_tokenizer, "3 + 4 = 7\n\n</think>\n\n\\boxed{7}")

    completion = await runtime.complete(Request.ask("?"))

    assert completion.prompt_opens_thinking
    assert (completion.reasoning, completion.content, full_answer(completion)) == ("3 + 4 = 7", r"\boxed{7}", "7")


async def test_thinking_that_the_template_opened_and_a_limit_cut_off_is_no_answer(
    opening_tokenizer: CharacterTokenizer,
) -> None:
    runtime = opening_runtime(opening_tokenizer, "3 + 4 = 7\n\nThe answer is 7.\n\nSo 7")

    completion = await runtime.complete(Request.ask("?", limits=Limits(20)))

    assert completion.reasoning.startswith("3 + 4 = 7")
    assert completion.content == ""
    assert full_answer(completion) is None
