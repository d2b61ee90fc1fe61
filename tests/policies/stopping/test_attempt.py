"""How tries on one set share delta, and which certificates hold together."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.attempt import Attempt, refuse_apart, share_of_try


def test_tries_never_spend_more_than_there_is() -> None:
    spent = list(accumulate(map(share_of_try, range(1, 60))))

    assert spent[0] == 0.5
    assert all(before < after for before, after in pairwise(spent[:40]))
    assert spent[-1] <= 1.0


@given(st.integers(1, 60), st.integers(1, 20), st.floats(0.001, 0.5))
def test_the_levels_of_a_try_spend_its_share(number: int, num_levels: int, delta: float) -> None:
    levels = tuple(map(str, range(num_levels)))

    assert num_levels * Attempt("s", number, levels).tested_at(delta) == pytest.approx(delta * share_of_try(number))
    assert num_levels * Attempt("s", None, levels).tested_at(delta) == pytest.approx(delta)


@pytest.mark.parametrize(("number", "levels"), [(0, ("a",)), (-1, ("a",)), (1, ())])
def test_a_try_that_cannot_have_been_is_refused(number: int, levels: tuple[str, ...]) -> None:
    with pytest.raises(CalibrationError, match=f"there is no try {number} of {len(levels)} levels"):
        Attempt("s", number, levels)


@pytest.mark.parametrize(
    ("first", "second", "hold"),
    [
        (Attempt("s", None, ("a", "b")), Attempt("s", None, ("a", "b")), True),  # together
        (Attempt("s", 1, ("a",)), Attempt("s", 2, ("b",)), True),  # tries of one ledger
        (Attempt("s", 1, ("a",)), Attempt("t", 1, ("b",)), True),  # on other problems
        (Attempt("s", None, ("a",)), Attempt("s", None, ("b",)), False),
        (Attempt("s", None, ("a",)), Attempt("t", None, ("b",)), False),  # nobody knows which problems they share
        (Attempt("s", None, ("a",)), Attempt("s", 1, ("b",)), False),
        (Attempt("s", 1, ("a",)), Attempt("s", 1, ("b",)), False),  # the first try of two ledgers
    ],
)
def test_certificates_hold_together_by_one_try_or_by_a_ledger(first: Attempt, second: Attempt, hold: bool) -> None:
    both = {"a.json": first, "b.json": second}
    if hold:
        refuse_apart(both)
    else:
        with pytest.raises(CalibrationError, match=r"a\.json and b\.json were certified apart.* one call"):
            refuse_apart(both)
    refuse_apart({"a.json": first, "again.json": first})
