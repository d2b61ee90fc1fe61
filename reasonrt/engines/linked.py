"""An engine in another process, asked over a link: a child of this process, or an actor of a Ray cluster.

`EngineHost` is the far end, `LinkedEngine` the near end, and a `Link` lies between: `engines.local_link.LocalLink`
starts a child process, `serve.backends.ray.RayLink` asks a Ray deployment.
"""

import asyncio
import itertools
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, Self

from reasonrt.errors import EngineError, ReasonRTError
from reasonrt.ports import (
    Capability,
    ChecksDecoding,
    ChecksHealth,
    Engine,
    Reading,
    Score,
    Verified,
    calling,
    canvas_positions,
)
from reasonrt.tasks import cancel
from reasonrt.types import GREEDY, FunctionTool, ParsedAnswer, Sampling, TokenDelta

_KEPT_COUNTS = 1024
_HEARD_S = 0.2
_INNER_SHARE = 0.75  # of the time for an answer: what hangs further down is replaced there

BuildEngine = Callable[[], Engine]


class Link(Protocol):
    """To one `EngineHost`. Closing a stream, or cancelling a call, ends the work at the far end."""

    @property
    def is_running(self) -> bool:
        """Whether the far end is known to run, be it too busy to answer."""

    async def call(self, method: str, *arguments: Any, session: str = "") -> Any:
        """What the method returns.

        Args:
            session: of a stream: the call reaches the host that the stream ran in, or fails.

        Raises:
            EngineError: nobody answers, or the far end died before it had answered.
            ReasonRTError: whatever the method raised.
        """

    def stream(self, method: str, *arguments: Any, session: str = "") -> AsyncGenerator[Any, None]:
        """What the method yields; raises as `call` does."""

    def kill(self) -> None:
        """End a far end that does not answer, if that is ours to do."""

    async def aclose(self) -> None:
        """Release the far end: a process of our own ends, what others use stays. Idempotent."""


@dataclass(frozen=True, slots=True)
class EngineProperties:
    """What an engine knows of itself once it has started."""

    max_model_len: int
    capabilities: frozenset[Capability]
    fingerprint: str
    model_fingerprint: str


@dataclass(frozen=True, slots=True)
class StreamCounts:
    """What a stream tells of its work so far; see `ports.TokenStream` and `ports.canvas_positions`."""

    generated_tokens: int = 0
    passes: int = 0
    canvas_positions: int = 0


