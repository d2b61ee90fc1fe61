"""`self_consistency`: several samples, the answer of the majority (Wang et al. 2023, arXiv 2203.11171, section 2).

Samples run side by side; sampling ends as soon as no outcome of the samples that still run could change which
answer leads.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace

from reasonrt.engines.base import Engine
from reasonrt.errors import RequestError
from reasonrt.policies.answers import find_answer, normal_form
from reasonrt.policies.base import PolicyOptions, sampling_for, write_steps
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Step, Stop


@dataclass
class _Sample:
    steps: list[Step]
    reason: FinishReason

    @property
    def answer(self) -> object:
        """What it counts for; None when it came to no answer."""
        answer = find_answer("".join(step.text for step in self.steps))
        return normal_form(answer) if answer is not None and self.reason is FinishReason.STOP else None


@dataclass
class SelfConsistency(PolicyOptions):
    """Options: `k` samples (1-64) at `temperature`, from the engine named `engine`."""

    k: int = 5
    temperature: float = 0.7
    engine: str = "target"

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or not 1 <= self.k <= 64:
            raise RequestError(f"self_consistency: k must be a whole number in [1, 64], got {self.k}")
        if self.engine not in ("target", "draft"):
            raise RequestError(f"self_consistency: engine must be target or draft, got {self.engine!r}")
        self.engines = (self.engine,)

    async def solve(self, request: Request, engines: Mapping[str, Engine]) -> AsyncGenerator[PolicyEvent, None]:
        engine = engines[self.engine]
        transcript = Transcript(request.messages)
        transcript.token_ids(engine)  # refuse a prompt that is too long before any sample starts
        tasks = {asyncio.create_task(self._sample(index, request, transcript, engine)) for index in range(self.k)}
        done: list[_Sample] = []
        running = set(tasks)
        try:
            while running and not is_decided(Counter(sample.answer for sample in done), len(running)):
                finished, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                done += [task.result() for task in finished]
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        votes = Counter(sample.answer for sample in done if sample.answer is not None)
        winner = votes.most_common(1)[0][0] if votes else done[0].answer
        chosen = next(sample for sample in done if sample.answer == winner)
        for step in chosen.steps:
            yield step
        yield Stop(chosen.reason, {"votes": votes[winner], "samples": len(done), "k": self.k})

    async def _sample(self, index: int, request: Request, transcript: Transcript, engine: Engine) -> _Sample:
        sampling = sampling_for(request, transcript, engine, temperature=self.temperature)
        if request.seed is not None:
            sampling = replace(sampling, seed=request.seed + index)
        steps: list[Step] = []
        async with aclosing(write_steps(engine, transcript, sampling)) as written:
            async for event in written:
                if isinstance(event, FinishReason):
                    return _Sample(steps, event)
                steps.append(event)
        raise AssertionError("an engine's stream ended without a reason")  # the port forbids it


def is_decided(answers: Counter[object], running: int) -> bool:
    """Whether no outcome of `running` more samples could overtake the leading answer. Ties are not decided."""
    votes = sorted((count for answer, count in answers.items() if answer is not None), reverse=True)
    if not votes:
        return False
    second = votes[1] if len(votes) > 1 else 0
    return votes[0] > second + running
