"""`self_consistency`: several samples, the answer of the majority (Wang et al. 2023, arXiv 2203.11171, section 2).

Samples run concurrently; sampling ends as soon as no outcome of the samples that still run could change which
answer leads. Only the winner is cut into steps. Nothing is committed before: a limit that ends the request earlier
leaves it without text.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar

from reasonrt.answers import find_answer, normal_form
from reasonrt.errors import RequestError
from reasonrt.policies.options import PolicyOptions
from reasonrt.ports import PacedEngine
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Stop, TokenDelta
from reasonrt.writing import sampling_for, steps_of


@dataclass
class _Sample:
    index: int
    whole: TokenDelta
    text: str

    def __post_init__(self) -> None:
        found = find_answer(self.text)
        is_answer = found is not None and self.whole.finish_reason is FinishReason.STOP
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

    async def solve(self, request: Request, engines: Mapping[str, PacedEngine]) -> AsyncGenerator[PolicyEvent, None]:
        engine = engines[self.engine]
        transcript = Transcript(request.messages, request.committed)
        done = await self._draw(request, transcript, engine)
        votes = Counter(sample.answer for sample in done if sample.answer is not None)
        # of equals, the one that was sampled first
        winner, num_votes = votes.most_common(1)[0] if votes else (None, 0)
        chosen = next(sample for sample in done if sample.answer == winner)
        steps, reason = steps_of(engine, transcript, chosen.whole)
        for step in steps:
            yield step
        yield Stop(reason, {"votes": num_votes, "samples": len(done), "k": self.k})

    async def _draw(self, request: Request, transcript: Transcript, engine: PacedEngine) -> list[_Sample]:
        """The samples that decide the vote, by index. On return no other one runs."""
        sampling = sampling_for(request, transcript, engine, temperature=float(self.temperature))
        samplings = [replace(sampling, seed=_seed(request, index)) for index in range(self.k)]
        done: list[_Sample] = []
        async with aclosing(engine.generate_whole(transcript.token_ids(engine), samplings)) as ended:
            async for index, whole in ended:
                done.append(_Sample(index, whole, engine.tokenizer.decode(whole.token_ids)))
                if is_decided(Counter(sample.answer for sample in done), self.k - len(done)):
                    break
        return sorted(done, key=lambda sample: sample.index)


def _seed(request: Request, index: int) -> int | None:
    return None if request.seed is None else (request.seed + index) % 2**63


def is_decided(answers: Counter[object], running: int) -> bool:
    """Whether no outcome of `running` more samples could overtake or tie the leading answer; None is no answer."""
    votes = sorted((count for answer, count in answers.items() if answer is not None), reverse=True)
    if not votes:
        return False
    second = votes[1] if len(votes) > 1 else 0
    return votes[0] > second + running
