"""What one cell has used so far, and the host's clock over it."""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

from reasonrt.programs.sandbox.base import CellLimits, CellStopped
from reasonrt.programs.sandbox.output import Output

MAX_NAMES = 10_000
CALL_OVERHEAD_S = 0.001  # of the host's clock, which cannot tell a pipe from a program

T = TypeVar("T")


class TimeUp(Exception):  # noqa: N818 (a limit is a result, not an error)
    """The host's clock ran out."""


class Turn:
    """One cell's use of its limits.

    Args:
        grace_s: what the worker gets beyond its limit, to stop by itself.
    """

    def __init__(self, limits: CellLimits, output: Output | None = None, grace_s: float = 0.0) -> None:
        self.limits = limits
        self.output = output or Output(limits.output_characters)
        self.num_calls = 0
        self.seconds = 0.0
        self._grace_s = grace_s
        self._num_questions = 0

    @property
    def time_up(self) -> str:
        return f"timed out: it ran longer than {self.limits.cell_s:g} s"

    @property
    def out_of_memory(self) -> str:
        return f"out of memory: it needed more than {self.limits.memory_bytes} bytes"

    def count_question(self) -> None:
        """Names and modules are asked for too; they are cheap, and not free."""
        self._num_questions += 1
        if self._num_questions - self.num_calls > MAX_NAMES:
            raise CellStopped(f"it asked the host for more than {MAX_NAMES} names")

    def count_call(self) -> None:
        self.num_calls += 1
        if self.num_calls > self.limits.max_calls:
            raise CellStopped(f"it made more than {self.limits.max_calls} host calls")

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Time that is the program's."""
        since = perf_counter()
        try:
            yield
        finally:
            self.seconds += perf_counter() - since

    async def clocked(self, work: Awaitable[T]) -> T:
        """Wait for the worker, on the program's time.

        Raises:
            TimeUp: it has none left.
        """
        overhead_s = CALL_OVERHEAD_S * max(self._num_questions, self.num_calls)
        with self.clock():
            try:
                async with asyncio.timeout(self.limits.cell_s + self._grace_s + overhead_s - self.seconds) as timeout:
                    return await work
            except TimeoutError:
                if timeout.expired():
                    raise TimeUp from None
                raise
