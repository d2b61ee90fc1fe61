"""Places, queue and rates: bounds hold in any order of arrivals and departures, and overload is said at once."""

import asyncio
import random
import threading
import time
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.serve.admission import Admission, Shares
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
                async with admission.places("key", num) as concurrency:
                    order.append(index)
                    assert concurrency == min(num, running)
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


@pytest.mark.parametrize(("queue_s", "most_s"), [(0.05, None), (30, 0.05)], ids=["of any", "with a deadline"])
async def test_long_wait_ends_with_503(queue_s: float, most_s: float | None) -> None:
    admission = Admission(BoundsConfig(running=1, queued=1, queue_s=queue_s))

    async with admission.places("key", 1):
        with pytest.raises(ApiError, match=r"no place became free within 0\.05 s") as raised:
            async with admission.places("key", 1, most_s=most_s):
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


async def test_choices_of_a_request_larger_than_the_server_take_turns() -> None:
    admission = Admission(BoundsConfig(running=5, queued=0))

    async with admission.places("key", 8, streams=2) as concurrency:
        assert (concurrency, admission.running) == (2, 4)


async def test_a_choice_larger_than_the_server_is_refused() -> None:
    admission = Admission(BoundsConfig(running=4, running_per_key=512))

    with pytest.raises(ApiError, match="one choice runs 64 generations concurrently, and this server has 4") as raised:
        async with admission.places("key", 8, streams=64):
            pass

    assert raised.value.status == 400


async def test_one_key_leaves_a_quarter_of_the_places_and_half_of_the_queue() -> None:
    admission = Admission(BoundsConfig(running=4, queued=4), num_keys=2)
    async with asyncio.TaskGroup() as group, admission.places("ada", 3):

        async def visit() -> None:
            async with admission.places("ada", 1):
                pass

        for _ in range(2):
            group.create_task(visit())
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="half of all that wait are requests of this API key") as raised:
            await visit()
        async with admission.places("bob", 1):  # although others wait
            pass

    assert raised.value.status == 429
    assert admission.is_idle


async def test_more_than_a_key_may_ever_have_is_not_to_be_tried_again() -> None:
    admission = Admission(BoundsConfig(running=8, running_per_key=3))

    async with admission.places("key", 3):  # as many as it may
        pass
    with pytest.raises(
        ApiError, match="may have 3 generations running or waiting, and this request asks for 4"
    ) as raised:
        async with admission.places("key", 4):
            pass

    assert raised.value.status == 400
    assert raised.value.response().headers["x-should-retry"] == "false"


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


class Takers:
    """Tasks that take shares and hold them until they are told to leave."""

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self.served: list[int] = []
        self.kept: dict[int, tuple[str, int]] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    def come(self, index: int, key: str, num: int) -> None:
        async def take() -> None:
            await self.shares.take(key, num)
            self.served.append(index)
            self.kept[index] = key, num

        self.tasks[index] = asyncio.create_task(take())

    def leave(self, index: int) -> None:
        self.tasks.pop(index).cancel()
        if index in self.kept:
            self.shares.give_back(*self.kept.pop(index))


class Oracle:
    """Who is served, in which order: by lists alone."""

    def __init__(self, total: int, per_key: int) -> None:
        self.total, self.per_key = total, per_key
        self.waiting: list[tuple[int, str, int]] = []
        self.rotation: list[str] = []
        self.held: dict[int, tuple[str, int]] = {}
        self.served: list[int] = []

    def come(self, index: int, key: str, num: int) -> None:
        self.waiting.append((index, key, num))
        if key not in self.rotation:
            self.rotation.append(key)
        self._serve()

    def leave(self, index: int) -> None:
        self.held.pop(index, None)
        self.waiting = [waiting for waiting in self.waiting if waiting[0] != index]
        self._serve()

    def _serve(self) -> None:
        while True:
            self.rotation = [key for key in self.rotation if any(waiting[1] == key for waiting in self.waiting)]
            for key in self.rotation:
                first = next(waiting for waiting in self.waiting if waiting[1] == key)
                own = sum(num for owner, num in self.held.values() if owner == key)
                if own == 0 or own + first[2] <= self.per_key:
                    break
            else:
                return
            if sum(num for _, num in self.held.values()) + first[2] > self.total:
                return
            self.waiting.remove(first)
            self.rotation.remove(key)
            self.rotation.append(key)
            self.held[first[0]] = key, first[2]
            self.served.append(first[0])


visits = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.integers(0, 30)), max_size=30)


@settings(deadline=None, max_examples=100)
@given(total=st.integers(6, 9), per_key=st.integers(3, 9), visits=visits)
async def test_keys_are_served_in_turn_exactly_as_an_oracle_says(total: int, per_key: int, visits: Any) -> None:
    """Each visitor comes and then somebody leaves, whether that one has been served or still waits."""
    takers, oracle = Takers(Shares(total, per_key)), Oracle(total, per_key)

    for index, (key, num, leaver) in enumerate(visits):
        takers.come(index, key, num)
        oracle.come(index, key, num)
        await settle()
        if leaver in takers.tasks:
            takers.leave(leaver)
            oracle.leave(leaver)
            await settle()
        assert takers.served == oracle.served
        assert takers.shares.used == sum(num for _, num in oracle.held.values())
        assert takers.shares.queued == sum(num for _, _, num in oracle.waiting)
    while takers.tasks:  # who is served leaves: then all are
        index = next(index for index in takers.tasks if index in takers.kept)
        takers.leave(index)
        await settle()

    assert (takers.shares.used, takers.shares.queued) == (0, 0)


