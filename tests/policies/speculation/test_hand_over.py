"""Gated hand-over: one draft, judged step by step, and a target that writes from the first doubt to the end."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt import Completion, FinishReason, Limits, Request, Runtime, Step
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine, continuing
from reasonrt.errors import RequestError
from reasonrt.policies.registry import build_policy
from reasonrt.types import Sampling

GOOD = ["<think>\none\n\n", "two\n\n", "three\n\n", "four\n\n", "</think>\n\n", r"\boxed{7}"]
OTHER = ["<think>\nuno\n\n", "dos\n\n", "3hree?\n\n", "vier\n\n", "</think>\n\n", r"\boxed{8}"]
"""As good, in other words, up to the third step."""


def doubts_the_third(text: str) -> float:
    last = text.rstrip("\n").rpartition("\n\n")[2]
    return 0.0 if "3hree" in last else 1.0


class Words(CharacterTokenizer):
    """Another vocabulary, by what it says of itself."""

    fingerprint = "other characters"


def make_runtime(
    draft: list[str] = OTHER, scores: Callable[[str], float] = doubts_the_third, **settings: Any
) -> Runtime:
    return Runtime(
        {
            "draft": ScriptedEngine("draft", continuing("".join(draft)), **settings),
            "target": ScriptedEngine("target", continuing("".join(GOOD)), **settings),
            "reward": ScriptedEngine("reward", "", scores=scores),
        }
    )


def ask(
    limits: Limits | None = None, committed: tuple[Step, ...] = (), temperature: float = 0.0, **options: Any
) -> Request:
    options = {"hand_over": True} | options
    return Request.ask(
        "?", "rsd", options=options, limits=limits or Limits(), committed=committed, temperature=temperature, seed=1
    )


def engine(runtime: Runtime, role: str) -> ScriptedEngine:
    found = runtime.engines[role]
    assert isinstance(found, ScriptedEngine)
    return found


def authors(completion: Completion) -> list[str]:
    return [step.author for step in completion.steps]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("look_ahead", [0, 4])
async def test_target_writes_from_the_first_doubt_to_the_end(look_ahead: int, chunk: int, temperature: float) -> None:
    runtime = make_runtime(chunk_tokens=chunk)

    completion = await runtime.complete(ask(look_ahead=look_ahead, temperature=temperature, verify=True))

    assert [step.text for step in completion.steps] == [*OTHER[:2], *GOOD[2:]]
    assert authors(completion) == ["draft"] * 2 + ["target"] * 4
    assert completion.finish_reason is FinishReason.STOP
    details = completion.details
    assert (details["handed_over"], details["escalations"], details["steps"]) == (True, 1, 6)
    assert (details["draft_steps"], details["verifications"], details["fallback"]) == (2, 0, "")
    assert not completion.warnings
    # one generation of either, and what the draft wrote after the doubt is counted
    draft, target = completion.usage["draft"], completion.usage["target"]
    assert target.calls == 1
    assert draft.calls == (1 if look_ahead else 3)
    assert draft.generated == engine(runtime, "draft").generated_tokens
    assert draft.discarded == draft.generated - sum(len(step.token_ids) for step in completion.steps[:2]) > 0
    assert target.discarded == 0


async def test_where_nothing_is_doubted_the_target_never_reads_the_problem() -> None:
    runtime = make_runtime(scores=lambda text: 1.0)

    completion = await runtime.complete(ask())

    assert [step.text for step in completion.steps] == OTHER
    assert completion.usage["target"].calls == engine(runtime, "target").generated_tokens == 0
    assert not completion.details["handed_over"]


async def test_other_vocabularies_hand_over_as_well() -> None:
    runtime = make_runtime()
    engine(runtime, "draft").tokenizer = Words()

    completion = await runtime.complete(ask(verify=True))

    assert completion.text == "".join([*OTHER[:2], *GOOD[2:]])
    assert not completion.warnings


async def test_another_engine_of_the_target_may_write() -> None:
    runtime = make_runtime()
    runtime.engines["ahead"] = ScriptedEngine("ahead", continuing("".join(GOOD)))
    runtime = Runtime(runtime.engines)

    completion = await runtime.complete(ask(target="ahead"))

    assert authors(completion) == ["draft"] * 2 + ["ahead"] * 4
    assert "target" not in completion.usage


async def test_steps_are_streamed_as_they_pass_and_never_before() -> None:
    """The draft is far ahead of the router; what it has written is nobody's yet."""
    runtime = make_runtime(chunk_tokens=100)
    judged: list[str] = []

    def note(text: str) -> float:
        judged.append(text)
        return doubts_the_third(text)

    engine(runtime, "reward").scores = note
    seen: list[tuple[str, int]] = []
    async for event in runtime.solve(ask()):
        if isinstance(event, Step):
            seen.append((event.text, len(judged)))

    assert "".join(text for text, _ in seen) == "".join([*OTHER[:2], *GOOD[2:]])
    assert [count for _, count in seen] == [1, 2, 3, 3, 3, 3]  # each after its own verdict, and none of the target's


