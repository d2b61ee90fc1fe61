"""Escalations that verify: what the target keeps, what it corrects, and where it takes over."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt import Completion, FinishReason, Request, Runtime
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.pace import Pace
from reasonrt.types import Sampling

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

    assert completion.text.rstrip() == "".join(target).rstrip()
    assert completion.finish_reason is FinishReason.STOP


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


async def test_sampled_requests_and_foreign_tokenizers_are_not_verified() -> None:
    sampled = make_runtime("".join(GOOD))
    request = Request.ask("?", "rsd", options={"verify": True}, temperature=0.7)
    foreign = make_runtime("".join(GOOD))
    foreign.engines["draft"].tokenizer.fingerprint = "others"  # type: ignore[misc]

    completions = [await sampled.complete(request), await solve(foreign)]

    assert all(completion.details["verifications"] == 0 for completion in completions)
    assert all(completion.text == "".join(GOOD) for completion in completions)
