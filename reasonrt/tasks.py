"""Concurrent work that always comes to an end: cancelled and waited for, bounded in number, or up to a deadline.

`LoopThread` lets code without an event loop, or inside of another one, wait for such work; `read_text` keeps long texts
from an event loop that has other work.
"""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, TypeVar, TypeVarTuple

from reasonrt.errors import EngineError

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

LONG_CHARACTERS = 32 << 10
"""A text of more takes longer to read or tokenize than an event loop should keep its other work waiting."""

_END: Any = object()
_reading = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2), "reading")  # some cores are left to the event loop


class Expired(Exception):  # noqa: N818 (a deadline is a result, not an error)
    """The deadline of `before` has passed."""


async def cancel(*tasks: "asyncio.Future[Any] | None") -> None:
    """Cancel tasks, and wait until they have left what they were doing; whatever they raise is dropped."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def gather(*calls: Awaitable[T]) -> list[T]:
    """The results in the order of the calls, which run concurrently; after the first error none of them runs on."""
    running = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*running)
    finally:
        await cancel(*running)


async def read_text(num_characters: int, read: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
    """`read(*arguments)`, in a thread where the text that it reads or tokenizes is long."""
    if num_characters <= LONG_CHARACTERS:
        return read(*arguments)
    return await asyncio.get_running_loop().run_in_executor(_reading, read, *arguments)


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
        if deadline is None:
            async for event in events:
                yield event
            return
        alarm = _Alarm(loop, deadline)
        try:
            while True:
                if loop.time() >= deadline:  # an iterator that never waits meets no alarm
                    raise Expired
                try:
                    with alarm:
                        event = await anext(events)
                except StopAsyncIteration:
                    return
                yield event
        finally:
            alarm.off()


class _Alarm:
    """As `asyncio.timeout_at` for one wait after the other, with one timer for all of them.

    Raises (at the end of a wait):
        Expired: the wait was ended by it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        self._timer = loop.call_at(at, self._ring)
        self._waiting: asyncio.Task[Any] | None = None
        self._cancelling, self._has_rung = 0, False  # cancelled by others, before it waits; by this

    def off(self) -> None:
        self._timer.cancel()

    def _ring(self) -> None:
        if self._waiting is not None:
            self._has_rung = self._waiting.cancel()

    def __enter__(self) -> None:
        self._waiting = task = asyncio.current_task()
        self._cancelling = task.cancelling() if task else 0

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        task, self._waiting = self._waiting, None
        if self._has_rung and task and task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise Expired from None


class LoopThread:
    """An event loop in a thread of its own, for callers that have none, or that a running one has called.

    The thread does not keep the interpreter from ending.
    """

    def __init__(self, name: str) -> None:
        ready: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name=name, daemon=True)
        self._thread.start()
        self._loop = ready.result()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, awaited in the loop; Ctrl-C cancels it, and waits until it has left.

        Raises:
            EngineError: the loop was closed.
        """
        if self._loop.is_closed():
            work.close()
            raise EngineError("it was closed; ask before that")
        task = asyncio.run_coroutine_threadsafe(_begin(work), self._loop).result()
        try:
            return asyncio.run_coroutine_threadsafe(_result(task), self._loop).result()
        except KeyboardInterrupt:
            asyncio.run_coroutine_threadsafe(cancel(task), self._loop).result()
            raise

    def iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """The items, one by one; leaving the iterator closes `items`."""
        try:
            while (item := self.run(_next(items))) is not _END:
                yield item
        finally:
            if not self._loop.is_closed():  # with it, they were
                self.run(items.aclose())

    def close(self) -> None:
        """Cancel what still runs in the loop, and end the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @staticmethod
    def _run(ready: "Future[asyncio.AbstractEventLoop]") -> None:
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            loop.call_soon(ready.set_result, loop)
            loop.run_forever()


async def _begin(work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    return asyncio.create_task(work)


async def _result(task: "asyncio.Task[T]") -> T:
    return await task


async def _next(items: AsyncGenerator[T, None]) -> T:
    return await anext(items, _END)
