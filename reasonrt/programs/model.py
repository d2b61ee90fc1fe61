"""A language model as programs and candidates ask it: messages in, text or a choice out.

Everything that a run asks of models goes through this port, so that a run can be journaled and replayed.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Protocol

from reasonrt.ports import Capability, RequestEngine
from reasonrt.programs.budget import Budget, Spent
from reasonrt.scopes import LimitReached
from reasonrt.tasks import read_text
from reasonrt.thinking import END_THINK, opens_thinking, split
from reasonrt.types import FinishReason, Message, Sampling

_TAIL = 10  # the least certain tenth of the tokens
_BEGINNING_TOKENS = 8  # of a message, at most
_MOST_CHARACTERS_PER_TOKEN = 32  # of a text; longer tokens are white space


class PromptTooLong(Exception):  # noqa: N818 (the asker is told, and asks with less)
    """The model cannot read as much; the message says how much it can."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote.

    Attributes:
        text: without its thinking.
        num_tokens: thinking included.
        is_whole: it ended by itself, or where it was told to stop; not at a limit.
        logprob_tail: mean log-probability of its least certain tenth of tokens; None where it was not told.
    """

    text: str
    num_tokens: int
    is_whole: bool
    logprob_tail: float | None = None


class Model(Protocol):
    """What writes programs, or answers sub-questions."""

    async def write(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        until: Callable[[str], bool] | None = None,
        beginning: str = "",
    ) -> Written:
        """Write the next message.

        Args:
            beginning: of the message, given; it is part of the text. Left out where the model begins with thinking.
            until: of the text so far; the model is stopped once it holds at the end of a line.

        Raises:
            PromptTooLong: the messages leave no room for `max_tokens` in the model's window.
            Spent: the budget has nothing left.
        """

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> tuple[float, ...]:
        """The probability of each choice as the whole next message, given that it is one of them.

        One forward pass, or a few where choices begin alike. Nothing is parsed. Empty where the engine cannot be read.

        Args:
            choices: distinct and not empty.

        Raises:
            PromptTooLong, Spent: as `write`.
        """


class EngineModel:
    """A model that an engine runs.

    Args:
        engine: as the runtime hands it out for one request.
        budget: of the run.
        places: so many generations and reads run concurrently.
        top_p: of sampled generations.
    """

    def __init__(self, engine: RequestEngine, budget: Budget, places: asyncio.Semaphore, top_p: float = 1.0) -> None:
        self._engine, self._budget, self._places, self._top_p = engine, budget, places, top_p
        self._can_read = Capability.READ in engine.capabilities
        self._has_logprobs = Capability.LOGPROBS in engine.capabilities

    async def check_room(self, messages: Sequence[Message], max_tokens: int) -> None:
        """Raises: PromptTooLong: as `write` would, before anything is started for it."""
        await self._prompt(messages, max_tokens)

    async def write(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        until: Callable[[str], bool] | None = None,
        beginning: str = "",
    ) -> Written:
        prompt = await self._prompt(messages, max_tokens)
        tokenizer = self._engine.tokenizer
        if is_open := opens_thinking(tokenizer.decode, prompt):
            beginning = ""
        prompt += tokenizer.encode_text(beginning)
        async with self._places:
            with self._budget.reserve(max_tokens) as reserved, _limits():
                sampling = Sampling(
                    reserved.tokens,
                    temperature,
                    self._top_p,
                    seed,
                    logprobs=self._has_logprobs,
                    by_step=True,  # what is written is looked at where a line ends
                )
                ids, logprobs, is_whole, text = list[int](), list[float](), False, beginning
                async with aclosing(self._engine.generate(prompt, sampling)) as stream:
                    async for delta in stream:
                        ids += delta.token_ids
                        logprobs += delta.logprobs
                        reserved.used = len(ids)
                        is_last = delta.finish_reason is not None
                        if not is_last and "\n" not in tokenizer.decode(delta.token_ids):
                            continue  # to decode all of it for each token takes as long as its square
                        text = beginning + split(tokenizer.decode(ids), is_open, is_whole=is_last).content
                        if until is not None and until(text):
                            is_whole = True
                            break
                        if is_last:
                            is_whole = delta.finish_reason is FinishReason.STOP
                            break
                return Written(text, len(ids), is_whole, _tail(logprobs))

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> tuple[float, ...]:
        if not self._can_read:
            return ()
        prompt = await self._prompt(messages, 1)
        if opens_thinking(self._engine.tokenizer.decode, prompt):
            prompt = [*prompt, *self._engine.tokenizer.encode(f"\n{END_THINK}\n\n")]
        end = min(self._engine.tokenizer.eos_token_ids)
        spelled = [(*self._engine.tokenizer.encode_text(choice), end) for choice in choices]
        async with self._places:
            logs = await self._spell(prompt, spelled, ())
        highest = max(logs)
        weights = [math.exp(log - highest) for log in logs]
        return tuple(weight / sum(weights) for weight in weights)

    async def _spell(
        self, prompt: Sequence[int], spelled: Sequence[tuple[int, ...]], begun: tuple[int, ...]
    ) -> list[float]:
        """The log-probability of each of `spelled`, all of which begin with `begun`, from there on."""
        at = len(begun)
        if len(set(spelled)) == 1:  # the rest of the only one left says nothing about which one it is
            return [0.0] * len(spelled)
        following = sorted({ids[at] for ids in spelled})
        if len(following) == 1:
            return await self._spell(prompt, spelled, (*begun, following[0]))
        with self._budget.reserve(1) as reserved, _limits():
            reading = await self._engine.read([*prompt, *begun], following)
            reserved.used = 1
        logs = dict(zip(following, reading.logprobs, strict=True))
        found: dict[tuple[int, ...], float] = {}
        for token_id in following:
            group = [ids for ids in spelled if ids[at] == token_id]
            deeper = await self._spell(prompt, group, (*begun, token_id))
            found |= {ids: logs[token_id] + log for ids, log in zip(group, deeper, strict=True)}
        return [found[ids] for ids in spelled]

    async def _prompt(self, messages: Sequence[Message], max_tokens: int) -> list[int]:
        num_characters = sum(len(message.content) for message in messages)
        most = self._engine.max_model_len - max_tokens
        if num_characters <= most * _MOST_CHARACTERS_PER_TOKEN:  # else not even tokenized
            ids = await read_text(num_characters, self._engine.tokenizer.chat, messages)
            if len(ids) + _BEGINNING_TOKENS <= most:
                return ids
            size = f"{len(ids):,} tokens"
        else:
            size = f"{num_characters:,} characters"
        raise PromptTooLong(f"the prompt has {size}; the model takes {max(0, most):,} tokens: send less in one call")


@contextmanager
def _limits() -> Iterator[None]:
    """The runtime's word for a limit as the budget's."""
    try:
        yield
    except LimitReached as limit:
        raise Spent(limit.reason) from None


def _tail(logprobs: Sequence[float]) -> float | None:
    if not logprobs:
        return None
    least = sorted(logprobs)[: max(1, len(logprobs) // _TAIL)]
    return math.fsum(least) / len(least)
