"""Who may run now, who waits, and who is sent away: bounds over all callers and for each API key."""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from reasonrt.serve.config import BoundsConfig
from reasonrt.serve.wire.errors import OVERLOADED, ApiError, draining

_SMOOTHING = 0.1  # of the mean time that a request holds its places
_LEAST_BYTES = 1 << 16  # that any request takes, however small its body


def most_of_one_key(total: int, num_keys: int) -> int:
    """How much of `total` one key may hold: a quarter is left to the others, if there are any."""
    return total - total // 4 if num_keys > 1 else total


class Admission:
    """Places for generations and room for bodies, shared among keys.

    Args:
        bounds: `running` places, `queued` that wait for at most `queue_s`, and the bounds of each key.
        num_keys: how many there are; a single one has all of it.
    """

    def __init__(self, bounds: BoundsConfig, num_keys: int = 1) -> None:
        self._bounds = bounds
        self._places = Shares(bounds.running, most_of_one_key(bounds.running, num_keys))
        self._bodies = Shares(bounds.bodies_bytes, most_of_one_key(bounds.bodies_bytes, num_keys))
        self.is_draining = False
        self._held: Counter[str] = Counter()
        self._buckets: dict[str, _Bucket] = {}
        self._mean_s = 1.0

    @property
    def running(self) -> int:
        return self._places.used

    @property
    def queued(self) -> int:
        return self._places.queued

    @property
    def body_bytes(self) -> int:
        """That requests hold, from before their body is read until they have been answered."""
        return self._bodies.used

    @property
    def is_idle(self) -> bool:
        """Whether no request is here, from before its body is read until it has been answered."""
        return not self.running and not self.queued and not self.body_bytes

    @asynccontextmanager
    async def room(self, key: str, num_bytes: int) -> "AsyncGenerator[Room, None]":
        """Let a request of `key` in, with room for its body; before anything of it is read.

        Args:
            num_bytes: that the body has, or may have at most where nobody knows.

        Raises:
            ApiError: as `places`, for what would not even get one of them.
        """
        self._check(key, 1)
        self._check_rate(key)
        room = Room(self._bodies, key, min(max(num_bytes, _LEAST_BYTES), self._bodies.total))
        self._check_queue(self._bodies, key, room.num_bytes, self._bodies.total)
        await self._take(self._bodies, key, room.num_bytes)
        try:
            yield room
        finally:
            self._bodies.give_back(key, room.num_bytes)

    @asynccontextmanager
    async def places(
        self, key: str, num_choices: int, streams: int = 1, most_s: float | None = None
    ) -> AsyncGenerator[int, None]:
        """Hold the places of a request of `key`, waiting for them if need be; yields how many of its choices may run
        concurrently: all of them, unless there are fewer places.

        Args:
            streams: generations that one choice runs concurrently, each of which takes a place.
            most_s: that it may wait, if that is less than any request may; it has a deadline.

        Raises:
            ApiError: 400 for what a bound can never let in, 429 over one of the key now, 503 over a bound of the server
                or while it shuts down.
        """
        if streams > self._places.total:
            message = f"one choice runs {streams} generations concurrently, and this server has {self._places.total}"
            raise ApiError(400, f"{message} places (serve.bounds.running); ask for fewer", code="concurrency_limit")
        most = self._bounds.running_per_key
        if most is not None and num_choices * streams > most:
            message = f"this API key may have {most} generations running or waiting, and this request asks for"
            raise ApiError(400, f"{message} {num_choices * streams}", code="concurrency_limit")
        num_choices = min(num_choices, max(1, self._places.per_key // streams))
        num = num_choices * streams
        self._check(key, num)
        self._held[key] += num
        try:
            await self._take(self._places, key, num, most_s)
            began = time.perf_counter()
            try:
                yield num_choices
            finally:
                self._mean_s += _SMOOTHING * (time.perf_counter() - began - self._mean_s)
                self._places.give_back(key, num)
        finally:
            self._held[key] -= num

    def _check(self, key: str, num: int) -> None:
        bounds = self._bounds
        if self.is_draining:
            raise draining()
        if bounds.running_per_key is not None and self._held[key] + num > bounds.running_per_key:
            message = f"this API key may have {bounds.running_per_key} generations running or waiting"
            raise ApiError(429, message, code="concurrency_limit", retry_after_s=self._mean_s)
        self._check_queue(self._places, key, num, bounds.queued)

    def _check_queue(self, shares: "Shares", key: str, num: int, most: int) -> None:
        if shares.has_room(key, num):
            return
        per_key = (most + 1) // 2 if shares.per_key < shares.total else most
        wait_s = min(self._mean_s * (1 + shares.queued / shares.total), 60.0)
        if shares.queued + num > most:
            raise ApiError(503, "the server is full", code=OVERLOADED, retry_after_s=wait_s)
        if shares.queued_by[key] and shares.queued_by[key] + num > per_key:
            message = "half of all that wait are requests of this API key"
            raise ApiError(429, message, code="concurrency_limit", retry_after_s=wait_s)

    def _check_rate(self, key: str) -> None:
        per_minute = self._bounds.requests_per_minute_per_key
        if per_minute is None:
            return
        now = time.monotonic()
        bucket = self._buckets.setdefault(key, _Bucket(max(1.0, per_minute), now))
        bucket.left = min(max(1.0, per_minute), bucket.left + (now - bucket.filled) * per_minute / 60)
        bucket.filled = now
        if bucket.left < 1:
            wait_s = (1 - bucket.left) * 60 / per_minute
            message = f"this API key may send {per_minute:g} requests per minute"
            raise ApiError(429, message, code="rate_limit", retry_after_s=wait_s)
        bucket.left -= 1

    async def _take(self, shares: "Shares", key: str, num: int, most_s: float | None = None) -> None:
        wait_s = min(self._bounds.queue_s, most_s or math.inf)
        try:
            async with asyncio.timeout(wait_s):
                await shares.take(key, num)
        except TimeoutError:
            message = f"no place became free within {wait_s:g} s"
            raise ApiError(503, message, code=OVERLOADED, retry_after_s=self._mean_s) from None


class Shares:
    """A number of equal things, such as places, that requests take and give back.

    Who waits is served in turn by key, and within a key in order of arrival. Whose turn it is, is waited for, however
    much it takes; a key that holds as much as one key may is passed over until it gives something back.

    Args:
        total: of them.
        per_key: the most that one key holds; a request for more is served while its key holds nothing else.
    """

    def __init__(self, total: int, per_key: int) -> None:
        self.total, self.per_key = total, per_key
        self.used = self.queued = 0
        self.queued_by: Counter[str] = Counter()
        self._used_by: Counter[str] = Counter()
        self._waiting: dict[str, deque[_Turn]] = {}  # by key; the one whose turn it is comes first

    def has_room(self, key: str, num: int) -> bool:
        """Whether `take` would not wait."""
        has_turn = self._next() is None and key not in self._waiting
        return has_turn and self._may_hold(key, num) and self.used + num <= self.total

    async def take(self, key: str, num: int) -> None:
        """Wait for `num` of them, at most `total`. Whoever is cancelled meanwhile holds none."""
        turn = _Turn(asyncio.get_running_loop().create_future(), num)
        self._waiting.setdefault(key, deque()).append(turn)
        self._count_queued(key, num)
        self._wake()
        try:
            await turn.came
        except BaseException:
            if turn in self._waiting.get(key, ()):
                self._waiting[key].remove(turn)
                self._count_queued(key, -num)
                if not self._waiting[key]:
                    del self._waiting[key]
                self._wake()
            elif not turn.came.cancelled():  # it came as its request left
                self.give_back(key, num)
            raise

    def give_back(self, key: str, num: int) -> None:
        self._count_used(key, -num)
        self._wake()

    def _wake(self) -> None:
        while (key := self._next()) is not None and self.used + self._waiting[key][0].num <= self.total:
            turns = self._waiting.pop(key)
            turn = turns.popleft()
            if turns:
                self._waiting[key] = turns  # after the other keys
            self._count_queued(key, -turn.num)
            if not turn.came.cancelled():
                self._count_used(key, turn.num)
                turn.came.set_result(None)

    def _next(self) -> str | None:
        """The key whose turn it is; None where every key that waits holds as much as it may."""
        return next((key for key, turns in self._waiting.items() if self._may_hold(key, turns[0].num)), None)

    def _may_hold(self, key: str, num: int) -> bool:
        return not self._used_by[key] or self._used_by[key] + num <= self.per_key

    def _count_queued(self, key: str, num: int) -> None:
        self.queued += num
        self.queued_by[key] += num

    def _count_used(self, key: str, num: int) -> None:
        self.used += num
        self._used_by[key] += num


class Room:
    """What one body holds of the memory for all of them."""

    def __init__(self, shares: Shares, key: str, num_bytes: int) -> None:
        self._shares, self._key, self.num_bytes = shares, key, num_bytes

    def shrink(self, num_bytes: int) -> None:
        """Give back what is over `num_bytes`, once it is known that no more will come."""
        spare = self.num_bytes - max(num_bytes, _LEAST_BYTES)
        if spare > 0:
            self.num_bytes -= spare
            self._shares.give_back(self._key, spare)


@dataclass(eq=False)
class _Turn:
    came: "asyncio.Future[None]"
    num: int


@dataclass
class _Bucket:
    """Requests that a key has left of its rate, refilled as time passes."""

    left: float
    filled: float
