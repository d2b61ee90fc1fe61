"""What a request may still use: a tree of scopes, in which a sub-request draws from its own and from all above it."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Self

from reasonrt.errors import RequestError
from reasonrt.ports import Allowance
from reasonrt.types import FinishReason, Limits


class LimitReached(Exception):  # noqa: N818 (a limit is a result, not an error)
    """The request has used up one of its limits; the runtime ends it.

    Attributes:
        reason: which.
    """

    def __init__(self, reason: FinishReason) -> None:
        super().__init__(f"the request has reached its limit: {reason}")
        self.reason = reason


class Scope:
    """What one request may use, of what the request that asked for it may use.

    Args:
        limits: the request's own.
        parent: the scope of the request that asks; None for one that comes from outside.
    """

    def __init__(self, limits: Limits, parent: Self | None = None) -> None:
        self._limits = limits
        self._calls_left = limits.max_engine_calls
        self._tokens_left = limits.max_generated_tokens or 0
        self._places = asyncio.Semaphore(limits.max_sub_requests)
        own = None if limits.deadline_s is None else time.monotonic() + limits.deadline_s
        deadlines = [own, parent.deadline if parent else None]
        self.deadline: float | None = min((each for each in deadlines if each is not None), default=None)
        """In the time of `time.monotonic`, which is also that of the event loop; None is no deadline."""
        self._depth_left: int = min(limits.max_depth, parent._depth_left - 1) if parent else limits.max_depth
        self._path: tuple[Scope, ...] = (self, *(parent._path if parent else ()))
        # apart from the path, since tokens are counted one delta at a time
        self._budgets: tuple[Scope, ...] = parent._budgets if parent else ()
        if limits.max_generated_tokens is not None:
            self._budgets = (self, *self._budgets)

    def take_call(self) -> None:
        """Count one engine call, before it is made.

        Raises:
            LimitReached: none is left here or above.
        """
        if self.calls_left <= 0:
            raise LimitReached(FinishReason.CALLS)
        for scope in self._path:
            scope._calls_left -= 1

    def spend_tokens(self, num_tokens: int) -> None:
        """Count tokens that an engine has generated; they are spent, whatever becomes of them."""
        for scope in self._budgets:
            scope._tokens_left -= num_tokens

    def check_tokens(self) -> None:
        """Raises: LimitReached: no generated token is left here or above."""
        for scope in self._budgets:
            if scope._tokens_left <= 0:
                raise LimitReached(FinishReason.BUDGET)

    @property
    def calls_left(self) -> int:
        return min([scope._calls_left for scope in self._path])

    @property
    def tokens_left(self) -> int | None:
        """Tokens that engines may still generate; None is no limit. It may be negative: tokens come in batches."""
        return min([scope._tokens_left for scope in self._budgets], default=None)

    @property
    def allowance(self) -> Allowance:
        tokens = self.tokens_left
        tokens = None if tokens is None else max(0, tokens)
        return Allowance(self.deadline, self.calls_left, tokens, self._depth_left)

    @asynccontextmanager
    async def nested(self, limits: Limits) -> AsyncGenerator["Scope", None]:
        """The scope of a sub-request, once there is a place for it.

        Raises:
            RequestError: sub-requests are nested too deep.
        """
        if self._depth_left <= 0:
            raise RequestError(
                f"sub-requests are nested too deep; max_depth of the request is {self._limits.max_depth}, raise it or "
                "answer without asking further"
            )
        async with self._places:
            yield Scope(limits, self)
