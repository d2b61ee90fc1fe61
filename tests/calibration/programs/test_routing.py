"""Up to which length a direct call is as good as a program."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.calibration.programs.routing import direct_threshold
from reasonrt.errors import CalibrationError

ROWS = st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.booleans()), min_size=1, max_size=30)


def right(rows: list[tuple[int, bool, bool]], threshold: int) -> int:
    return sum(direct if tokens < threshold else program for tokens, direct, program in rows)


@given(ROWS)
def test_no_other_threshold_has_more_right_answers_or_as_many_and_is_larger(rows: list[tuple[int, bool, bool]]) -> None:
    threshold = direct_threshold(rows)

    best = max(right(rows, other) for other in range(23))
    assert right(rows, threshold) == best
    longest = max(tokens for tokens, _, _ in rows)
    assert threshold == max(
        other for other in (0, *(tokens + 1 for tokens, _, _ in rows)) if right(rows, other) == best
    )
    assert 0 <= threshold <= longest + 1


@pytest.mark.parametrize(
    ("rows", "threshold"),
    [
        ([(1000, True, False), (50_000, False, True)], 1001),
        ([(1000, False, True), (50_000, False, True)], 0),
        ([(1000, True, True), (50_000, True, True)], 50_001),
        ([(1000, True, False), (2000, False, True), (3000, True, False)], 3001),
        ([(5, True, False), (5, False, True), (5, False, True)], 0),
    ],
)
def test_known_thresholds(rows: list[tuple[int, bool, bool]], threshold: int) -> None:
    assert direct_threshold(rows) == threshold


def test_no_rows_are_refused() -> None:
    with pytest.raises(CalibrationError, match="no question was answered both ways"):
        direct_threshold([])
