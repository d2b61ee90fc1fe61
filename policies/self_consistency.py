"""`self_consistency`: several samples, the answer of the majority (Wang et al. 2023, arXiv 2203.11171, section 2).

Samples run side by side; sampling ends as soon as no outcome of the samples that still run could change which
answer leads. Nothing is committed before: a limit that ends the request earlier leaves it without text.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar

from reasonrt.answers import find_answer, normal_form
from reasonrt.errors import RequestError
from reasonrt.policies.options import PolicyOptions
from reasonrt.ports import Engine
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Step, Stop
from reasonrt.writing import sampling_for, write_steps


@dataclass
class _Sample:
    index: int
    steps: list[Step]
    reason: FinishReason

    def __post_init__(self) -> None:
        found = find_answer("".join(step.text for step in self.steps))
        is_answer = found is not None and self.reason is FinishReason.STOP
        self.answer = normal_form(found) if found is not None and is_answer else None  # None counts for nothing


@dataclass
class SelfConsistency(PolicyOptions):
    """Options: `k` samples (1-64) at `temperature` (0-2), from the engine in the role `engine`."""

    commits_as_it_goes: ClassVar[bool] = False

    k: int = 5
    temperature: float = 0.7
    engine: str = "target"

    def __post_init__(self) -> None:
        if type(self.k) is not int or not 1 <= self.k <= 64:
            raise RequestError(f"self_consistency: k must be a whole number in [1, 64], got {self.k!r}")
        if type(self.temperature) not in (int, float) or not 0 <= self.temperature <= 2:
            raise RequestError(f"self_consistency: temperature must be a number in [0, 2], got {self.temperature!r}")
        if self.engine not in ("target", "draft"):
            raise RequestError(f"self_consistency: engine must be target or draft, got {self.engine!r}")
        self.engines = (self.engine,)

    async def solve(self, request: Request, engines: Mapping[str, Engine]) -> AsyncGenerator[PolicyEvent, None]:
        done = await self._draw(request, engines[self.engine])
        votes = Counter(sample.answer for sample in done if sample.answer is not None)
        # of equals, the one that was sampled first
        winner, num_votes = votes.most_common(1)[0] if votes else (None, 0)
        chosen = next(sample for sample in done if sample.answer == winner)
        for step in chosen.steps:
            yield step
        yield Stop(chosen.reason, {"votes": num_votes, "samples": len(done), "k": self.k})

    async def _draw(self, request: Request, engine: Engine) -> list[_Sample]:
        """The samples that decide the vote, by index. On return no other one runs."""
        transcript = Transcript(request.messages, request.committed)
        transcript.token_ids(engine)  # refuse a prompt that is too long before any sample starts
        running = {asyncio.create_task(self._sample(index, request, transcript, engine)) for index in range(self.k)}
        done: list[_Sample] = []
        try:
            while running and not is_decided(Counter(sample.answer for sample in done), len(running)):
                finished, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                done += [task.result() for task in finished]
                running -= finished
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return sorted(done, key=lambda sample: sample.index)

    async def _sample(self, index: int, request: Request, transcript: Transcript, engine: Engine) -> _Sample:
        sampling = sampling_for(request, transcript, engine, temperature=float(self.temperature))
        if request.seed is not None:
            sampling = replace(sampling, seed=(request.seed + index) % 2**63)
        steps: list[Step] = []
        async with aclosing(write_steps(engine, transcript, sampling)) as written:
            async for event in written:
                if isinstance(event, FinishReason):
                    return _Sample(index, steps, event)
                steps.append(event)
        raise AssertionError("an engine's stream ended without a reason")  # the port forbids it


def is_decided(answers: Counter[object], running: int) -> bool:
    """Whether no outcome of `running` more samples could overtake or tie the leading answer; None is no answer."""
    votes = sorted((count for answer, count in answers.items() if answer is not None), reverse=True)
    if not votes:
        return False
    second = votes[1] if len(votes) > 1 else 0
    return votes[0] > second + running
