"""An engine in a process of its own, asked over a link: for models that are too large to stand beside another."""

import itertools
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, Self

from reasonrt.errors import EngineError
from reasonrt.ports import Engine, Reading, Score, Verified
from reasonrt.types import Sampling, TokenDelta

_KEPT_COUNTS = 1024

BuildEngine = Callable[[], Engine]


class Link(Protocol):
    """To one `EngineServer`; calls of one session reach the same one of several."""

    async def call(self, method: str, *arguments: Any, session: str = "") -> Any:
        """Raises `EngineError` where nobody answers."""

    def stream(self, method: str, *arguments: Any, session: str = "") -> AsyncGenerator[Any, None]: ...


class EngineServer:
    """The far end.

    Args:
        build: the engine.
        folder: the paths of the configuration are relative to it.
    """

    async def __init__(self, build: BuildEngine, folder: str) -> None:  # type: ignore[misc]
        with suppress(OSError):  # on another machine it may be missing, and absolute paths all that there are
            os.chdir(folder)
        self._engine = await build().start()
        self._counts: OrderedDict[str, int] = OrderedDict()

    async def start(self) -> None:
        await self._engine.start()

    async def generate(
        self, stream_id: str, token_ids: Sequence[int], sampling: Sampling, cache_salt: str
    ) -> AsyncGenerator[TokenDelta, None]:
        stream = self._engine.generate(token_ids, sampling, cache_salt)
        try:
            async for delta in stream:
                yield delta
        finally:
            await stream.aclose()
            self._counts[stream_id] = stream.generated_tokens
            if len(self._counts) > _KEPT_COUNTS:
                self._counts.popitem(last=False)

    async def count(self, stream_id: str) -> int:
        """How many tokens that stream had generated in the end; 0 when it is not known."""
        return self._counts.get(stream_id, 0)

    async def read(self, token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str) -> Reading:
        return await self._engine.read(token_ids, candidate_ids, cache_salt)

    async def verify(self, token_ids: Sequence[int], drafted_ids: Sequence[int], cache_salt: str) -> Verified:
        return await self._engine.verify(token_ids, drafted_ids, cache_salt)

    async def score(self, token_ids: Sequence[int], cache_salt: str) -> Score:
        return await self._engine.score(token_ids, cache_salt)


class DistantEngine:
    """The near end: the engine port.

    Args:
        like: the same engine, never started: it lends its tokenizer and its properties.
        link: to the far end.
    """

    def __init__(self, like: Engine, link: Link) -> None:
        self.name, self.max_model_len, self.tokenizer = like.name, like.max_model_len, like.tokenizer
        self.capabilities, self.fingerprint = like.capabilities, like.fingerprint
        self._link = link
        self._ids = itertools.count()

    async def start(self) -> Self:
        await self._link.call("start")
        return self

    async def aclose(self) -> None:
        """The far end stays for others."""

    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> "_DistantStream":
        stream_id = f"{os.getpid()}-{id(self)}-{next(self._ids)}"
        return _DistantStream(self._link, stream_id, list(prompt_token_ids), sampling, cache_salt)

    async def read(
        self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = ""
    ) -> Reading:
        reading: Reading = await self._link.call("read", list(prompt_token_ids), list(candidate_ids), cache_salt)
        return reading

    async def verify(
        self, prompt_token_ids: Sequence[int], drafted_ids: Sequence[int], cache_salt: str = ""
    ) -> Verified:
        written: Verified = await self._link.call("verify", list(prompt_token_ids), list(drafted_ids), cache_salt)
        return written

    async def score(self, prompt_token_ids: Sequence[int], cache_salt: str = "") -> Score:
        score: Score = await self._link.call("score", list(prompt_token_ids), cache_salt)
        return score


class _DistantStream:
    def __init__(self, link: Link, stream_id: str, prompt: list[int], sampling: Sampling, cache_salt: str) -> None:
        self._link, self._id = link, stream_id
        self._deltas = link.stream("generate", stream_id, prompt, sampling, cache_salt, session=stream_id)
        self._is_begun = self._is_over = False
        self.generated_tokens = 0

    @property
    def passes(self) -> int:
        return self.generated_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenDelta:
        if self._is_over:
            raise StopAsyncIteration
        self._is_begun = True
        delta: TokenDelta = await anext(self._deltas)
        self.generated_tokens += len(delta.token_ids)
        self._is_over = delta.finish_reason is not None
        return delta

    async def aclose(self) -> None:
        await self._deltas.aclose()
        if self._is_begun and not self._is_over:
            with suppress(EngineError):
                counted = await self._link.call("count", self._id, session=self._id)
                self.generated_tokens = max(self.generated_tokens, counted)
        self._is_over = True