@pytest.mark.parametrize("num_committed", range(6))
async def test_a_resumed_request_writes_the_same_text(num_committed: int) -> None:
    whole = await make_runtime().complete(ask())
    runtime = make_runtime()

    resumed = await runtime.complete(ask(committed=whole.steps[:num_committed]))

    assert resumed.text == whole.text
    assert authors(resumed) == authors(whole)
    if num_committed > 2:  # it was handed over before: nobody asks the draft again
        assert resumed.usage["draft"].calls == 0


async def test_a_step_whose_sure_part_is_committed_is_the_targets_after_a_resume() -> None:
    ids, doubted = tuple(CharacterTokenizer().encode("th")), {"advantage": 1.0}
    begun = Step("th", ids, "draft", is_complete=False, scores=doubted)
    whole = await make_runtime().complete(ask())

    resumed = await make_runtime().complete(ask(committed=(*whole.steps[:2], begun)))

    assert resumed.text == whole.text
    assert authors(resumed)[2:] == ["draft"] + ["target"] * 4


async def test_the_sure_part_of_the_first_doubt_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    unsure = CharacterTokenizer().encode("?")
    monkeypatch.setattr(ScriptedEngine, "logprob", staticmethod(lambda token_id: -5.0 if token_id in unsure else -0.01))
    runtime = make_runtime(
        draft=[*OTHER[:2], "thr?3\n\n", *OTHER[3:]], scores=lambda text: float(not text.rstrip().endswith("?3"))
    )

    completion = await runtime.complete(ask(keep_prefix=0.9))

    kept, rest = completion.steps[2:4]
    assert (kept.text, kept.author, kept.is_complete) == ("thr", "draft", False)
    assert (rest.text, rest.author) == ("ee\n\n", "target")
    assert completion.text == "".join([*OTHER[:2], *GOOD[2:]])


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(max_tokens=12), FinishReason.LENGTH),
        (Limits(max_tokens=22), FinishReason.LENGTH),
        (Limits(max_generated_tokens=20), FinishReason.BUDGET),
        (Limits(max_engine_calls=3), FinishReason.CALLS),
    ],
)
async def test_limits_hold_before_and_after_the_hand_over(limits: Limits, reason: FinishReason) -> None:
    completion = await make_runtime(chunk_tokens=1).complete(ask(limits))

    assert completion.finish_reason is reason
    assert "".join([*OTHER[:2], *GOOD[2:]]).startswith(completion.text)
    assert "handed_over" in completion.details


async def test_draft_that_dies_leaves_the_rest_to_the_target() -> None:
    runtime = make_runtime(chunk_tokens=1, seconds_per_token=0.001)
    steps: list[Any] = []
    async for event in runtime.solve(ask()):
        steps.append(event)
        if len(steps) == 1:
            engine(runtime, "draft").kill()

    completion = steps[-1]
    assert completion.text == OTHER[0] + "".join(GOOD[1:])
    assert "died" in completion.details["fallback"]
    assert not completion.details["handed_over"]


async def test_draft_that_ends_without_an_answer_is_a_doubt() -> None:
    completion = await make_runtime(draft=OTHER[:2]).complete(ask())

    assert completion.text == "".join([*OTHER[:2], *GOOD[2:]])
    assert completion.details["handed_over"]


