"""An engine as one request sees it: every token is counted, and no call is made over the limit."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from reasonrt.engines.whole import generate_whole
from reasonrt.pace import Pace
from reasonrt.ports import Engine, Reading, Score, TokenStream, Verified, WholeStream, calling, canvas_positions
from reasonrt.scopes import Scope
from reasonrt.types import GREEDY, EngineUsage, FinishReason, FunctionTool, ParsedAnswer, Sampling, TokenDelta


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
        self.calls = self.prefilled = self.cached = self.generated = self.probe = self.passes = self.canvas = 0

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
        if self.scope.tokens_left is not None:  # a budget ends it at a token
            sampling = replace(sampling, by_step=False)
        stream = self._engine.generate(prompt_token_ids, sampling, cache_salt or self._salt)
        return _MeteredStream(self, stream, len(prompt_token_ids))

    def generate_whole(
        self, prompt_token_ids: Sequence[int], samplings: Sequence[Sampling], cache_salt: str = ""
    ) -> "_MeteredWhole":
        self.scope.check_tokens()
        for _ in samplings:
            self.scope.take_call()
        self.calls += len(samplings)
        by_budget = [False] * len(samplings)
        if (left := self.scope.tokens_left) is not None:  # nobody looks at them before they end
            most = max(1, left // len(samplings))
            by_budget = [most < each.max_tokens for each in samplings]
            samplings = [replace(each, max_tokens=min(each.max_tokens, most)) for each in samplings]
        stream = generate_whole(self._engine, prompt_token_ids, samplings, cache_salt or self._salt)
        return _MeteredWhole(self, stream, len(prompt_token_ids), by_budget)

    async def read(
        self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = ""
    ) -> Reading:
        self._count_probe(prompt_token_ids)
        self.has_generated(1)
        self.probe += 1
        reading = await self._engine.read(prompt_token_ids, candidate_ids, cache_salt or self._salt)
        self.count_cached(min(reading.cached_tokens, len(prompt_token_ids)))
        return reading

    async def verify(
        self,
        prompt_token_ids: Sequence[int],
        drafted_ids: Sequence[int],
        sampling: Sampling = GREEDY,
        cache_salt: str = "",
    ) -> Verified:
        self._count_probe([*prompt_token_ids, *drafted_ids])
        self.has_generated(1)
        num_tokens = len(prompt_token_ids) + len(drafted_ids)
        watch = self.pace.watch(num_tokens)
        watch.asked()
        try:
            verified = await self._engine.verify(prompt_token_ids, drafted_ids, sampling, cache_salt or self._salt)
        finally:
            watch.ended()
        again = verified.passes - 1
        watch.came(TokenDelta(verified.token_ids, cached_tokens=verified.cached_tokens - again * num_tokens))
        self.passes += again
        self.prefilled += again * num_tokens
        self.count_cached(min(verified.cached_tokens, verified.passes * num_tokens))
        self.probe += verified.token_ids == tuple(drafted_ids)  # else its own token is part of the text
        return verified

    async def score(self, prompt_token_ids: Sequence[int], cache_salt: str = "") -> Score:
        self._count_probe(prompt_token_ids)
        score = await self._engine.score(prompt_token_ids, cache_salt or self._salt)
        self.count_cached(min(score.cached_tokens, len(prompt_token_ids)))
        return score

    @property
    def call_marks(self) -> tuple[str, ...]:
        return calling(self._engine).call_marks

    async def parse_calls(self, answer: str, tools: Sequence[FunctionTool], choice: str) -> ParsedAnswer:
        return await calling(self._engine).parse_calls(answer, tools, choice)

    async def structure_of_calls(
        self, tools: Sequence[FunctionTool], choice: str, *, is_parallel: bool, structure: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        engine = calling(self._engine)
        return await engine.structure_of_calls(tools, choice, is_parallel=is_parallel, structure=structure)

    def _count_probe(self, prompt_token_ids: Sequence[int]) -> None:
        self.scope.take_call()
        self.calls += 1
        self.passes += 1
        self.prefilled += len(prompt_token_ids)

    def has_generated(self, num_tokens: int) -> None:
        """Count tokens that the engine has made for the request."""
        self.generated += num_tokens
        self.scope.spend_tokens(num_tokens)

    def count_cached(self, num_tokens: int) -> None:
        """So many prompt tokens that were counted as prefilled came from the cache."""
        self.cached += num_tokens
        self.prefilled -= num_tokens

    def usage(self, committed_tokens: int) -> EngineUsage:
        """What was spent, given how many of the engine's tokens are part of the committed text."""
        return EngineUsage(
            calls=self.calls,
            prefilled=self.prefilled,
            cached=self.cached,
            generated=self.generated,
            # a step may hold tokens of a draft, within a character, that the engine has drawn too and not written
            discarded=max(0, self.generated - committed_tokens),
            probe=self.probe,
            passes=self.passes,
            canvas=self.canvas,
        )


