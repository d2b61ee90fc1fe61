"""What a request would answer if it stopped here: a second request with the same token ids and a suffix.

The request itself continues meanwhile, and what it has written is in the prefix cache. One code for recording and
serving.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from reasonrt.answers import find_answer
from reasonrt.policies.stopping.signals import (
    END_OF_THINKING,
    arithmetic_confidence,
    boosted_probability,
    entropy,
    geometric_confidence,
)
from reasonrt.ports import RequestEngine
from reasonrt.tasks import cancel
from reasonrt.thinking import END_THINK
from reasonrt.types import Completion, FinishReason, Sampling, Step, TokenDelta, Tokenizer

SUFFIX = END_THINK + "\n\n\\boxed{"
END_BOOST = 4.0
"""Added to the logit of the end of thinking; any value orders traces alike, this one spreads them."""
_TOP = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe said after the suffix.

    Attributes:
        value: what stands before the brace that closes the box; None where it is blank or the box was left open.
        text, token_ids, logprobs, top_logprobs, top_token_ids: of all that was said, the brace included.
        num_tokens: of these, how many hold the answer.
    """

    value: str | None
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    num_tokens: int
    top_logprobs: tuple[tuple[float, ...], ...] = ()
    top_token_ids: tuple[tuple[int, ...], ...] = ()

    def step(self, author: str, scores: Mapping[str, float]) -> Step:
        """What is committed of it."""
        return Step(
            self.text, self.token_ids, author, True, self.logprobs, self.top_logprobs, scores, self.top_token_ids
        )

    @property
    def signals(self) -> dict[str, float]:
        known = self.logprobs[: self.num_tokens] if self.value else ()
        return {"confidence": arithmetic_confidence(known), "geometric_confidence": geometric_confidence(known)}


class Probe:
    """Probes of one engine.

    Args:
        top_logprobs: so many of the highest log-probabilities come with each token of an answer.

    Attributes:
        suffix: token ids.
        spent_tokens: generated for probes so far.
    """

    def __init__(self, engine: RequestEngine, suffix: Sequence[int], answer_tokens: int, top_logprobs: int = 0) -> None:
        self.suffix, self.spent_tokens = tuple(suffix), 0
        self._engine, self._answer_tokens, self._top_logprobs = engine, answer_tokens, top_logprobs

    @property
    def room_tokens(self) -> int:
        """What a probe may add to a text."""
        return len(self.suffix) + self._answer_tokens

    async def look(self, names: Iterable[str], token_ids: Sequence[int]) -> dict[str, float]:
        """The signals `names`, of `signals.LOOKS`, after a text; one token each, asked for concurrently.

        One of them is a read: beside what else is written there is still one generation.
        """
        asking = {name: asyncio.create_task(self._looked(name, token_ids)) for name in sorted(names)}
        try:
            return {name: await told for name, told in asking.items()}
        finally:
            await cancel(*asking.values())

    async def answer(self, token_ids: Sequence[int]) -> Answer:
        """The answer after a text, greedily."""
        tokenizer = self._engine.tokenizer
        begun, closing = tokenizer.decode(self.suffix), _closing_braces(tokenizer)
        said: list[int] = []
        logprobs: list[float] = []
        tops: list[tuple[float, ...]] = []
        top_ids: list[tuple[int, ...]] = []
        text, end = "", -1
        while end < 0 and len(said) < self._answer_tokens:
            left = self._answer_tokens - len(said)
            sampling = Sampling(left, logprobs=True, top_logprobs=self._top_logprobs, stop_token_ids=closing)
            whole = await self._generated([*token_ids, *self.suffix, *said], sampling)
            said += whole.token_ids
            logprobs += whole.logprobs
            tops += whole.top_logprobs
            top_ids += whole.top_token_ids
            text = tokenizer.decode([*self.suffix, *said])[len(begun) :]
            end = _end_of_box(text)
            if not said or said[-1] not in closing:
                break  # the text itself ended
        held = (n for n in range(len(said)) if len(tokenizer.decode([*self.suffix, *said[:n]])) >= len(begun) + end)
        value = text[:end].strip() if end >= 0 else ""
        num_tokens = next(held, len(said))
        return Answer(value or None, text, tuple(said), tuple(logprobs), num_tokens, tuple(tops), tuple(top_ids))

    async def _looked(self, name: str, token_ids: Sequence[int]) -> float:
        if name == END_OF_THINKING:
            self.spent_tokens += 1
            (logprob,) = (await self._engine.read(token_ids, self.suffix[:1])).logprobs
            return boosted_probability(logprob, END_BOOST)
        sampling = Sampling(1, logprobs=True, top_logprobs=_TOP)
        return entropy((await self._generated([*token_ids, *self.suffix], sampling)).top_logprobs[0])

    async def _generated(self, token_ids: Sequence[int], sampling: Sampling) -> TokenDelta:
        stream = self._engine.generate_whole(token_ids, [sampling])
        try:
            _, whole = await anext(stream)
            return whole
        finally:
            await stream.aclose()
            self.spent_tokens += stream.generated_tokens


def full_answer(completion: Completion) -> str | None:
    """The answer after all the thinking; a text that was cut off has none."""
    return find_answer(completion.content) if completion.finish_reason is FinishReason.STOP else None


@lru_cache(maxsize=32)
def _closing_braces(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(token_id for token_id, text in tokenizer.vocabulary().items() if "}" in text)


def _end_of_box(text: str) -> int:
    """Where the brace stands that closes a box opened before `text`; -1 while it is open."""
    depth = 1
    for index, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return index
    return -1