@settings(deadline=None, max_examples=100)
@given(steps=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.integers(0, 20), st.integers(0, 3))))
async def test_no_place_is_lost_whoever_leaves_at_whatever_moment(steps: Any) -> None:
    """Between two steps the event loop turns as often as the step says: a turn may come as its request leaves."""
    takers = Takers(Shares(4, 3))

    for index, (key, num, leaver, num_turns) in enumerate(steps):
        takers.come(index, key, num)
        for _ in range(num_turns):
            await asyncio.sleep(0)
        if leaver in takers.tasks:
            takers.leave(leaver)
        assert takers.shares.used <= 4
    await settle()
    assert takers.shares.used == sum(num for _, num in takers.kept.values())
    for index in list(takers.tasks):
        takers.leave(index)
    await settle()

    assert (takers.shares.used, takers.shares.queued) == (0, 0)
    assert takers.shares.has_room("a", 4)


def test_one_key_starves_no_other(start: Any) -> None:
    """Thirty-two connections of one key, eight of them streams of eight choices that nobody reads."""
    long = ("x" * 2000 + "\n\n") * 40
    server = start(
        lambda prompt, sampling: long if "long" in prompt else "7",
        engine={"max_model_len": 1 << 20, "chunk_tokens": 2002},
        api_keys={"ada": "a" * 16, "bob": "b" * 16},
        bounds={"running": 32, "queued": 32, "max_tokens": 1 << 19},
        connections={"write_s": 5.0},
    )
    long_streams = {"stream": True, "n": 8, "max_tokens": 1 << 19, "messages": [{"role": "user", "content": "long"}]}
    unread = [server.connect(receive_bytes=4096) for _ in range(32)]
    for index, connection in enumerate(unread):
        connection.sendall(server.raw(BODY | (long_streams if index < 8 else {}), key="a" * 16))
    server.wait_until(lambda: server.admission.running >= 24)

    with httpx.Client(headers={"authorization": f"Bearer {'b' * 16}"}, timeout=60) as bob:
        statuses = [bob.post(f"{server.url}/v1/chat/completions", json=BODY).status_code for _ in range(40)]

    assert statuses == [200] * 40
    for connection in unread:
        connection.close()
    server.wait_until(lambda: server.admission.is_idle)


def test_choices_take_turns_where_places_are_few(start: Any) -> None:
    server = start("a b c.\n\n" * 5, engine={"seconds_per_token": 0.005}, bounds={"running": 2})
    most = 0
    answers: list[Any] = []

    def ask() -> None:
        answers.append(server.http().post("/v1/chat/completions", json=BODY | {"n": 5}).json())

    asking = threading.Thread(target=ask)
    asking.start()
    while asking.is_alive():
        most = max(most, server.working)
        time.sleep(0.001)

    assert most == 2
    assert [choice["index"] for choice in answers[0]["choices"]] == list(range(5))
    assert len({choice["message"]["content"] for choice in answers[0]["choices"]}) == 1


def test_a_body_waits_unread_until_there_is_room_for_it(start: Any) -> None:
    server = start(bounds={"bodies_bytes": 1 << 20})
    with server.connect() as first:
        first.sendall(server.raw("begun", num_bytes=1 << 20))
        server.wait_until(lambda: server.admission.body_bytes == 1 << 20)
        answers: list[int] = []
        second = threading.Thread(
            target=lambda: answers.append(server.http().post("/v1/chat/completions", json=BODY).status_code)
        )
        second.start()
        second.join(0.2)
        assert not answers
    second.join(60)

    assert answers == [200]


def test_overload_is_answered_and_leaves_no_trace(start: Any) -> None:
    """Six times as many as there is room for come within the time that one takes."""
    running, queued = 8, 2
    engine = {"seconds_per_token": 0.02}
    server = start("a b c.\n\n" * 20, engine=engine, bounds={"running": running, "queued": queued})
    dice = random.Random(1)

    async def ask(client: httpx.AsyncClient, wait_s: float) -> tuple[int, httpx.Headers]:
        await asyncio.sleep(wait_s)
        answer = await client.post("/v1/chat/completions", json=BODY)
        return answer.status_code, answer.headers

    async def burst(num: int, seconds: float) -> list[tuple[int, httpx.Headers]]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(ask(client, dice.uniform(0, seconds)) for _ in range(num)))

    answers = asyncio.run(burst(64, 1.0))
    after = asyncio.run(burst(4, 1.0))

    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= running + queued
    assert all("retry-after" in headers for status, headers in answers if status == 503)
    assert [status for status, _ in after] == [200] * 4
    assert server.working == 0
    assert httpx.get(server.url + "/ready", timeout=60).status_code == 200