class EngineHost:
    """The far end of a link: the methods of one started engine, with arguments and results that can be pickled."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._counts: OrderedDict[str, StreamCounts] = OrderedDict()

    async def start(self) -> AsyncGenerator[EngineProperties | None, None]:
        """Yield None when the call has been heard, and the properties when the engine runs, after a death again."""
        yield None
        engine = await self._engine.start()
        yield EngineProperties(engine.max_model_len, engine.capabilities, engine.fingerprint, engine.model_fingerprint)

    async def aclose(self) -> None:
        await self._engine.aclose()

    async def answer(self, within_s: float) -> None:
        """Return when the engine has answered; see `ports.ChecksHealth`."""
        if isinstance(self._engine, ChecksHealth):
            await self._engine.check_health(within_s)

    async def generate(
        self, stream_id: str, token_ids: Sequence[int], sampling: Sampling, cache_salt: str
    ) -> AsyncGenerator[tuple[TokenDelta, int, int], None]:
        """Yield each delta with the passes and the canvas positions so far."""
        stream = self._engine.generate(token_ids, sampling, cache_salt)
        try:
            async for delta in stream:
                yield delta, stream.passes, canvas_positions(stream)
        finally:
            await stream.aclose()
            counts = StreamCounts(stream.generated_tokens, stream.passes, canvas_positions(stream))
            self._counts[stream_id] = counts
            if len(self._counts) > _KEPT_COUNTS:
                self._counts.popitem(last=False)

    async def count(self, stream_id: str) -> StreamCounts:
        """What that stream had done in the end; nothing when it is not known."""
        return self._counts.get(stream_id, StreamCounts())

    async def read(self, token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str) -> Reading:
        return await self._engine.read(token_ids, candidate_ids, cache_salt)

    async def verify(
        self, token_ids: Sequence[int], drafted_ids: Sequence[int], sampling: Sampling, cache_salt: str
    ) -> Verified:
        return await self._engine.verify(token_ids, drafted_ids, sampling, cache_salt)

    async def score(self, token_ids: Sequence[int], cache_salt: str) -> Score:
        return await self._engine.score(token_ids, cache_salt)

    async def parse_calls(self, answer: str, tools: Sequence[FunctionTool], choice: str) -> ParsedAnswer:
        return await calling(self._engine).parse_calls(answer, tools, choice)

    async def structure_of_calls(
        self, tools: Sequence[FunctionTool], choice: str, is_parallel: bool, structure: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        engine = calling(self._engine)
        return await engine.structure_of_calls(tools, choice, is_parallel=is_parallel, structure=structure)


class LinkedEngine:
    """The near end of a link: the engine port.

    Args:
        like: the same engine, never started: it lends its name, its tokenizer and, until the far end has started,
            its properties.
        link: to the far end.
    """

    def __init__(self, like: Engine, link: Link) -> None:
        self.name, self.max_model_len, self.tokenizer = like.name, like.max_model_len, like.tokenizer
        self.capabilities = like.capabilities
        self._like, self._link = like, link
        self._known: Engine | EngineProperties = like
        self._starting: asyncio.Task[None] | None = None
        self._ids = itertools.count()

    @property
    def fingerprint(self) -> str:
        return self._known.fingerprint

    @property
    def model_fingerprint(self) -> str:
        return self._known.model_fingerprint

    async def start(self) -> Self:
        """Start the far end, or wait until it has come back from a death.

        One that runs and does not answer immediately is in the middle of a long computation, and not waited for.
        """
        if self._starting is None or self._starting.done():
            self._heard = asyncio.Event()
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        if self._link.is_running:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._heard.wait(), _HEARD_S)
            if self._link.is_running and not self._heard.is_set():
                return self
        await asyncio.shield(self._starting)
        return self

    async def _start(self) -> None:
        try:
            async for properties in self._link.stream("start"):
                self._heard.set()
                if properties is not None:
                    self.max_model_len, self.capabilities = properties.max_model_len, properties.capabilities
                    self._known = properties
        finally:
            self._heard.set()

    async def aclose(self) -> None:
        await self._link.aclose()
        await cancel(self._starting)

    async def check_health(self, within_s: float) -> None:
        if not self._link.is_running:
            return  # the next call starts it, or somebody else looks after it
        try:
            async with asyncio.timeout(within_s):
                await self._link.call("answer", within_s * _INNER_SHARE)
        except TimeoutError:
            self._link.kill()
            raise EngineError(f"engine {self.name!r} has not answered for {within_s:g} s, and was killed") from None

    @property
    def call_marks(self) -> tuple[str, ...]:
        return calling(self._like).call_marks

    async def parse_calls(self, answer: str, tools: Sequence[FunctionTool], choice: str) -> ParsedAnswer:
        parsed: ParsedAnswer = await self._link.call("parse_calls", answer, list(tools), choice)
        return parsed

    async def structure_of_calls(
        self, tools: Sequence[FunctionTool], choice: str, *, is_parallel: bool, structure: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        arguments = list(tools), choice, is_parallel, dict(structure)
        held: Mapping[str, Any] = await self._link.call("structure_of_calls", *arguments)
        return held

    def check_decoding(self, decoding: Mapping[str, Any]) -> None:
        """What the near end knows: the far end was built from the same settings."""
        if isinstance(self._like, ChecksDecoding):
            self._like.check_decoding(decoding)

    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> "_LinkedStream":
        stream_id = f"{os.getpid()}-{id(self)}-{next(self._ids)}"
        return _LinkedStream(self._link, stream_id, list(prompt_token_ids), sampling, cache_salt)

    async def read(
        self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = ""
    ) -> Reading:
        reading: Reading = await self._link.call("read", list(prompt_token_ids), list(candidate_ids), cache_salt)
        return reading

    async def verify(
        self,
        prompt_token_ids: Sequence[int],
        drafted_ids: Sequence[int],
        sampling: Sampling = GREEDY,
        cache_salt: str = "",
    ) -> Verified:
        arguments = list(prompt_token_ids), list(drafted_ids), sampling, cache_salt
        written: Verified = await self._link.call("verify", *arguments)
        return written

    async def score(self, prompt_token_ids: Sequence[int], cache_salt: str = "") -> Score:
        score: Score = await self._link.call("score", list(prompt_token_ids), cache_salt)
        return score


class _LinkedStream:
    def __init__(self, link: Link, stream_id: str, prompt: list[int], sampling: Sampling, cache_salt: str) -> None:
        self._link, self._id = link, stream_id
        self._deltas = link.stream("generate", stream_id, prompt, sampling, cache_salt, session=stream_id)
        self._is_begun = self._is_over = False
        self.generated_tokens = self.passes = self.canvas_positions = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenDelta:
        if self._is_over:
            raise StopAsyncIteration
        self._is_begun = True
        try:
            delta: TokenDelta
            delta, self.passes, self.canvas_positions = await anext(self._deltas)
        except (ReasonRTError, StopAsyncIteration):
            self._is_over = True
            raise
        self.generated_tokens += len(delta.token_ids)
        self._is_over = delta.finish_reason is not None
        return delta

    async def aclose(self) -> None:
        await self._deltas.aclose()
        if self._is_begun and not self._is_over:
            self._is_over = True
            with suppress(EngineError):
                counted: StreamCounts = await self._link.call("count", self._id, session=self._id)
                self.generated_tokens = max(self.generated_tokens, counted.generated_tokens)
                self.passes = max(self.passes, counted.passes)
                self.canvas_positions = max(self.canvas_positions, counted.canvas_positions)
        self._is_over = True
