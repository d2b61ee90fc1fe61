"""`self_consistency`: several samples, the answer of the majority (Wang et al. 2023, arXiv 2203.11171, section 2).

Samples run side by side; sampling ends as soon as no outcome of the samples that still run could change which
answer leads. Nothing is committed before: a limit that ends the request earlier leaves it without text.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from reasonrt.answers import find_answer, normal_form
from reasonrt.policies.options import PolicyOptions
from reasonrt.policies.single import Role
from reasonrt.ports import Engine
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Step, Stop
from reasonrt.writing import sampling_for, write_steps

_TEMPERATURE = 0.7


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
    """Several samples, and the answer of the majority.

    Attributes:
        k: samples.
        temperature: None is the request's, or 0.7 where that is 0: greedy samples would all be one.
        engine: the role of the engine that writes.
    """

    k: Annotated[int, Field(ge=1, le=64)] = 5
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    engine: Role = "target"

    @property
    def engines(self) -> tuple[str, ...]:
        return (self.engine,)

    @property
    def num_streams(self) -> int:
        return self.k

    @property
    def commits_as_it_goes(self) -> bool:
        return False

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
        transcript = Transcript.of(request, {self.engine: engine})
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

    def _temperature(self, request: Request) -> float:
        return self.temperature if self.temperature is not None else request.temperature or _TEMPERATURE

    async def _sample(self, index: int, request: Request, transcript: Transcript, engine: Engine) -> _Sample:
        sampling = sampling_for(request, transcript, engine, temperature=self._temperature(request))
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
