"""`self_consistency`: several samples, the answer of the majority (Wang et al. 2023, arXiv 2203.11171, section 2).

Samples run concurrently; sampling ends as soon as no outcome of the samples that are still missing could change which
answer leads. On a busy engine, the samples that the vote may not need are drawn only once it needs them. Only the
winner is cut into steps. Nothing is committed before: a limit that ends the request earlier leaves it without text.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from reasonrt.answers import find_answer, first_same
from reasonrt.policies.options import PolicyOptions
from reasonrt.policies.single import Role
from reasonrt.ports import Engines, RequestEngine
from reasonrt.thinking import opens_thinking, split
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Stop, TokenDelta
from reasonrt.writing import sampling_for, seed_of, steps_of

_TEMPERATURE = 0.7
_BUSY = 48  # generations that an engine works on; from as many on, stopping drops its probes, too


@dataclass
class _Sample:
    index: int
    whole: TokenDelta
    content: str  # what it says after its thinking

    def __post_init__(self) -> None:
        found = find_answer(self.content)
        is_answer = found is not None and self.whole.finish_reason is FinishReason.STOP
        self.answer = found if is_answer else None  # None counts for nothing


@dataclass
class SelfConsistency(PolicyOptions):
    """Several samples, and the answer of the majority.

    Attributes:
        k: samples, at most.
        temperature: None is the request's, or 0.7 where that is 0. At 0, all samples would be the same: one is drawn.
        engine: the role of the engine that writes.
    """

    k: Annotated[int, Field(ge=1, le=64)] = 5
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    engine: Role = "target"

    @property
    def engines(self) -> tuple[str, ...]:
        return (self.engine,)

    @property
    def has_one_author(self) -> bool:
        return True

    @property
    def num_streams(self) -> int:
        return 1 if self.temperature == 0 else self.k

    @property
    def commits_as_it_goes(self) -> bool:
        return False

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        engine = engines[self.engine]
        transcript = Transcript.of(request, engines)
        done: list[_Sample] = []
        engines.at_limit(lambda: {"samples": len(done), "k": self.k})
        await self._draw(request, transcript, engine, done)
        done.sort(key=lambda sample: sample.index)
        votes = _votes(done)
        # of equals, the one that was sampled first
        winner, num_votes = votes.most_common(1)[0] if votes else (None, 0)
        chosen = next(sample for sample in done if sample.answer == winner)
        steps, reason = steps_of(engine, transcript, chosen.whole)
        for step in steps:
            yield step
        yield Stop(reason, {"votes": num_votes, "samples": len(done), "k": self.k})

    async def _draw(self, request: Request, transcript: Transcript, engine: RequestEngine, done: list[_Sample]) -> None:
        """Add the samples that decide the vote. On return no other one runs."""
        sampling = sampling_for(request, transcript, engine, temperature=self._temperature(request))
        samplings = [
            replace(sampling, seed=seed_of(request.seed, "sample", index)) for index in range(self.num_streams)
        ]
        prompt = request.prompts.token_ids(engine.tokenizer, request.messages)
        is_open = opens_thinking(engine.tokenizer.decode, prompt)
        token_ids = list(transcript.token_ids(engine))
        # fewer than half can never decide; a second turn costs time, which only a full engine gives back
        num = len(samplings)
        first = num if engine.pace.running < _BUSY else num // 2 + 1
        for begin, end in ((0, first), (first, num)):
            if begin == end or is_decided(_votes(done), num - len(done)):
                break
            async with aclosing(engine.generate_whole(token_ids, samplings[begin:end])) as ended:
                async for index, whole in ended:
                    text = transcript.text + engine.tokenizer.decode(whole.token_ids)
                    done.append(_Sample(begin + index, whole, split(text, is_open).content))
                    if is_decided(_votes(done), num - len(done)):
                        break

    def _temperature(self, request: Request) -> float:
        return self.temperature if self.temperature is not None else request.temperature or _TEMPERATURE


def _votes(samples: Iterable[_Sample]) -> Counter[str]:
    """How many samples give each answer, spelled as it first came."""
    votes = Counter[str]()
    for sample in samples:
        if sample.answer is not None:
            votes[first_same(sample.answer, votes)] += 1
    return votes


def is_decided(answers: Counter[Any], running: int) -> bool:
    """Whether no outcome of `running` more samples could overtake or tie the leading answer; None is no answer."""
    votes = sorted((count for answer, count in answers.items() if answer is not None), reverse=True)
    if not votes:
        return False
    second = votes[1] if len(votes) > 1 else 0
    return votes[0] > second + running
