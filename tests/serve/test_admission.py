"""Places, queue and rates: bounds hold in any order of arrivals and departures, and overload is said at once."""

import asyncio
import random
import statistics
import time
from contextlib import suppress
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.serve.admission import Admission
from reasonrt.serve.config import BoundsConfig
from reasonrt.serve.wire.errors import ApiError

BODY = {"model": "target", "messages": [{"role": "user", "content": "?"}]}


@settings(deadline=None, max_examples=50)
@given(
    running=st.integers(1, 4),
    queued=st.integers(0, 4),
    visitors=st.lists(st.tuples(st.integers(1, 5), st.floats(0, 3), st.floats(0, 3), st.booleans()), max_size=12),
)
async def test_bounds_hold_whoever_comes_and_leaves(running: int, queued: int, visitors: Any) -> None:
    admission = Admission(BoundsConfig(running=running, queued=queued))
    order: list[int] = []
    unit_s = 0.001

    async def visit(index: int, num: int, arrives: float, stays: float, is_impatient: bool) -> str:
        await asyncio.sleep(arrives * unit_s)
        try:
            async with asyncio.timeout(stays * unit_s if is_impatient else None):
                async with admission.places("key", num):
                    order.append(index)
                    assert 0 < admission.running <= running
                    assert admission.queued <= queued
                    await asyncio.sleep(stays * unit_s)
                    return "served"
        except TimeoutError:
            return "left"
        except ApiError as error:
            return "sent away" if error.status == 503 and error.retry_after_s else "wrong"

    outcomes = await asyncio.gather(*(visit(index, *visitor) for index, visitor in enumerate(visitors)))

    assert "wrong" not in outcomes
    assert admission.is_idle
    assert admission.running == admission.queued == 0
    assert len(order) >= outcomes.count("served")


async def test_who_waits_is_served_in_order_of_arrival() -> None:
    admission = Admission(BoundsConfig(running=2, queued=100))
    order = []

    async def visit(index: int) -> None:
        async with admission.places("key", 1 + index % 2):
            order.append(index)
            await asyncio.sleep(0)

    await asyncio.gather(*(visit(index) for index in range(20)))

    assert order == list(range(20))


async def test_long_wait_ends_with_503() -> None:
    admission = Admission(BoundsConfig(running=1, queued=1, queue_s=0.05))

    async with admission.places("key", 1):
        with pytest.raises(ApiError, match=r"no place became free within 0\.05 s") as raised:
            async with admission.places("key", 1):
                pass

    assert raised.value.status == 503
    assert admission.is_idle


async def test_nobody_is_let_in_while_it_drains() -> None:
    admission = Admission(BoundsConfig())
    async with admission.places("key", 1):
        admission.is_draining = True

        with pytest.raises(ApiError, match="shutting down"):
            async with admission.places("key", 1):
                pass

        assert not admission.is_idle
    assert admission.is_idle


async def test_request_larger_than_the_server_runs_alone() -> None:
    admission = Admission(BoundsConfig(running=2, queued=0))

    async with admission.places("key", 5):
        assert admission.running == 2


async def test_more_than_a_key_may_ever_have_is_not_to_be_tried_again() -> None:
    admission = Admission(BoundsConfig(running=8, running_per_key=3))

    async with admission.places("key", 3):  # as many as it may
        pass
    with pytest.raises(ApiError, match="may have 3 choices running or waiting, and this request asks for 4") as raised:
        async with admission.places("key", 4):
            pass

    assert raised.value.status == 400
    assert raised.value.response().headers["x-should-retry"] == "false"


def test_overload_is_answered_at_once_and_leaves_no_trace(start: Any) -> None:
    """Four times as many as there is room for; who is let in is as fast as alone."""
    server = start("a b c.\n\n" * 20, engine={"seconds_per_token": 0.002}, bounds={"running": 8, "queued": 2})
    dice = random.Random(1)

    async def ask(client: httpx.AsyncClient, wait_s: float) -> tuple[int, float, httpx.Headers]:
        await asyncio.sleep(wait_s)
        began = time.perf_counter()
        answer = await client.post("/v1/chat/completions", json=BODY)
        return answer.status_code, time.perf_counter() - began, answer.headers

    async def burst(num: int, seconds: float) -> list[tuple[int, float, httpx.Headers]]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=server.url, timeout=30, limits=limits) as client:
            return await asyncio.gather(*(ask(client, dice.uniform(0, seconds)) for _ in range(num)))

    alone = statistics.median(seconds for _, seconds, _ in asyncio.run(burst(4, 2.0)))
    answers = asyncio.run(burst(64, 2 * alone))
    after = asyncio.run(burst(4, 2.0))

    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 16
    assert all("retry-after" in headers for status, _, headers in answers if status == 503)
    assert [status for status, _, _ in after] == [200] * 4
    assert server.working == 0
    with suppress(httpx.HTTPError):
        assert httpx.get(server.url + "/ready").status_code == 200
