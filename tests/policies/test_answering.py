"""No text ends without an answer where its limits leave room for one, and no thinking is longer than its limit."""

from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt import Completion, FinishReason, Limits, Request, Runtime
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine, continuing
from reasonrt.policies.answering import LEAD
from reasonrt.thinking import CLOSING, END_THINK, THINK, split
from reasonrt.types import Sampling

CLOSED = "\n</think>\n\n"
ANSWER = r"\boxed{7}"
THOUGHT = "One.\n\nTwo.\n\nThree."
POLICIES = ["target", "self_consistency", "arbitrage"]


class OpeningTokenizer(CharacterTokenizer):
    fingerprint = "characters of a thinking model"

    def chat(self, messages: Any) -> list[int]:
        return [*super().chat(messages), *self.encode(f"{THINK}\n")]


class WholeTagTokenizer(CharacterTokenizer):
    """`<think>` is a token of its own."""

    fingerprint = "characters and a tag"

    def encode(self, text: str) -> list[int]:
        return [0xE000] if text == THINK else super().encode(text)


def writing(*parts: str, is_open: bool = False) -> Any:
    """The first part at first, the next one after each step that closes or asks, then always the last.

    Args:
        is_open: the template has written `<think>`.
    """

    def script(prompt: str, sampling: Sampling) -> str:
        text = prompt.rpartition("[assistant] ")[2].removeprefix(f"{THINK}\n" if is_open else "")
        place = begin = 0
        for mark in (CLOSED, f"\n\n{LEAD}"):
            if place < len(parts) - 1 and (found := text.find(mark, begin)) >= 0:
                place, begin = place + 1, found + len(mark)
        return parts[place][len(text) - begin :]

    return script


def runtime_of(script: Any, tokenizer: CharacterTokenizer | None = None, **settings: Any) -> Runtime:
    engines = {role: ScriptedEngine(role, script, **settings) for role in ("draft", "target")}
    for engine in engines.values():
        engine.tokenizer = tokenizer or engine.tokenizer
    return Runtime(engines)


async def solve(runtime: Runtime, max_tokens: int = 500, **fields: Any) -> Completion:
    return await runtime.complete(Request.ask("?", limits=Limits(max_tokens), **fields))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("is_open", [True, False])
async def test_text_that_ends_inside_its_thinking_is_closed_and_the_answer_asked_for(
    policy: str, is_open: bool
) -> None:
    begin = "" if is_open else f"{THINK}\n"
    runtime = runtime_of(writing(begin + THOUGHT, ANSWER, is_open=is_open), OpeningTokenizer() if is_open else None)

    completion = await solve(runtime, policy=policy)

    assert (completion.reasoning, completion.content) == (THOUGHT, ANSWER)
    assert completion.finish_reason is FinishReason.STOP
    assert completion.details["closed"] == "end"
    assert completion.details.get("votes", 3) == 3  # of the run that has answered
    assert [step.text for step in completion.steps if step.author == CLOSING] == [CLOSED]
    assert all(usage.discarded >= 0 for usage in completion.usage.values())


@pytest.mark.parametrize("policy", [*POLICIES, "rsd", "oracle"])
async def test_no_random_numbers_are_used_twice(policy: str) -> None:
    """Neither for what continues after the thinking was closed, nor by draft and target."""
    seeds: list[int | None] = []
    writes = writing(f"{THINK}\n{THOUGHT}", f"It is:\n\n{ANSWER}")

    def script(prompt: str, sampling: Sampling) -> str:
        seeds.append(sampling.seed)
        return str(writes(prompt, sampling))

    runtime = runtime_of(script)
    runtime.engines["reward"] = ScriptedEngine("reward", "", scores=lambda text: len(text) % 2)

    completion = await solve(Runtime(runtime.engines), policy=policy, temperature=0.7, seed=1)

    assert completion.details["closed"] == "end"
    assert len(seeds) == len(set(seeds)) > 1


async def test_answer_of_a_model_that_skips_the_thinking_that_its_template_opened() -> None:
    completion = await solve(runtime_of(writing("It is 7.", "It is 7.", is_open=True), OpeningTokenizer()))

    assert (completion.reasoning, completion.content) == ("It is 7.", "It is 7.")


async def test_text_that_ends_immediately_after_its_thinking_is_asked_for_its_answer() -> None:
    def script(prompt: str, sampling: Sampling) -> str:
        return " 7" if prompt.endswith(LEAD) else continuing(f"{THINK}\n{THOUGHT}\n{END_THINK}")(prompt, sampling)

    completion = await solve(runtime_of(script))

    assert (completion.reasoning, completion.content) == (THOUGHT, f"{LEAD} 7")
    assert completion.details["closed"] == "end"


async def test_thinking_that_is_opened_again_after_it_was_closed_is_not_committed() -> None:
    runtime = runtime_of(writing(f"{THINK}\n{THOUGHT}", f"{THINK}\nMore.\n\n" * 9, " 7"))

    completion = await solve(runtime)

    assert (completion.reasoning, completion.content) == (THOUGHT, f"{LEAD} 7")


