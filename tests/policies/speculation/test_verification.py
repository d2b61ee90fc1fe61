"""Escalations that verify: what the target keeps, what it corrects, and where it takes over."""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product, takewhile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from reasonrt import Completion, FinishReason, Request, Runtime, Step
from reasonrt.engines.scripted import CharacterTokenizer, Script, ScriptedEngine, continuing
from reasonrt.pace import Pace
from reasonrt.ports import Capability
from reasonrt.thinking import CLOSING
from reasonrt.types import Message, Sampling

GOOD = ["<think>\none\n\n", "two\n\n", "three\n\n", "four\n\n", "</think>\n\n", r"\boxed{7}"]


def make_runtime(draft: str | Callable[[str, Sampling], str], chunk_tokens: int = 4) -> Runtime:
    """Every step is rejected: the reward is 0."""
    script = continuing(draft) if isinstance(draft, str) else draft
    return Runtime(
        {
            "draft": ScriptedEngine("draft", script, chunk_tokens=chunk_tokens),
            "target": ScriptedEngine("target", continuing("".join(GOOD))),
            "reward": ScriptedEngine("reward", "", scores=lambda text: 0.0),
        }
    )


async def solve(runtime: Runtime, **options: Any) -> Completion:
    return await runtime.complete(Request.ask("?", "rsd", options={"verify": True, **options}))


@pytest.mark.parametrize("look_ahead", [0, 1, 4])
@pytest.mark.parametrize("chunk", [1, 3, 100])
async def test_verified_steps_are_the_targets_text_for_a_token_of_its_own(look_ahead: int, chunk: int) -> None:
    """The draft slips once, at a character; corrected there, it goes on as the target would."""

    def draft(prompt: str, sampling: Sampling) -> str:
        own = continuing("".join(GOOD))(prompt, sampling)
        return own.replace("two", "twx").replace("four", "foxr").replace("{7", "{8")

    completion = await solve(make_runtime(draft, chunk), look_ahead=look_ahead)

    assert completion.text == "".join(GOOD)
    by_target = [(step.text, step.is_complete) for step in completion.steps if step.author == "target"]
    assert by_target == [("o", False), ("u", False), ("7", False)]
    assert completion.details["escalations"] == len(GOOD)
    assert completion.details["useless_escalations"] == 3  # the steps without a slip
    assert completion.details["verifications"] == len(GOOD) + 3
    assert completion.usage["target"].generated == completion.details["verifications"]


@pytest.mark.parametrize("options", [{"verify": True}, {"keep_prefix": 0.5}])
async def test_request_that_is_taken_up_within_a_step_asks_no_router_about_its_rest(options: dict[str, Any]) -> None:
    """The step was the target's to correct, or to write, and its rest is so too."""

    def draft(prompt: str, sampling: Sampling) -> str:
        own = continuing("".join(GOOD))(prompt, sampling)
        return own.replace("thr", "txr").replace("ee", "ex").replace("{7", "{8")

    async def run(committed: Sequence[Step]) -> tuple[Completion, int]:
        asked: list[str] = []

        def rejects(text: str) -> float:
            asked.append(text)
            return 0.0

        runtime = make_runtime(draft)
        runtime.engines["reward"] = ScriptedEngine("reward", "", scores=rejects)
        request = Request.ask("?", "rsd", options={"look_ahead": 0, **options}, committed=tuple(committed))
        return await runtime.complete(request), len(asked)

    whole, num_asked = await run(())
    assert num_asked == len(GOOD)
    assert any(not step.is_complete for step in whole.steps)
    for length in range(1, len(whole.steps)):
        committed = whole.steps[:length]
        begun = sum(step.is_complete for step in committed) + (not committed[-1].is_complete)
        rest, num_asked = await run(committed)
        assert rest.text == whole.text
        assert num_asked == len(GOOD) - begun


async def test_steps_with_a_token_of_the_targets_are_not_the_drafts() -> None:
    def draft(prompt: str, sampling: Sampling) -> str:
        return continuing("".join(GOOD))(prompt, sampling).replace("thr", "txr")

    completion = await solve(make_runtime(draft))

    assert completion.details["draft_steps"] == len(GOOD) - 1
    by_draft = [step for step in completion.steps if step.author == "draft"]
    assert completion.details["draft_tokens"] == sum(len(step.token_ids) for step in by_draft)


async def test_draft_that_has_lost_a_step_leaves_it_to_the_target() -> None:
    runtime = make_runtime("".join(["<think>\none\n\n", "zzzzzzz\n\n", *GOOD[2:]]))

    completion = await solve(runtime)

    assert completion.text == "".join(GOOD)
    second = [(step.text, step.author) for step in completion.steps if step.text and step.text in "two\n\n"]
    assert second == [("t", "target"), ("w", "target"), ("o\n\n", "target")]


