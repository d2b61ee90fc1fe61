"""What a request may still use, of what the request that asked for it may use."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt import Limits
from reasonrt.errors import RequestError
from reasonrt.scopes import LimitReached, Scope

BUDGETS = st.none() | st.integers(1, 30)


@given(
    calls=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    budgets=st.lists(BUDGETS, min_size=4, max_size=4),
    spent=st.lists(st.integers(1, 5), max_size=20),
)
def test_every_scope_holds_for_all_below_it(calls: list[int], budgets: list[int | None], spent: list[int]) -> None:
    scope: Scope | None = None
    path = []
    for max_calls, budget in zip(calls, budgets, strict=False):
        scope = Scope(Limits(max_engine_calls=max_calls, max_generated_tokens=budget, max_depth=9), scope)
        path.append(scope)

    taken, used = 0, 0
    known = [budget for budget in budgets[: len(path)] if budget is not None]
    for tokens in spent:
        if known and used >= min(known):
            with pytest.raises(LimitReached, match="budget"):
                path[-1].check_tokens()
            break
        path[-1].check_tokens()
        if taken == min(calls):
            with pytest.raises(LimitReached, match="calls"):
                path[-1].take_call()
            break
        path[-1].take_call()
        path[-1].spend_tokens(tokens)
        taken, used = taken + 1, used + tokens

    assert taken <= min(calls)
    assert path[-1].calls_left == min(calls) - taken
    assert path[-1].tokens_left == (min(known) - used if known else None)
    assert path[0].calls_left == calls[0] - taken
    left = path[-1].allowance
    assert (left.engine_calls, left.deadline, left.depth) == (min(calls) - taken, None, 10 - len(path))
    assert left.generated_tokens == (max(0, min(known) - used) if known else None)


def test_deadline_is_the_earliest_above() -> None:
    parent = Scope(Limits(deadline_s=1.0))

    later, sooner = Scope(Limits(deadline_s=60.0), parent), Scope(Limits(deadline_s=0.5), parent)

    assert later.deadline == parent.deadline
    assert sooner.deadline is not None
    assert sooner.deadline < time.monotonic() + 0.6
    assert Scope(Limits()).deadline is None


async def test_depth_is_counted_from_the_outermost_request() -> None:
    outer = Scope(Limits(max_depth=2))

    async with outer.nested(Limits(max_depth=9)) as first, first.nested(Limits(max_depth=9)) as second:
        with pytest.raises(RequestError, match="nested too deep"):
            async with second.nested(Limits()):
                pass
    with pytest.raises(RequestError, match="max_depth of the request is 0"):
        async with Scope(Limits(max_depth=0)).nested(Limits()):
            pass


async def test_sub_requests_over_the_limit_wait() -> None:
    outer, running, most = Scope(Limits(max_sub_requests=2)), 0, 0

    async def ask() -> None:
        nonlocal running, most
        async with outer.nested(Limits()):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1

    await asyncio.gather(*(ask() for _ in range(7)))

    assert most == 2
