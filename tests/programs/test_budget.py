"""Reserved before it is spent: whatever runs concurrently, no more is promised than is left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.ports import Allowance
from reasonrt.programs.budget import Budget, Reservation, Spent
from reasonrt.types import FinishReason


class Account:
    """A request's allowance, which falls as tokens are generated."""

    def __init__(self, tokens: int | None, calls: int = 1000) -> None:
        self.tokens, self.calls = tokens, calls

    def __call__(self) -> Allowance:
        return Allowance(None, self.calls, self.tokens, 1)

    def generate(self, reservation: Reservation, num_tokens: int) -> None:
        if self.tokens is not None:
            self.tokens -= num_tokens
        reservation.used += num_tokens


@given(left=st.integers(1, 500), steps=st.lists(st.tuples(st.integers(1, 200), st.floats(0, 1)), max_size=30))
def test_concurrent_generations_never_spend_more_than_is_left(left: int, steps: list[tuple[int, float]]) -> None:
    """Field note C5: one shared ledger, reserve, then settle."""
    account = Account(left)
    budget = Budget(account)
    running = []

    for wanted, share in steps:
        context = budget.reserve(wanted)
        try:
            reservation = context.__enter__()
        except Spent:
            continue
        account.generate(reservation, round(reservation.tokens * share))
        running.append((context, reservation))
        assert sum(each.tokens - each.used for _, each in running) <= account().generated_tokens  # type: ignore[operator]
        if len(running) > 4:  # one ends, and gives back what it has not used
            ended, _ = running.pop(0)
            ended.__exit__(None, None, None)

    for context, reservation in running:  # the worst case: all of them use all that they were promised
        account.generate(reservation, reservation.tokens - reservation.used)
        context.__exit__(None, None, None)
    assert account.tokens is not None
    assert account.tokens >= 0


def test_what_is_not_used_is_given_back() -> None:
    account = Account(100)
    budget = Budget(account)

    with budget.reserve(100) as first:
        account.generate(first, 30)
        with pytest.raises(Spent) as caught, budget.reserve(1):
            pass
        assert caught.value.reason is FinishReason.BUDGET
    with budget.reserve(100) as second:
        assert second.tokens == 70


def test_no_call_is_left() -> None:
    with pytest.raises(Spent) as caught, Budget(Account(None, calls=0)).reserve(1):
        pass

    assert caught.value.reason is FinishReason.CALLS


def test_without_a_limit_all_is_granted() -> None:
    with Budget(Account(None)).reserve(10**6) as reservation:
        assert reservation.tokens == 10**6


def test_reservations_of_the_same_size_are_given_back_each_for_itself() -> None:
    account = Account(100)
    budget = Budget(account)
    first, second = budget.reserve(40), budget.reserve(40)
    reservation = first.__enter__()
    second.__enter__()

    second.__exit__(None, None, None)  # while the first one has the same numbers
    account.generate(reservation, 10)

    with budget.reserve(100) as rest:
        assert rest.tokens == 60  # 90 are left, and 30 of them are promised
    first.__exit__(None, None, None)
    with budget.reserve(100) as rest:
        assert rest.tokens == 90