async def test_answer_that_was_asked_for_and_does_not_come_is_no_whole_one() -> None:
    completion = await solve(runtime_of(writing(f"{THINK}\n{THOUGHT}", "", "")))

    assert completion.finish_reason is FinishReason.LENGTH


async def test_thinking_that_a_token_limit_cuts_off_is_not_closed() -> None:
    completion = await solve(runtime_of(writing(f"{THINK}\n{THOUGHT}", ANSWER)), 20)

    assert (completion.content, completion.finish_reason) == ("", FinishReason.LENGTH)
    assert "closed" not in completion.details


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("limit", [1, 9, 12, 17])
async def test_limit_closes_the_thinking_at_its_token(policy: str, limit: int) -> None:
    text = f"{THINK}\n{THOUGHT * 9}\n{END_THINK}\n\n"
    completion = await solve(runtime_of(writing(text, ANSWER)), policy=policy, thinking_tokens=limit)

    steps = list(takewhile(lambda step: step.author != CLOSING, completion.steps))
    before = "".join(step.text for step in steps)
    assert text.startswith(before)
    assert sum(len(step.token_ids) for step in steps) == limit + len(THINK) * (limit < len(THINK))  # the tag is whole
    assert (completion.content, completion.finish_reason) == (ANSWER, FinishReason.STOP)
    assert completion.details["closed"] == "limit"


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_request_that_ends_after_its_thinking_was_closed_tells_of_it(policy: str) -> None:
    script = writing(f"{THINK}\n{THOUGHT * 9}\n{END_THINK}\n\n", ANSWER * 100)
    limits = Limits(5000, max_generated_tokens=500)
    request = Request.ask(
        "?", policy, limits=limits, thinking_tokens=17, options={"k": 1} if policy == "self_consistency" else {}
    )
    completion = await runtime_of(script).complete(request)

    assert completion.finish_reason is FinishReason.BUDGET
    assert completion.details["closed"] == "limit"


async def test_limit_changes_nothing_where_the_thinking_is_shorter() -> None:
    text = f"{THINK}\n{THOUGHT}\n{END_THINK}\n\n{ANSWER} and more of it"
    free, limited = [
        await solve(runtime_of(continuing(text)), thinking_tokens=limit) for limit in (None, len(THOUGHT) + 25)
    ]

    assert (limited.text, limited.finish_reason) == (free.text, free.finish_reason)
    assert "closed" not in limited.details


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (OpeningTokenizer(), f"{CLOSED}{ANSWER}"),
        (WholeTagTokenizer(), f"{THINK}\n\n{END_THINK}\n\n{ANSWER}"),
        (CharacterTokenizer(), ANSWER),  # it is no thinking model
    ],
)
async def test_thinking_can_be_left_out(tokenizer: CharacterTokenizer, text: str) -> None:
    completion = await solve(runtime_of(ANSWER, tokenizer), thinking_tokens=0)

    assert (completion.text, completion.reasoning, completion.content) == (text, "", ANSWER)


async def test_policy_that_commits_no_thinking_refuses_its_limit() -> None:
    with pytest.raises(Exception, match="policy program_search commits no thinking"):
        runtime_of(ANSWER).prepare(Request.ask("?", "program_search", thinking_tokens=5))


@pytest.mark.parametrize("limit", [None, 12])
async def test_request_that_was_cut_off_continues_as_if_it_had_not_been(limit: int | None) -> None:
    script = writing(f"{THINK}\n{THOUGHT}", ANSWER)
    whole = await solve(runtime_of(script), thinking_tokens=limit)

    for count in range(len(whole.steps) + 1):
        rest = await solve(runtime_of(script), thinking_tokens=limit, committed=whole.steps[:count])
        assert (rest.text, rest.finish_reason) == (whole.text, whole.finish_reason)


PIECES = ["", "a", THINK, END_THINK, "\n\n", "a\n\n", f"{THINK}{END_THINK}", f"{END_THINK}{THINK}"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


@settings(deadline=None, max_examples=150)
@given(
    parts=st.lists(TEXTS, min_size=1, max_size=3),
    is_open=st.booleans(),
    max_tokens=st.integers(1, 80),
    limit=st.none() | st.integers(0, 30),
    chunk_tokens=st.integers(1, 5),
)
async def test_any_order_of_opening_closing_end_and_limit_ends_with_an_answer_or_a_limit(
    parts: list[str], is_open: bool, max_tokens: int, limit: int | None, chunk_tokens: int
) -> None:
    tokenizer = OpeningTokenizer() if is_open else None
    runtime = runtime_of(writing(*parts, is_open=is_open), tokenizer, chunk_tokens=chunk_tokens)

    completion = await solve(runtime, max_tokens, thinking_tokens=limit)

    parts_of_it = split(completion.text, is_open)
    has_thinking = parts_of_it.num_reasoning_characters + parts_of_it.is_thinking > 0
    if completion.finish_reason is FinishReason.STOP and has_thinking:
        assert completion.content not in ("", LEAD)
    assert sum(len(step.token_ids) for step in completion.steps) <= max_tokens
    assert sum(step.author == CLOSING for step in completion.steps) <= 2
