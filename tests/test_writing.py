"""How an engine's tokens become a step: each call of the engine brings new tokens, or is the last."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt import FinishReason, Limits, Request, Runtime
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.transcript import Transcript
from reasonrt.types import Message, Sampling, TokenDelta
from reasonrt.writing import write_step


class SilentEngine(ScriptedEngine):
    """Ends a generation without an end token, as servers do that give text; `calls` counts generations."""

    calls = 0

    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> Any:
        self.calls += 1
        return SilentStream(super().generate(prompt_token_ids, sampling, cache_salt), self.tokenizer.eos_token_ids)


class SilentStream:
    def __init__(self, stream: Any, ends: frozenset[int]) -> None:
        self._stream, self._ends, self.aclose = stream, ends, stream.aclose

    @property
    def generated_tokens(self) -> int:
        return int(self._stream.generated_tokens)

    passes = generated_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenDelta:
        delta: TokenDelta = await anext(self._stream)
        return replace(delta, token_ids=tuple(id_ for id_ in delta.token_ids if id_ not in self._ends))


@pytest.mark.parametrize(("text", "calls"), [("$$ x\n\n", 2), ("\n\n", 2), ("", 1)])
async def test_end_after_a_blank_line_is_the_end(text: str, calls: int) -> None:
    """No boundary, within a formula or before any text: the engine is stopped there, asked again, and has ended."""
    engine = SilentEngine("silent", continuing(text))
    transcript = Transcript([Message("user", "?")], [engine])

    async with asyncio.timeout(5):
        step, reason = await write_step(engine, transcript, Sampling(50))

    assert (step.text if step else "", reason) == (text if text.strip() else "", FinishReason.STOP)
    assert engine.calls == calls


class FullEngine(ScriptedEngine):
    """Takes less than it says, as a server with a shorter context of its own: then nothing comes, and no error."""

    room = 30

    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> Any:
        left = max(0, self.room - len(prompt_token_ids))
        cut = replace(sampling, max_tokens=min(sampling.max_tokens, max(1, left)))
        stream = super().generate(prompt_token_ids, cut, cache_salt)
        return stream if left else EmptyStream(stream, frozenset())


class EmptyStream(SilentStream):
    async def __anext__(self) -> TokenDelta:
        return replace(await super().__anext__(), token_ids=(), finish_reason=FinishReason.LENGTH)


@pytest.mark.parametrize("policy", ["target", "draft", "rsd"])
@pytest.mark.parametrize("look_ahead", [0, 4])
@pytest.mark.parametrize("reward", [0.0, 1.0])
async def test_engine_that_brings_nothing_is_not_asked_again(policy: str, look_ahead: int, reward: float) -> None:
    runtime = Runtime(
        {
            "draft": FullEngine("draft", continuing("step\n\n" * 20)),
            "target": FullEngine("target", continuing("step\n\n" * 20)),
            "reward": ScriptedEngine("reward", "", scores=lambda text: reward),
        }
    )
    options = {"look_ahead": look_ahead} if policy == "rsd" else {}
    request = Request.ask("?", policy, options=options, limits=Limits(max_engine_calls=60))

    async with asyncio.timeout(10):
        completion = await runtime.complete(request)

    assert completion.finish_reason is FinishReason.LENGTH
    assert sum(usage.calls for usage in completion.usage.values()) < 30


TEXTS = st.lists(st.sampled_from(["\n\n", "\n", "$$", "```", r"\[", "so", r"\boxed{7}", " "]), max_size=8).map("".join)


@given(draft=TEXTS, target=TEXTS, look_ahead=st.sampled_from([0, 4]), reward=st.sampled_from([0.0, 1.0]))
@settings(deadline=None, max_examples=60)
async def test_every_request_ends_wherever_its_models_do(
    draft: str, target: str, look_ahead: int, reward: float
) -> None:
    """Each loop makes progress, or ends: a text of so few steps takes no more than a few calls for each."""
    runtime = Runtime(
        {
            "draft": SilentEngine("draft", continuing(draft)),
            "target": SilentEngine("target", continuing(target)),
            "reward": ScriptedEngine("reward", "", scores=lambda text: reward),
        }
    )
    request = Request.ask("?", "rsd", options={"look_ahead": look_ahead}, limits=Limits(max_engine_calls=60))

    async with asyncio.timeout(10):
        completion = await runtime.complete(request)

    assert completion.finish_reason is FinishReason.STOP
