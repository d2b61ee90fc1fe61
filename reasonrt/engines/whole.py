"""Whole generations of an engine that streams: the caller gets each one once, when it has ended."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Self

from reasonrt.errors import EngineError
from reasonrt.ports import Engine, GeneratesWhole, TokenStream, WholeStream, canvas_positions
from reasonrt.tasks import cancel
from reasonrt.types import Sampling, TokenDelta


def generate_whole(
    engine: Engine, prompt_token_ids: Sequence[int], samplings: Sequence[Sampling], cache_salt: str = ""
) -> WholeStream:
    """The engine's own `generate_whole`; of one that has none, its streams put together."""
    if isinstance(engine, GeneratesWhole):
        return engine.generate_whole(prompt_token_ids, samplings, cache_salt)
    return JoinedStreams([engine.generate(prompt_token_ids, sampling, cache_salt) for sampling in samplings])


class JoinedStreams:
    """The generations of `streams`, which run concurrently; of those that end together, the first comes first."""

    def __init__(self, streams: Sequence[TokenStream]) -> None:
        self._streams = streams
        self._cached = [0] * len(streams)
        self._ended = self._run()

    @property
    def generated_tokens(self) -> int:
        return sum(stream.generated_tokens for stream in self._streams)

    @property
    def cached_tokens(self) -> int:
        return sum(self._cached)

    @property
    def passes(self) -> int:
        return sum(stream.passes for stream in self._streams)

    @property
    def canvas_positions(self) -> int:
        return sum(map(canvas_positions, self._streams))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, TokenDelta]:
        return await anext(self._ended)

    async def aclose(self) -> None:
        await self._ended.aclose()

    async def _run(self) -> AsyncGenerator[tuple[int, TokenDelta], None]:
        tasks = [asyncio.create_task(self._drained(index)) for index in range(len(self._streams))]
        running = set(tasks)
        try:
            while running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for ended in sorted([task.result() for task in done], key=lambda item: item[0]):
                    yield ended
        finally:
            await cancel(*tasks)  # those that failed together with the first one as well: their errors are read

    async def _drained(self, index: int) -> tuple[int, TokenDelta]:
        deltas: list[TokenDelta] = []
        async with aclosing(self._streams[index]) as stream:
            async for delta in stream:
                deltas.append(delta)
                self._cached[index] = max(self._cached[index], delta.cached_tokens)
        if not deltas or deltas[-1].finish_reason is None:
            raise EngineError("the engine ended a generation without a reason; see its log and try again")
        return index, joined(deltas)


def joined(deltas: Sequence[TokenDelta]) -> TokenDelta:
    """The deltas of one generation, at least one, as a single one."""
    return TokenDelta(
        tuple([token_id for delta in deltas for token_id in delta.token_ids]),
        tuple([logprob for delta in deltas for logprob in delta.logprobs]),
        deltas[-1].finish_reason,
        max(delta.cached_tokens for delta in deltas),
        tuple([place for delta in deltas for place in delta.top_logprobs]),
        tuple([place for delta in deltas for place in delta.top_token_ids]),
    )