@pytest.mark.parametrize("num_events", [1, 3])
async def test_leaving_stops_both(num_events: int) -> None:
    runtime = make_runtime(chunk_tokens=1, seconds_per_token=0.001)
    async with aclosing(runtime.solve(ask())) as events:
        for _ in range(num_events):
            await anext(events)

    counts = [engine(runtime, role).generated_tokens for role in ("draft", "target")]
    await asyncio.sleep(0.03)

    assert [engine(runtime, role).generated_tokens for role in ("draft", "target")] == counts
    assert all(engine(runtime, role).running == 0 for role in ("draft", "target"))


@given(rewards=st.lists(st.floats(0, 1), min_size=1, max_size=8), threshold=st.floats(0, 1), chunk=st.integers(1, 20))
@settings(deadline=None, max_examples=50)
async def test_no_step_of_the_drafts_follows_one_of_the_targets(
    rewards: list[float], threshold: float, chunk: int
) -> None:
    runtime = make_runtime(chunk_tokens=chunk, scores=lambda text: rewards[len(text) % len(rewards)])

    completion = await runtime.complete(ask(threshold=threshold))

    assert authors(completion) == sorted(authors(completion))
    assert completion.details["handed_over"] == ("target" in authors(completion))
    for role in ("draft", "target"):
        committed = sum(len(step.token_ids) for step in completion.steps if step.author == role)
        assert completion.usage[role].generated - completion.usage[role].discarded == committed
        assert engine(runtime, role).running == 0


async def test_a_request_may_lose_so_much_by_all_its_steps_together() -> None:
    """Each step is expected to lose 0.2, and half of what is left is the bar for an answer."""
    runtime = make_runtime(scores=lambda text: 0.8)

    completions = [
        await runtime.complete(ask(max_loss=loss, hand_over=True, answer_threshold=0.0))
        for loss in (0.1, 0.3, 0.45, 1.0)
    ]

    assert [authors(each).count("draft") for each in completions] == [0, 1, 2, 5]
    assert [each.details["expected_loss"] for each in completions] == pytest.approx([0.0, 0.2, 0.4, 1.0])


async def test_what_was_lost_before_a_failure_is_lost_after_it() -> None:
    runtime = make_runtime(scores=lambda text: 0.8)
    first = await runtime.complete(ask(max_loss=0.45))
    begun = tuple(replace(step) for step in first.steps[:1])

    resumed = await make_runtime(scores=lambda text: 0.8).complete(ask(max_loss=0.45, committed=begun))

    assert authors(resumed) == authors(first)


async def test_the_seed_of_the_target_is_its_own_after_a_hand_over() -> None:
    seeds: list[int | None] = []

    def script(prompt: str, sampling: Sampling) -> str:
        seeds.append(sampling.seed)
        return continuing("".join(GOOD))(prompt, sampling)

    runtime = make_runtime()
    for role in ("draft", "target"):
        engine(runtime, role).script = script if role == "target" else engine(runtime, role).script

    await runtime.complete(ask(temperature=0.7))

    assert seeds
    assert 1 not in seeds


@pytest.mark.parametrize("hand_over", [True, False])
async def test_what_may_be_lost_is_lost_by_no_part_of_a_step_that_would_lose_more(
    hand_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft is sure of all of the third step but its end, and the target has read none of it."""
    monkeypatch.setattr(ScriptedEngine, "logprob", staticmethod(lambda token_id: -0.01 if token_id > 1 else -5.0))

    options: dict[str, Any] = {"hand_over": hand_over, "keep_prefix": 0.9}

    kept = await make_runtime().complete(ask(**options))
    read = await make_runtime().complete(ask(max_loss=0.1, **options))

    assert (kept.steps[2].text, kept.steps[2].author) == ("3hree?", "draft")
    assert (read.steps[2].text, read.steps[2].author) == (GOOD[2], "target")
    assert "3hree?" not in read.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hand_over": True, "max_target_share": 0.5}, "keeps no max_target_share; leave it out, or hand_over"),
        ({"max_loss": 0.1, "max_target_share": 0.5}, "keeps no max_loss; leave it out, or max_target_share"),
        ({"max_loss": 0.1, "price": 1.0}, "max_loss and price both .*; leave one of them out"),
    ],
)
def test_what_cannot_be_kept_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build_policy("arbitrage", options)
