"""Concurrent work comes to an end: its items, its errors and its leftovers."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from reasonrt.tasks import ahead


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

    async for number in ahead(counting(asked)):
        read.append(number)
        await asyncio.sleep(0.01)
        assert len(asked) == 5

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