async def test_target_ends_the_text_where_the_draft_would_go_on() -> None:
    runtime = make_runtime("".join([*GOOD, " and more\n\n", "more"]))

    completion = await solve(runtime)

    assert completion.text == "".join(GOOD)
    assert completion.finish_reason is FinishReason.STOP


async def test_end_behind_a_correction_is_verified() -> None:
    """The draft never closes the box."""
    completion = await solve(make_runtime("".join([*GOOD[:-1], r"\boxed{8"])))

    assert completion.text == "".join(GOOD)


@given(
    draft=st.lists(st.sampled_from([*GOOD, "two", r"\boxed{8", "\n\n", "of its own\n\n"]), max_size=8),
    look_ahead=st.sampled_from([0, 1, 4]),
    chunk=st.sampled_from([1, 3, 100]),
    target=st.sampled_from([GOOD, [*GOOD, "\n\n", "Done."], GOOD[:3]]),
)
@settings(deadline=None)
async def test_text_is_the_targets_own_whatever_the_draft_writes_and_wherever_it_ends(
    draft: list[str], look_ahead: int, chunk: int, target: list[str]
) -> None:
    runtime = make_runtime("".join(draft), chunk)
    runtime.engines["target"] = ScriptedEngine("target", continuing("".join(target)))

    completion = await solve(runtime, look_ahead=look_ahead)

    own = takewhile(lambda step: step.author != CLOSING, completion.steps)  # where it has no answer it is asked for one
    assert "".join(step.text for step in own).rstrip() == "".join(target).rstrip()
    assert (completion.finish_reason is FinishReason.STOP) is (target != GOOD[:3])


async def test_verified_steps_have_their_price() -> None:
    """The first one is free, and so measured; no advantage is worth a million a second."""
    completion = await solve(make_runtime("".join(GOOD)), price=1e6)

    assert completion.details["escalations"] == completion.details["verifications"] == 1


async def test_price_counts_what_the_target_has_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has read of a step and not kept does not stand for what comes instead."""
    asked: list[int] = []
    monkeypatch.setattr(Pace, "seconds", lambda self, new, missing: asked.append(missing))
    runtime = make_runtime("".join(["<think>\none" + "z" * 200 + "\n\n", *GOOD[1:]]))

    completion = await solve(runtime, price=0.0)

    assert len(asked) == len(GOOD)
    assert min(asked) > 0
    assert completion.text == "".join(GOOD)


async def test_what_the_target_cannot_verify_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn tokens without the capability for them, and tokens of another vocabulary."""
    request = Request.ask("?", "rsd", options={"verify": True}, temperature=0.7)
    foreign = make_runtime("".join(GOOD))
    foreign.engines["draft"].tokenizer.fingerprint = "others"  # type: ignore[misc]

    drawn = await make_runtime("".join(GOOD)).complete(request)
    assert drawn.details["not_verified"] == ""
    monkeypatch.setattr(ScriptedEngine, "capabilities", frozenset(Capability) - {Capability.VERIFY_SAMPLED})
    refused = [await make_runtime("".join(GOOD)).complete(request), await solve(foreign)]

    assert drawn.details["verifications"] == len(GOOD)
    assert all(completion.details["verifications"] == 0 for completion in refused)
    assert [completion.details["not_verified"] for completion in refused] == [
        "engine 'target' verifies at temperature 0 alone",
        "engines 'draft' and 'target' have different vocabularies",
    ]
    assert all(completion.text == "".join(GOOD) for completion in refused)


async def test_models_of_one_vocabulary_verify_whatever_their_chat_templates_are() -> None:
    """The draft's ids go to the target as they are."""

    class Own(CharacterTokenizer):
        vocabulary_fingerprint = "characters"

        def __init__(self, begin: str) -> None:
            self.fingerprint, self._begin = begin, begin

        def chat(self, messages: Sequence[Message]) -> list[int]:
            return self.encode(self._begin) + super().chat(messages)

        def encode_text(self, text: str) -> list[int]:
            raise AssertionError("its ids are known")

    runtime = make_runtime("".join(GOOD))
    for role, begin in (("draft", "<a>"), ("target", "<b>")):
        engine = runtime.engines[role]
        assert isinstance(engine, ScriptedEngine)
        engine.tokenizer = Own(begin)

    completion = await runtime.complete(Request.ask("?", "random", options={"verify": True, "threshold": 0.0}))

    assert completion.text == "".join(GOOD)
    assert completion.details["verifications"] == len(GOOD)
    assert completion.details["not_verified"] == ""


# at temperatures above 0: two steps of two letters, each an a with a probability that depends on the letter before

TARGET, DRAFT = {"": 0.5, "a": 0.3, "b": 0.8}, {"": 0.3, "a": 0.6, "b": 0.5}
NUM_DRAWN = 1200


