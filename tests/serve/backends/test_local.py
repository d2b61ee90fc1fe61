"""What a single process takes on: a prompt that the policy has room for."""

from collections.abc import Sequence
from contextlib import aclosing

import pytest

from reasonrt import Completion, FinishReason, Request, Runtime
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine, continuing
from reasonrt.serve.backends.local import Worker
from reasonrt.serve.wire.errors import ApiError
from reasonrt.types import Message

TEXT = "So it is.\n\n\\boxed{7}"


async def answer(policy: str, *, draft: int, target: int, of_target: CharacterTokenizer | None = None) -> Completion:
    """By engines with so much context; the prompt has 40 tokens."""
    engines = {
        "draft": ScriptedEngine("draft", continuing(TEXT), max_model_len=draft),
        "target": ScriptedEngine("target", continuing(TEXT), max_model_len=target),
        "reward": ScriptedEngine("reward", "", scores=lambda text: 1.0),
    }
    engines["target"].tokenizer = of_target or engines["target"].tokenizer
    runtime = Runtime(engines)
    async with (
        Worker(runtime) as worker,
        aclosing(worker.solve(runtime.prepare(Request.ask("q" * 17, policy)))) as events,
    ):
        *_, completion = [event async for event in events]
    assert isinstance(completion, Completion)
    return completion


async def test_prompt_without_room_in_the_draft_is_the_targets() -> None:
    completion = await answer("rsd", draft=30, target=1000)

    assert completion.text == TEXT
    assert {step.author for step in completion.steps} == {"target"}
    assert "takes at most 29" in completion.details["fallback"]


class HalvedTokenizer(CharacterTokenizer):
    """Two characters are a token."""

    fingerprint = "pairs of characters"

    def chat(self, messages: Sequence[Message]) -> list[int]:
        return super().chat(messages)[::2]


async def test_a_prompt_has_as_many_tokens_as_for_the_engine_that_must_hold_it() -> None:
    """Those of the draft may be more than the target takes."""
    completion = await answer("rsd", draft=30, target=30, of_target=HalvedTokenizer())

    assert completion.finish_reason in {FinishReason.LENGTH, FinishReason.STOP}
    assert {step.author for step in completion.steps} == {"target"}


@pytest.mark.parametrize(("policy", "draft"), [("rsd", 1000), ("target", 1000), ("draft", 30)])
async def test_prompt_without_room_where_it_must_fit_is_refused(policy: str, draft: int) -> None:
    with pytest.raises(ApiError, match="tokens"):
        await answer(policy, draft=draft, target=30)
