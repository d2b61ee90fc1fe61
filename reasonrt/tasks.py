"""Concurrent work that always comes to an end: cancelled and waited for, bounded in number, or up to a deadline."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")


class Expired(Exception):  # noqa: N818 (a deadline is a result, not an error)
    """The deadline of `before` has passed."""


async def cancel(*tasks: "asyncio.Future[Any] | None") -> None:
    """Cancel tasks, and wait until they have left what they were doing; whatever they raise is dropped."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def run_bounded(calls: Iterable[Callable[[], Awaitable[T]]], concurrency: int) -> AsyncGenerator[T, None]:
    """Call each of `calls`, at most `concurrency` of them concurrently; yield their results in the order they end.

    The calls are taken from their iterable as places become free. The first one that raises ends the iterator with
    its error. Closing the iterator, or its end by an error, cancels what runs.
    """
    waiting = iter(calls)
    running: set[asyncio.Future[T]] = set()
    try:
        while True:
            while len(running) < concurrency and (call := next(waiting, None)):
                running.add(asyncio.ensure_future(call()))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        await cancel(*running)


async def ahead(items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The items of `items`, which is asked for the next one whether or not the reader has taken the last.

    Closing the iterator closes `items`.
    """
    taken: asyncio.Queue[tuple[T] | None] = asyncio.Queue()

    async def take() -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    taken.put_nowait((item,))
        finally:
            taken.put_nowait(None)

    taking = asyncio.ensure_future(take())
    try:
        while (held := await taken.get()) is not None:
            yield held[0]
        await taking  # raises what has ended it
    finally:
        await cancel(taking)


async def before(deadline: float | None, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The items of `events` that come before `deadline`, in the event loop's time; None is no deadline.

    `events` is closed when this iterator ends, whatever ends it.

    Raises:
        Expired: the deadline has passed and `events` has not ended.
    """
    loop = asyncio.get_running_loop()
    async with aclosing(events):
        while True:
            if deadline is not None and loop.time() >= deadline:  # an iterator that never waits meets no timeout
                raise Expired
            try:
                async with asyncio.timeout_at(deadline) as clock:
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if clock.expired():
                    raise Expired from None
                raise  # somebody else's
            yield event