def drawing(chances: Mapping[str, float]) -> Script:
    """A model of these texts; its random numbers are those of seed and place, as the port says of `verify`."""

    def script(prompt: str, sampling: Sampling) -> str:
        text = begun = prompt.rpartition("[assistant] ")[2]
        while True:
            letters = text.replace("\n\n", "")
            if letters and len(letters) % 2 == 0 and not text.endswith("\n\n"):
                text += "\n\n"
            if len(letters) == 4:
                return text[len(begun) :]
            luck = random.Random(f"{sampling.seed} {len(text)}").random()
            text += "a" if luck < chances[letters[-1:]] else "b"

    return script


def chance(letters: str) -> float:
    """The target's, of a text that begins so."""
    each = (TARGET[before] for before in ("", *letters[:-1]))
    return math.prod(p if letter == "a" else 1 - p for p, letter in zip(each, letters, strict=True))


async def draw_texts(reward: Callable[[str], float], *, verify: bool) -> list[Completion]:
    draft, target = ScriptedEngine("draft", drawing(DRAFT)), ScriptedEngine("target", drawing(TARGET))
    runtime = Runtime({"draft": draft, "target": target, "reward": ScriptedEngine("reward", "", scores=reward)})
    options = {"verify": verify, "threshold": 0.7}
    requests = [Request.ask("?", "rsd", options=options, temperature=1.0, seed=seed) for seed in range(NUM_DRAWN)]
    return [await runtime.complete(request) for request in requests]


def p_value(written: Sequence[str]) -> float:
    """Of beginnings of equal length, as draws of the target's."""
    expected = {"".join(letters): chance("".join(letters)) for letters in product("ab", repeat=len(written[0]))}
    counts = Counter(written)
    return float(chisquare([counts[text] for text in expected], [len(written) * p for p in expected.values()]).pvalue)


def letters_of(completion: Completion) -> str:
    return completion.text.replace("\n\n", "")


async def test_text_of_which_each_step_was_verified_is_drawn_as_the_target_draws_it() -> None:
    completions = await draw_texts(lambda text: 0.0, verify=True)

    assert p_value([letters_of(completion) for completion in completions]) > 1e-3
    assert p_value([drawing(DRAFT)("", Sampling(9, seed=i)).replace("\n\n", "") for i in range(NUM_DRAWN)]) < 1e-9
    assert sum(completion.details["draft_steps"] for completion in completions) > NUM_DRAWN / 4


@pytest.mark.parametrize("verify", [True, False])
async def test_step_that_a_router_has_rejected_is_drawn_as_the_target_draws_it(verify: bool) -> None:
    """The router reads the text: it keeps what begins with an a. What it keeps is the draft's, and not asked about."""
    completions = await draw_texts(lambda text: float(text.rpartition("] ")[2][:1] == "a"), verify=verify)

    rejected = [each for each in completions if each.steps[0].scores["advantage"] > 0.5]
    assert NUM_DRAWN / 2 < len(rejected) < NUM_DRAWN
    assert p_value([letters_of(completion)[:2] for completion in rejected]) > 1e-3
    assert all(letters_of(completion)[0] == "a" for completion in completions if completion not in rejected)


class ByteTokenizer(CharacterTokenizer):
    """One token per byte: some characters have several. What is no character is written as Python escapes it."""

    def encode(self, text: str) -> list[int]:
        return [byte + 2 for byte in text.encode(errors="surrogateescape")]

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_id - 2 for token_id in token_ids if token_id >= 2).decode(errors="replace")


@pytest.mark.parametrize("draft", ["xa", "xé"])
async def test_token_within_a_character_is_not_drawn_again(draft: str) -> None:
    """After an x, the target writes one of three letters, of which two begin with the same byte."""
    chances = {"a": 0.3, "é": 0.4, "è": 0.3}

    def write(prompt: str, sampling: Sampling) -> str:
        if prompt.endswith(tuple(chances)):
            return ""
        is_begun = prompt.endswith("\ufffd")
        letters = {letter: p for letter, p in chances.items() if letter != "a" or not is_begun}
        (letter,) = random.Random(sampling.seed).choices(list(letters), list(letters.values()))
        return letter.encode()[1:].decode(errors="surrogateescape") if is_begun else "x" + letter

    engines = [ScriptedEngine("draft", draft), ScriptedEngine("target", write)]
    for engine in engines:
        engine.tokenizer = ByteTokenizer()
    runtime = Runtime({"draft": engines[0], "target": engines[1], "reward": ScriptedEngine("reward", "")})

    request = Request.ask("?", "rsd", options={"verify": True}, temperature=1.0)
    completions = [await runtime.complete(replace(request, seed=seed)) for seed in range(500)]
    counts = Counter(completion.text.removeprefix("x") for completion in completions)

    assert counts.keys() == chances.keys()
    assert all((each.steps[0].text[0], each.steps[0].author) == ("x", "draft") for each in completions)
    # what both have drawn of a character is the target's, which has generated one token for all of it
    assert all(usage.discarded >= 0 for each in completions for usage in each.usage.values())
    assert chisquare([counts[letter] for letter in chances], [500 * p for p in chances.values()]).pvalue > 1e-3
