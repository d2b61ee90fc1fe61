"""Who may run now, who waits, and who is sent away: bounds over all callers and for each API key."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from reasonrt.serve.config import BoundsConfig
from reasonrt.serve.wire.errors import OVERLOADED, ApiError

_SMOOTHING = 0.1  # of the mean time that a request holds its place


@dataclass
class _Bucket:
    """Requests that a key has left of its rate, refilled as time passes."""

    left: float
    filled: float


class Admission:
    """Places for choices, first come, first served.

    Args:
        bounds: `running` places, `queued` that wait for at most `queue_s`, and the bounds of each key.
    """

    def __init__(self, bounds: BoundsConfig) -> None:
        self._bounds = bounds
        self.running = 0
        self.is_draining = False
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._held: Counter[str] = Counter()
        self._buckets: dict[str, _Bucket] = {}
        self._mean_s = 1.0

    @property
    def queued(self) -> int:
        return sum(num for turn, num in self._waiting if not turn.cancelled())

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.queued

    @asynccontextmanager
    async def places(self, key: str, num: int) -> AsyncGenerator[None, None]:
        """Hold `num` places (all, if there are fewer) for a request of `key`, waiting for them if need be.

        Raises:
            ApiError: 400 for what a bound of the key can never let in, 429 over one of them now, 503 over a bound of
                the server or while it shuts down.
        """
        num = min(num, self._bounds.running)
        self._check(key, num)
        self._held[key] += num
        try:
            await self._take(num)
            began = time.perf_counter()
            try:
                yield
            finally:
                self._mean_s += _SMOOTHING * (time.perf_counter() - began - self._mean_s)
                self._give_back(num)
        finally:
            self._held[key] -= num

    def _check(self, key: str, num: int) -> None:
        bounds = self._bounds
        if self.is_draining:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after_s=5.0)
        if bounds.running_per_key is not None and self._held[key] + num > bounds.running_per_key:
            message = f"this API key may have {bounds.running_per_key} choices running or waiting"
            if num > bounds.running_per_key:
                raise ApiError(400, f"{message}, and this request asks for {num}", code="concurrency_limit")
            raise ApiError(429, message, code="concurrency_limit", retry_after_s=self._mean_s)
        must_wait = self.queued > 0 or self.running + num > bounds.running
        if must_wait and self.queued + num > bounds.queued:
            wait_s = self._mean_s * (1 + self.queued / bounds.running)
            raise ApiError(503, "the server is full", code=OVERLOADED, retry_after_s=min(wait_s, 60.0))
        self._check_rate(key)

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

    async def _take(self, num: int) -> None:
        if not self.queued and self.running + num <= self._bounds.running:
            self.running += num
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, num))
        try:
            async with asyncio.timeout(self._bounds.queue_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # its turn came as it left
                self._give_back(num)
            else:
                self._wake()
            if isinstance(error, TimeoutError):
                message = f"no place became free within {self._bounds.queue_s:g} s"
                raise ApiError(503, message, code=OVERLOADED, retry_after_s=self._mean_s) from None
            raise

    def _give_back(self, num: int) -> None:
        self.running -= num
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            turn, num = self._waiting[0]
            if not turn.cancelled():
                if self.running + num > self._bounds.running:
                    return
                self.running += num
                turn.set_result(None)
            self._waiting.popleft()
