"""A shipped fake: an engine that says what it was told to, with the latency that it was told to have.

For tests, examples and measurements of everything above the engines. It keeps a prefix cache of its own, so that
cached tokens are counted as a real engine would count them.
"""

import asyncio
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from reasonrt.engines.base import Capability
from reasonrt.errors import EngineError, RequestError
from reasonrt.types import FinishReason, Message, Sampling, TokenDelta

Script = Callable[[str, Sampling], str]
"""From the text of prompt and committed steps to what comes next."""

_EOS = 0
_BLANK_LINE = 1
_FIRST_CHARACTER = 2


class CharacterTokenizer:
    """One token per character, one for the blank line, one for the end."""

    fingerprint = "characters"
    eos_token_ids = frozenset({_EOS})

    def encode(self, text: str) -> list[int]:
        parts = text.split("\n\n")
        ids = [ord(character) + _FIRST_CHARACTER for character in parts[0]]
        for part in parts[1:]:
            ids.append(_BLANK_LINE)
            ids.extend(ord(character) + _FIRST_CHARACTER for character in part)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        named = {_EOS: "", _BLANK_LINE: "\n\n"}
        return "".join(named.get(i) if i in named else chr(i - _FIRST_CHARACTER) for i in token_ids)  # type: ignore[misc]

    def chat(self, messages: Sequence[Message]) -> list[int]:
        return self.encode("".join(f"[{message.role}] {message.content}\n" for message in messages) + "[assistant] ")

    def vocabulary(self) -> Mapping[int, str]:
        return {_EOS: "", _BLANK_LINE: "\n\n"} | {code + _FIRST_CHARACTER: chr(code) for code in range(128)}


class _Stream:
    """Plays a list of ids, a chunk at a time."""

    def __init__(self, engine: "ScriptedEngine", prompt: list[int], sampling: Sampling) -> None:
        self._engine, self._prompt, self._sampling = engine, prompt, sampling
        self._ids: list[int] | None = None
        self._is_over = False
        self._cached = 0
        self.generated_tokens = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenDelta:
        if self._is_over:
            raise StopAsyncIteration
        engine = self._engine
        if self._ids is None:
            self._cached = engine.admit(self._prompt, self._sampling.max_tokens)
            engine.running += 1
            text = engine.script(engine.tokenizer.decode(self._prompt), self._sampling)
            self._ids = [*engine.tokenizer.encode(text), _EOS]
        if engine.seconds_per_token:
            await asyncio.sleep(engine.seconds_per_token * engine.chunk_tokens)
        if engine.is_dead:
            await self.aclose()
            raise EngineError(f"engine {engine.name!r} died")
        left = self._sampling.max_tokens - self.generated_tokens
        chunk = self._ids[self.generated_tokens : self.generated_tokens + min(engine.chunk_tokens, left)]
        stops = self._sampling.stop_token_ids | engine.tokenizer.eos_token_ids
        stop_at = next((index for index, token_id in enumerate(chunk) if token_id in stops), None)
        if stop_at is not None:
            chunk = chunk[: stop_at + 1]
        self.generated_tokens += len(chunk)
        engine.generated_tokens += len(chunk)
        reason = None
        if stop_at is not None:
            reason = FinishReason.STOP
        elif self.generated_tokens >= self._sampling.max_tokens:
            reason = FinishReason.LENGTH
        if reason:
            engine.remember(self._prompt + self._ids[: self.generated_tokens])
            await self.aclose()
        logprobs = tuple(engine.logprob(token_id) for token_id in chunk) if self._sampling.logprobs else ()
        return TokenDelta(tuple(chunk), logprobs, reason, self._cached)

    async def aclose(self) -> None:
        if not self._is_over and self._ids is not None:
            self._engine.running -= 1
        self._is_over = True


class ScriptedEngine:
    """An engine without a model.

    Args:
        name: as the author of its steps.
        script: replies by prompt text, or one reply for every prompt.
        seconds_per_token: latency; 0 never waits.
        chunk_tokens: tokens per delta.
        scores: the answer to `score`, from the prompt's text.
    """

    capabilities = frozenset(Capability)

    def __init__(
        self,
        name: str,
        script: Script | str,
        *,
        seconds_per_token: float = 0.0,
        chunk_tokens: int = 4,
        max_model_len: int = 100_000,
        scores: Callable[[str], float] = lambda text: 0.0,
    ) -> None:
        self.name = name
        self.script: Script = (lambda text, sampling: script) if isinstance(script, str) else script
        self.seconds_per_token, self.chunk_tokens, self.max_model_len = seconds_per_token, chunk_tokens, max_model_len
        self.scores = scores
        self.tokenizer = CharacterTokenizer()
        self.is_dead = False
        self.running = 0  # generations that the engine works on
        self.generated_tokens = 0  # ever, over all requests
        self._cache: list[tuple[int, ...]] = []

    async def start(self) -> Self:
        self.is_dead = False
        return self

    async def aclose(self) -> None:
        pass

    def kill(self) -> None:
        """Die as a real engine does: what runs fails, the next call brings it back."""
        self.is_dead = True

    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling) -> _Stream:
        return _Stream(self, list(prompt_token_ids), sampling)

    async def read(self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int]) -> list[float]:
        """A fixed distribution per prompt in which no id is certain."""
        self.admit(prompt_token_ids, 1)
        if self.seconds_per_token:
            await asyncio.sleep(self.seconds_per_token)
        seed = hashlib.blake2b(str(list(prompt_token_ids)).encode(), digest_size=8).digest()
        return [self.logprob(seed[0] + candidate) for candidate in candidate_ids]

    async def score(self, prompt_token_ids: Sequence[int]) -> float:
        self.admit(prompt_token_ids, 1)
        return self.scores(self.tokenizer.decode(prompt_token_ids))

    def admit(self, prompt: Sequence[int], max_tokens: int) -> int:
        """Check and revive; return how many prompt tokens the cache knows."""
        if len(prompt) + max_tokens > self.max_model_len:
            raise RequestError(
                f"{len(prompt)} prompt tokens and max_tokens {max_tokens} exceed max_model_len {self.max_model_len}"
            )
        self.is_dead = False
        known = 0
        for cached in self._cache:
            same = 0
            for ours, theirs in zip(prompt, cached, strict=False):
                if ours != theirs:
                    break
                same += 1
            known = max(known, same)
        return min(known, max(0, len(prompt) - 1))

    def remember(self, token_ids: Sequence[int]) -> None:
        self._cache = [*self._cache[-15:], tuple(token_ids)]

    @staticmethod
    def logprob(token_id: int) -> float:
        return math.log(0.05 + 0.9 * ((token_id * 7919) % 101) / 101)
