"""An engine as one request sees it: every token is counted, and no call is made over the limit."""

from collections.abc import Sequence
from typing import Self

from reasonrt.pace import Pace
from reasonrt.ports import Engine, TokenStream, Verified
from reasonrt.scopes import Scope
from reasonrt.types import EngineUsage, Sampling, TokenDelta


class MeteredEngine:
    """Stands for `engine` in one request.

    Args:
        engine: the engine itself.
        scope: what the request may still use.
        pace: the engine's, shared by all requests; this one's own if None.
        cache_salt: the request's; callers of this leave it out.
    """

    def __init__(self, engine: Engine, scope: Scope, pace: Pace | None = None, cache_salt: str = "") -> None:
        self._engine, self.scope, self.pace, self._salt = engine, scope, pace or Pace(), cache_salt
        self.name, self.max_model_len = engine.name, engine.max_model_len
        self.capabilities, self.tokenizer = engine.capabilities, engine.tokenizer
        self.calls = self.prefilled = self.cached = self.generated = self.probe = 0

    @property
    def fingerprint(self) -> str:
        return self._engine.fingerprint

    @property
    def model_fingerprint(self) -> str:
        return self._engine.model_fingerprint

    async def start(self) -> Self:
        return self

    async def aclose(self) -> None:
        """The engine belongs to the runtime, not to the request."""

    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> "_MeteredStream":
        self.scope.take_call()
        self.calls += 1
        stream = self._engine.generate(prompt_token_ids, sampling, cache_salt or self._salt)
        return _MeteredStream(self, stream, len(prompt_token_ids))

    async def read(
        self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = ""
    ) -> list[float]:
        self._count_probe(prompt_token_ids)
        self.has_generated(1)
        self.probe += 1
        return await self._engine.read(prompt_token_ids, candidate_ids, cache_salt or self._salt)

    async def verify(
        self, prompt_token_ids: Sequence[int], drafted_ids: Sequence[int], cache_salt: str = ""
    ) -> Verified:
        self._count_probe([*prompt_token_ids, *drafted_ids])
        self.has_generated(1)
        watch = self.pace.watch(len(prompt_token_ids) + len(drafted_ids))
        watch.asked()
        try:
            verified = await self._engine.verify(prompt_token_ids, drafted_ids, cache_salt or self._salt)
        finally:
            watch.ended()
        watch.came(TokenDelta(verified.token_ids, cached_tokens=verified.cached_tokens))
        self.cached += verified.cached_tokens
        self.prefilled -= verified.cached_tokens
        self.probe += verified.token_ids == tuple(drafted_ids)  # else its own token is part of the text
        return verified

    async def score(self, prompt_token_ids: Sequence[int], cache_salt: str = "") -> float:
        self._count_probe(prompt_token_ids)
        return await self._engine.score(prompt_token_ids, cache_salt or self._salt)

    def _count_probe(self, prompt_token_ids: Sequence[int]) -> None:
        self.scope.take_call()
        self.calls += 1
        self.prefilled += len(prompt_token_ids)

    def has_generated(self, num_tokens: int) -> None:
        """Count tokens that the engine has made for the request."""
        self.generated += num_tokens
        self.scope.spend_tokens(num_tokens)

    def usage(self, committed_tokens: int) -> EngineUsage:
        """What was spent, given how many of the engine's tokens are part of the committed text."""
        return EngineUsage(
            calls=self.calls,
            prefilled=self.prefilled,
            cached=self.cached,
            generated=self.generated,
            discarded=self.generated - committed_tokens,
            probe=self.probe,
        )


class _MeteredStream:
    def __init__(self, meter: MeteredEngine, stream: TokenStream, prompt_tokens: int) -> None:
        self._meter, self._stream, self._prompt_tokens = meter, stream, prompt_tokens
        self._counted = self._cached = 0
        self._is_asked = self._has_begun = False
        self._watch = meter.pace.watch(prompt_tokens)

    @property
    def generated_tokens(self) -> int:
        return self._stream.generated_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenDelta:
        self._meter.scope.check_tokens()
        self._is_asked = True
        self._watch.asked()
        try:
            delta = await anext(self._stream)
        except Exception:
            self._watch.ended()
            raise
        self._watch.came(delta)
        if not self._has_begun:
            self._begin()
        told = max(0, delta.cached_tokens - self._cached)  # a remote server may tell at the end only
        self._cached += told
        self._meter.cached += told
        self._meter.prefilled -= told
        self._count()
        return delta

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._watch.ended()
            if self._is_asked and not self._has_begun:
                self._begin()  # how far the engine had come is unknown: count all of it
            self._count()

    def _begin(self) -> None:
        self._has_begun = True
        self._meter.prefilled += self._prompt_tokens

    def _count(self) -> None:
        self._meter.has_generated(self._stream.generated_tokens - self._counted)
        self._counted = self._stream.generated_tokens
