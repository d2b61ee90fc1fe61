"""`self_consistency`: several samples, the answer of the majority (Wang et al. 2023, arXiv 2203.11171, section 2).

Samples run concurrently; sampling ends as soon as no outcome of the samples that are still missing could change which
answer leads. On a busy engine, the samples that the vote may not need are drawn only once it needs them. Only the
winner is cut into steps. Nothing is committed before: a deadline that ends the request earlier leaves it without text.
A budget draws as many concurrently as it can hold whole; what it ends leaves the vote to the samples that are there.
Where the answer must have a structure, that of each sample has it; where the thinking is limited, that of each sample
is. Samples that call tools vote for their calls.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from reasonrt.policies.answering import answered
from reasonrt.policies.ballots import Ballot, Value, ballot_of, count_votes
from reasonrt.policies.options import PolicyOptions
from reasonrt.policies.single import Role, Single
from reasonrt.policies.structured import structured
from reasonrt.policies.tool_calls import find_calls
from reasonrt.ports import Engines, RequestEngine
from reasonrt.scopes import LimitReached
from reasonrt.tasks import run_bounded
from reasonrt.thinking import opens_thinking, split
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, ParsedAnswer, PolicyEvent, Request, Step, Stop, TokenDelta
from reasonrt.writing import sampling_for, seed_of, steps_of

_TEMPERATURE = 0.7
_BUSY = 48  # generations that an engine works on; from as many on, stopping drops its probes, too


@dataclass
class _Sample:
    index: int
    text: str  # with what is committed before it
    num_tokens: int
    steps: Callable[[], Sequence[Step]]
    stop: Stop
    ballot: Ballot | None  # None counts for nothing


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
    def gives_logprobs(self) -> bool:
        return True

    @property
    def num_streams(self) -> int:
        return 1 if self.temperature == 0 else self.k

    @property
    def commits_as_it_goes(self) -> bool:
        return False

    @property
    def holds_structure(self) -> bool:
        return True

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        done: list[_Sample] = []
        engines.at_limit(lambda: {"samples": len(done), "k": self.k})
        try:
            await self._draw(request, engines, done)
        except LimitReached:
            if not done:
                raise
        done.sort(key=lambda sample: sample.index)
        votes = _votes(done)
        # of equals, the one that was sampled first
        winner, num_votes = votes.most_common(1)[0] if votes else (None, 0)
        chosen = next(sample for sample in done if sample.ballot == winner)
        for step in chosen.steps():
            yield step
        details = {**chosen.stop.details, "votes": num_votes, "samples": len(done), "k": self.k}
        yield Stop(chosen.stop.reason, details, chosen.stop.warnings)

    async def _draw(self, request: Request, engines: Engines, done: list[_Sample]) -> None:
        """Add the samples that decide the vote. On return no other one runs."""
        engine, num = engines[self.engine], self.num_streams
        # fewer than half can never decide; a second turn costs time, which only a full engine gives back
        first = num if engine.pace.running < _BUSY else num // 2 + 1
        draw = self._apart if request.structure or request.thinking_tokens is not None else self._whole
        most, begun = max(1, request.limits.max_tokens - _num_committed(request)), 0
        while begun < num and not is_decided(_votes(done), num - len(done)):
            left, turn = engines.allowance.generated_tokens, num - begun if begun else first
            if left is not None:  # a sample that is cut has no vote
                turn = max(1, min(turn, left // most))
            indices, begun = range(begun, begun + turn), begun + turn
            async with aclosing(draw(request, engines, indices)) as ended:
                async for sample in ended:
                    done.append(sample)
                    request.tell(
                        "sample",
                        author=engine.name,
                        index=sample.index,
                        text=sample.text,
                        tokens=sample.num_tokens,
                        answer=sample.ballot.text if isinstance(sample.ballot, Value) else sample.ballot,
                    )
                    if is_decided(_votes(done), num - len(done)):
                        break

    async def _whole(self, request: Request, engines: Engines, indices: range) -> AsyncGenerator[_Sample, None]:
        """Those with these indices, in the order in which they end."""
        engine, transcript = engines[self.engine], Transcript.of(request, engines)
        sampling = sampling_for(request, transcript, engine, temperature=self._temperature(request))
        samplings = [replace(sampling, seed=_seed(request, index)) for index in indices]
        is_open = opens_thinking(engine.tokenizer.decode, request.prompt(engine.tokenizer))
        async with aclosing(engine.generate_whole(transcript.token_ids(engine).copy(), samplings)) as ended:
            async for place, whole in ended:
                text = transcript.text + engine.tokenizer.decode(whole.token_ids)
                reason = whole.finish_reason or FinishReason.LENGTH  # a whole generation has one
                ballot = await _ballot(text, is_open, reason, request, engine)
                steps = partial(_cut, engine, transcript, whole)
                yield _Sample(indices[place], text, len(whole.token_ids), steps, Stop(reason), ballot)

    async def _apart(self, request: Request, engines: Engines, indices: range) -> AsyncGenerator[_Sample, None]:
        """As `_whole`: each thinks up to its own limit, and then answers; under `request.structure`, if any."""
        engine, solve = engines[self.engine], structured if request.structure else answered
        is_open = opens_thinking(engine.tokenizer.decode, request.prompt(engine.tokenizer))
        before = "".join(step.text for step in request.committed)

        async def draw(index: int) -> _Sample:
            one = replace(request, seed=_seed(request, index), temperature=self._temperature(request))
            steps, stop = list[Step](), Stop(FinishReason.LENGTH)
            async with aclosing(solve(Single(self.engine), one, engines)) as events:
                async for event in events:
                    if isinstance(event, Stop):
                        stop = event
                    else:
                        steps.append(event)
            text = before + "".join(step.text for step in steps)
            num_tokens = sum(len(step.token_ids) for step in steps)
            ballot = await _ballot(text, is_open, stop.reason, request, engine)
            return _Sample(index, text, num_tokens, lambda: steps, stop, ballot)

        async with aclosing(run_bounded([partial(draw, index) for index in indices], len(indices))) as ended:
            async for sample in ended:
                yield sample

    def _temperature(self, request: Request) -> float:
        return self.temperature if self.temperature is not None else request.temperature or _TEMPERATURE


def _num_committed(request: Request) -> int:
    return sum(len(step.token_ids) for step in request.committed)


def _seed(request: Request, index: int) -> int | None:
    """Of one sample; where something is committed, of this place in the text, which another sample may have written."""
    place = _num_committed(request)
    return seed_of(request.seed, "sample", index, *([place] if place else []))


def _cut(engine: RequestEngine, transcript: Transcript, whole: TokenDelta) -> Sequence[Step]:
    return steps_of(engine, transcript, whole)[0]


async def _ballot(
    text: str, is_open: bool, reason: FinishReason, request: Request, engine: RequestEngine
) -> Ballot | None:
    """Of a sample; one that was cut off has none."""
    if reason is not FinishReason.STOP:
        return None
    content = split(text, is_open).content
    answer = (await find_calls(content, request, engine))[0] if request.tools else ParsedAnswer(content)
    return ballot_of(answer, request)


def _votes(samples: Collection[_Sample]) -> Counter[Ballot]:
    return count_votes(sample.ballot for sample in samples)


def is_decided(answers: Counter[Any], running: int) -> bool:
    """Whether no outcome of `running` more samples could overtake or tie the leading answer; None is no answer."""
    votes = sorted((count for answer, count in answers.items() if answer is not None), reverse=True)
    if not votes:
        return False
    second = votes[1] if len(votes) > 1 else 0
    return votes[0] > second + running
