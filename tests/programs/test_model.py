"""A model as runs ask it: choices are read and never parsed, and nothing that is too long is even tokenized."""

import asyncio
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine
from reasonrt.ports import Allowance, Capability, Reading
from reasonrt.programs.budget import Budget, Spent
from reasonrt.programs.model import EngineModel, PromptTooLong
from reasonrt.scopes import LimitReached
from reasonrt.types import FinishReason, Message, Sampling

ASKED = (Message("user", "Which?"),)
ENDLESS = Allowance(None, 10**6, None, 1)


class Spelling(ScriptedEngine):
    """Its next token depends on all that was read before, and only a few characters are likely at all."""

    def __init__(self, text: Any = "It is so.", **settings: Any) -> None:
        super().__init__("target", text, **settings)
        self.num_reads = 0
        self.reads: list[tuple[int, ...]] = []

    def probability(self, prompt_token_ids: Sequence[int], token_id: int) -> float:
        """Of one token of 40; all of them together have 1."""
        weights = [1 + (sum(prompt_token_ids) * 31 + each * 17) % 23 for each in range(40)]
        return weights[token_id % 40] / sum(weights) / 10

    async def read(
        self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = ""
    ) -> Reading:
        self.num_reads += 1
        self.reads.append(tuple(candidate_ids))
        assert len(set(candidate_ids)) == len(candidate_ids) > 1, "a read that can tell nothing apart"
        return Reading(tuple(math.log(self.probability(prompt_token_ids, each)) for each in candidate_ids))


def model_of(engine: Any, allowance: Allowance = ENDLESS, places: int = 8) -> EngineModel:
    return EngineModel(engine, Budget(lambda: allowance), asyncio.Semaphore(places))


def by_brute_force(engine: Spelling, choices: Sequence[str], prompt: Sequence[int]) -> list[float]:
    """The probability of each choice, token by token up to its end, given that it is one of them.

    Beside the choices nothing may be written: at each token the other continuations of choices are what there is.
    """
    spelled = [(*engine.tokenizer.encode(choice), 0) for choice in choices]
    masses = []
    for ids in spelled:
        mass = 1.0
        for at, token_id in enumerate(ids):
            going = {other[at] for other in spelled if other[:at] == ids[:at]}
            if len(going) > 1:
                mass *= engine.probability([*prompt, *ids[:at]], token_id)
            if sum(other[: at + 1] == ids[: at + 1] for other in spelled) == 1:
                break  # what follows says nothing about which one it is
        masses.append(mass)
    return [mass / sum(masses) for mass in masses]


@pytest.mark.parametrize(
    "choices",
    [
        ("yes", "no"),
        ("a", "ab", "abc"),  # each begins the next one
        ("abc", "ab", "a"),
        ("New York", "New Jersey", "Newark", "York"),
        ("same beginning one", "same beginning two"),
        ("only",),
        ("x", "\n\n", "é", "\U0001f600"),
        tuple("0123456789"),
    ],
)
async def test_choices_have_the_probabilities_of_a_brute_force(choices: tuple[str, ...]) -> None:
    engine = Spelling()

    found = await model_of(engine).choose(ASKED, choices)

    assert sum(found) == pytest.approx(1)
    assert found == pytest.approx(by_brute_force(engine, choices, engine.tokenizer.chat(ASKED)))
    assert engine.num_reads < len(choices)  # none for one choice, one where all begin differently
    if len({choice[0] for choice in choices}) == len(choices) > 1:
        assert engine.num_reads == 1


@settings(deadline=None)
@given(st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=8, unique=True))
async def test_any_choices_have_the_probabilities_of_a_brute_force(choices: list[str]) -> None:
    engine = Spelling()

    found = await model_of(engine).choose(ASKED, choices)

    assert sum(found) == pytest.approx(1)
    assert found == pytest.approx(by_brute_force(engine, choices, engine.tokenizer.chat(ASKED)))
    for choice, other in itertools.combinations(range(len(choices)), 2):
        again = await model_of(engine).choose(ASKED, [choices[choice], choices[other]])
        assert sum(again) == pytest.approx(1)


async def test_choices_of_widely_different_likelihood_are_still_numbers() -> None:
    class Certain(Spelling):
        def probability(self, prompt_token_ids: Sequence[int], token_id: int) -> float:
            return 1.0 if token_id == ord("y") + 2 else 1e-300

    assert await model_of(Certain()).choose(ASKED, ("yes", "no")) == pytest.approx((1.0, 0.0))


async def test_engine_that_cannot_be_read_chooses_nothing() -> None:
    class Blind(Spelling):
        capabilities = frozenset({Capability.LOGPROBS})

    assert await model_of(Blind()).choose(ASKED, ("yes", "no")) == ()


async def test_where_the_template_opens_thinking_a_choice_is_read_after_it(
    opening_tokenizer: CharacterTokenizer,
) -> None:
    engine = Spelling()
    engine.tokenizer = opening_tokenizer
    prompt = [*opening_tokenizer.chat(ASKED), *opening_tokenizer.encode("\n</think>\n\n")]

    found = await model_of(engine).choose(ASKED, ("yes", "no"))

    assert found == pytest.approx(by_brute_force(engine, ("yes", "no"), prompt))


