"""Concurrent work comes to an end: its items, its errors and its leftovers."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.tasks import Expired, ahead, before, gather


async def counting(asked: list[int], fails_at: int = 5, closed: list[bool] | None = None) -> AsyncGenerator[int, None]:
    try:
        for number in range(5):
            asked.append(number)
            if number == fails_at:
                raise ValueError("no more")
            await asyncio.sleep(0)
            yield number
    finally:
        if closed is not None:
            closed.append(True)


async def test_what_is_ahead_does_not_wait_for_its_reader() -> None:
    asked: list[int] = []
    read = []

    give_up = time.monotonic() + 60
    async for number in ahead(counting(asked)):
        read.append(number)
        while len(asked) < 5:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.001)

    assert read == [0, 1, 2, 3, 4]


async def test_error_comes_after_the_items_before_it() -> None:
    items = ahead(counting([], fails_at=3))

    assert [await anext(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no more"):
        await anext(items)


async def test_leaving_closes_what_is_ahead() -> None:
    closed: list[bool] = []

    async with aclosing(ahead(counting([], closed=closed))) as items:
        await anext(items)

    assert closed == [True]


async def waiting(pauses_ms: list[int], closed: list[bool]) -> AsyncGenerator[int, None]:
    try:
        for number, pause_ms in enumerate(pauses_ms):
            await asyncio.sleep(pause_ms / 1000)
            yield number
    finally:
        closed.append(True)


@given(
    pauses_ms=st.lists(st.sampled_from([0, 0, 1, 60]), max_size=5),
    reader_ms=st.sampled_from([0, 0, 60]),
    deadlines_ms=st.lists(st.sampled_from([20, 20, 10_000]), min_size=1, max_size=3),
    is_by_tasks=st.booleans(),
)
@settings(deadline=None, max_examples=40)
async def test_a_deadline_ends_what_waits_and_nothing_else(
    pauses_ms: list[int], reader_ms: int, deadlines_ms: list[int], is_by_tasks: bool
) -> None:
    """Nested ones too, whoever asks for each item, wherever it is met: in a wait, or between two."""
    closed, read, now = list[bool](), list[int](), asyncio.get_running_loop().time()
    items = waiting(pauses_ms, closed)
    for deadline_ms in deadlines_ms:
        items = before(now + deadline_ms / 1000, items)
    is_late = False
    try:
        while True:
            read.append(await (asyncio.ensure_future(anext(items)) if is_by_tasks else anext(items)))
            await asyncio.sleep(reader_ms / 1000)
    except StopAsyncIteration:
        pass
    except Expired:
        is_late = True
    took_ms = 1000 * (asyncio.get_running_loop().time() - now)

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # nothing is left to be cancelled
    assert read == [*range(len(read))]
    assert not is_late or took_ms >= min(deadlines_ms) - 1
    assert is_late or len(read) == len(pauses_ms)
    assert closed or not read


async def test_whoever_is_cancelled_in_a_wait_is_not_late() -> None:
    closed = list[bool]()
    reading = asyncio.ensure_future(anext(before(asyncio.get_running_loop().time() + 10, waiting([5000], closed))))
    await asyncio.sleep(0.01)

    reading.cancel()

    with pytest.raises(asyncio.CancelledError):
        await reading
    assert closed == [True]


async def test_after_the_first_error_nothing_that_was_gathered_runs_on() -> None:
    ended = list[str]()

    async def work(name: str, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
            if name == "fails":
                raise ZeroDivisionError
            return name
        finally:
            ended.append(name)

    assert await gather(work("b", 0.01), work("a", 0)) == ["b", "a"]
    ended.clear()
    with pytest.raises(ZeroDivisionError):
        await gather(work("long", 60), work("fails", 0.01))
    assert sorted(ended) == ["fails", "long"]
