"""Tokens come in deltas of any sizes; what is committed is the same."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt import Completion, FinishReason, Limits, Request, Runtime, Step
from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.transcript import Transcript
from reasonrt.types import Message, Sampling
from reasonrt.writing import write_step, write_steps

PARTS = ["So", " 1.", "\n", "\n\n", " ", "$$", "```\n", r"\[", r"\]", "é", "2 + 3", "\r\n", r"\boxed{5}", "</think>"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=30).map("".join)
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=8)


class Uneven(ScriptedEngine):
    """Gives deltas of `sizes`, again and again."""

    def __init__(self, name: str, script: Any, sizes: list[int], **settings: Any) -> None:
        self._sizes: Iterator[int] = cycle(sizes)
        super().__init__(name, script, **settings)

    @property
    def chunk_tokens(self) -> int:
        return next(self._sizes)

    @chunk_tokens.setter
    def chunk_tokens(self, value: int) -> None:
        pass


def target(text: str, sizes: list[int]) -> ScriptedEngine:
    return Uneven("target", continuing(text), sizes)


@given(text=TEXTS, sizes=SIZES, logprobs=st.booleans(), highest=st.integers(0, 3), max_tokens=st.integers(1, 120))
@settings(deadline=None)
async def test_steps_are_the_same(text: str, sizes: list[int], logprobs: bool, highest: int, max_tokens: int) -> None:
    sampling = Sampling(max_tokens, logprobs=logprobs, top_logprobs=highest)

    async def written(sizes: list[int]) -> list[Step | FinishReason]:
        engine = target(text, sizes)
        return [event async for event in write_steps(engine, Transcript([Message("user", "?")], [engine]), sampling)]

    assert await written(sizes) == await written([1])


@given(text=TEXTS, sizes=SIZES, max_tokens=st.integers(1, 120))
@settings(deadline=None)
async def test_one_step_is_the_same(text: str, sizes: list[int], max_tokens: int) -> None:
    sampling = Sampling(max_tokens, logprobs=True)

    async def written(sizes: list[int]) -> tuple[Step | None, FinishReason | None]:
        engine = target(text, sizes)
        return await write_step(engine, Transcript([Message("user", "?")], [engine]), sampling)

    assert await written(sizes) == await written([1])


@given(draft=TEXTS, text=TEXTS, sizes=SIZES, policy=st.sampled_from(["target", "rsd", "self_consistency"]))
@settings(deadline=None, max_examples=60)
async def test_events_are_the_same(draft: str, text: str, sizes: list[int], policy: str) -> None:
    async def events(sizes: list[int]) -> list[Any]:
        engines = {
            "draft": Uneven("draft", continuing(draft), sizes),
            "target": target(text, sizes),
            "reward": ScriptedEngine("reward", "", scores=lambda text: float(len(text) % 2)),
        }
        request = Request.ask("?", policy, options={"look_ahead": 0} if policy == "rsd" else {}, limits=Limits(300))
        return [_timeless(event) async for event in Runtime(engines).solve(request)]

    assert await events(sizes) == await events([1])


def _timeless(event: Step | Completion) -> Step | Completion:
    if isinstance(event, Step):
        return event
    details = {name: value for name, value in event.details.items() if not name.endswith("_s")}
    return replace(event, seconds=0.0, usage={}, details=details)