@pytest.mark.parametrize("is_opened", [True, False])
async def test_thinking_is_left_out_of_the_text_and_counted(
    is_opened: bool, opening_tokenizer: CharacterTokenizer
) -> None:
    said = "I look.\n\nThen I know: ```repl\nfinal(1)\n```\n</think>\n\nIt is blue."
    engine = Spelling(said if is_opened else f"<think>\n{said}")
    if is_opened:
        engine.tokenizer = opening_tokenizer
    seen: list[str] = []

    def never(text: str) -> bool:
        seen.append(text)
        return False

    written = await model_of(engine).write(ASKED, max_tokens=500, until=never)

    assert written.text.strip() == "It is blue."
    assert written.num_tokens == engine.generated_tokens
    assert written.is_whole
    assert not any("final" in text for text in seen)  # what is only thought is never code


async def test_thinking_that_a_limit_cuts_off_leaves_no_text(opening_tokenizer: CharacterTokenizer) -> None:
    engine = Spelling("I think and think.")
    engine.tokenizer = opening_tokenizer

    written = await model_of(engine).write(ASKED, max_tokens=8)

    assert (written.text, written.is_whole, written.num_tokens) == ("", False, 8)


async def test_beginning_is_part_of_the_text_and_not_written_again(opening_tokenizer: CharacterTokenizer) -> None:
    engine = Spelling(lambda prompt, sampling: prompt[-3:] + " continued")

    assert (await model_of(engine).write(ASKED, max_tokens=50, beginning="abc")).text == "abcabc continued"
    engine.tokenizer = opening_tokenizer  # begins with its thinking, and not with our words
    assert "abc" not in (await model_of(engine).write(ASKED, max_tokens=50, beginning="abc")).text


async def test_a_generation_is_stopped_at_the_end_of_the_line_where_it_is_told_to() -> None:
    engine = Spelling("one\ntwo\nthree", chunk_tokens=1)
    asked = []

    def is_enough(text: str) -> bool:
        asked.append(text)
        return "tw" in text

    written = await model_of(engine).write(ASKED, max_tokens=50, until=is_enough)

    assert (written.text, written.is_whole, written.num_tokens) == ("one\ntwo\n", True, 8)
    assert asked == ["one\n", "one\ntwo\n"]  # not at each token
    assert engine.running == 0


async def test_what_leaves_no_room_for_the_generation_is_refused() -> None:
    engine = Spelling(max_model_len=200)
    model = model_of(engine)
    length = len(engine.tokenizer.chat(ASKED))
    taken = []

    for room in range(1, 200 - length + 20):
        try:
            await model.write(ASKED, max_tokens=room)
        except PromptTooLong:
            break
        taken.append(room)

    assert taken
    assert length + taken[-1] <= 200
    for room in (taken[-1] + 2, 200, 10**6):
        with pytest.raises(PromptTooLong):
            await model.write(ASKED, max_tokens=room)


async def test_what_is_far_too_long_is_not_even_tokenized() -> None:
    class Counting(CharacterTokenizer):
        num_chats = 0

        def chat(self, messages: Sequence[Message]) -> list[int]:
            self.num_chats += 1
            return super().chat(messages)

    engine = Spelling(max_model_len=1000)
    tokenizer = engine.tokenizer = Counting()
    huge = (Message("user", "x" * 50_000_000),)
    model = model_of(engine)

    with pytest.raises(PromptTooLong, match="50,000,000 characters; the model takes 900 tokens: send less"):
        await model.write(huge, max_tokens=100)
    with pytest.raises(PromptTooLong):
        await model.choose(huge, ("yes", "no"))
    with pytest.raises(PromptTooLong):
        await model.write(ASKED, max_tokens=2000)  # nor what leaves no room at all

    assert tokenizer.num_chats == 0


async def test_limits_of_the_request_and_of_the_run_are_one() -> None:
    model = model_of(Spelling("long " * 100), Allowance(None, 5, 17, 1))

    written = await model.write(ASKED, max_tokens=100)
    assert (written.num_tokens, written.is_whole) == (17, False)
    for empty in (Allowance(None, 0, None, 1), Allowance(None, 5, 0, 1)):
        with pytest.raises(Spent):
            await model_of(Spelling(), empty).write(ASKED, max_tokens=100)
        with pytest.raises(Spent):
            await model_of(Spelling(), empty).choose(ASKED, ("yes", "no"))

    class Ended(Spelling):
        def reply(self, prompt: Sequence[int], sampling: Sampling) -> str:
            raise LimitReached(FinishReason.CALLS)

    with pytest.raises(Spent) as raised:
        await model_of(Ended()).write(ASKED, max_tokens=100)
    assert raised.value.reason is FinishReason.CALLS


async def test_no_more_run_concurrently_than_there_are_places() -> None:
    engine = Spelling("word " * 20, seconds_per_token=0.0002)
    model = model_of(engine, places=3)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, engine.running)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(model.write(ASKED, max_tokens=200) for _ in range(10)))
    watching.cancel()
    assert most == 3