class _Counted:
    """Adds what a stream has made since it was last looked at.

    A server may count other tokens than ours, those of its own tokenizer: no fewer are counted as generated than it has
    handed out, and no more as cached than it was asked with.
    """

    def __init__(self, meter: MeteredEngine, stream: TokenStream | WholeStream, prompt_tokens: int) -> None:
        self._meter, self._stream, self._prompt_tokens = meter, stream, prompt_tokens
        self._generated = self._passes = self._canvas = self._cached = self._handed_out = 0

    @property
    def generated_tokens(self) -> int:
        return max(self._stream.generated_tokens, self._handed_out)

    @property
    def passes(self) -> int:
        return self._stream.passes

    @property
    def canvas_positions(self) -> int:
        return canvas_positions(self._stream)

    def _count(self, cached_tokens: int, handed_out: int = 0) -> None:
        self._handed_out += handed_out
        cached_tokens = min(cached_tokens, self._prompt_tokens)
        generated, passes, canvas = self.generated_tokens, self._stream.passes, self.canvas_positions
        self._meter.has_generated(generated - self._generated)
        self._meter.passes += passes - self._passes
        self._meter.canvas += canvas - self._canvas
        # a remote server may tell what was cached at the end only
        self._meter.count_cached(max(0, cached_tokens - self._cached))
        self._generated, self._passes, self._canvas = generated, passes, canvas
        self._cached = max(self._cached, cached_tokens)


class _MeteredStream(_Counted):
    _stream: TokenStream

    def __init__(self, meter: MeteredEngine, stream: TokenStream, prompt_tokens: int) -> None:
        super().__init__(meter, stream, prompt_tokens)
        self._is_asked = self._has_begun = False
        self._watch = meter.pace.watch(prompt_tokens)

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
        self._count(delta.cached_tokens, len(delta.token_ids))
        return delta

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._watch.ended()
            if self._is_asked and not self._has_begun:
                self._begin()  # how far the engine had come is unknown: count all of it
            self._count(0)

    def _begin(self) -> None:
        self._has_begun = True
        self._meter.prefilled += self._prompt_tokens


class _MeteredWhole(_Counted):
    _stream: WholeStream

    def __init__(
        self, meter: MeteredEngine, stream: WholeStream, prompt_tokens: int, by_budget: Sequence[bool]
    ) -> None:
        """`by_budget`: which of them the budget ends, should they meet their length."""
        num, self._by_budget = len(by_budget), by_budget
        super().__init__(meter, stream, prompt_tokens * num)
        self._is_asked = False
        self._watches = [meter.pace.watch(prompt_tokens) for _ in range(num)]  # they learn no speed from what is whole

    @property
    def cached_tokens(self) -> int:
        return self._stream.cached_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, TokenDelta]:
        if not self._is_asked:
            self._is_asked = True
            self._meter.prefilled += self._prompt_tokens
            for watch in self._watches:
                watch.asked()
        try:
            index, delta = await anext(self._stream)
        except Exception:
            self._end()
            raise
        if self._by_budget[index] and delta.finish_reason is FinishReason.LENGTH:
            delta = replace(delta, finish_reason=FinishReason.BUDGET)
        self._watches[index].ended()
        self._count(self._stream.cached_tokens, len(delta.token_ids))
        return index, delta

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._end()

    def _end(self) -> None:
        for watch in self._watches:
            watch.ended()
        self._count(self._stream.cached_tokens)
