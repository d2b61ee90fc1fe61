"""Multiple tests: what they reject, and that a false rejection is as rare as they say."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.calibration.stopping.multiple_testing import (
    TESTS,
    bonferroni,
    fixed_sequence,
    holm,
    max_p,
    pareto_order,
)

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=20)
DELTAS = st.floats(0.01, 0.5)


def test_known_values() -> None:
    p_values = [0.01, 0.04, 0.2, 0.001]

    assert fixed_sequence(p_values, 0.05) == [0, 1]
    assert bonferroni(p_values, 0.05) == [0, 3]
    assert holm(p_values, 0.06) == [0, 3]
    assert holm([0.01, 0.02, 0.03, 0.04], 0.08) == [0, 1, 2, 3]
    assert fixed_sequence([0.2, 0.0], 0.1) == []


@given(P_VALUES, DELTAS)
def test_holm_rejects_whatever_bonferroni_does(p_values: list[float], delta: float) -> None:
    assert set(bonferroni(p_values, delta)) <= set(holm(p_values, delta))


@pytest.mark.parametrize("name", sorted(TESTS))
@given(p_values=P_VALUES, deltas=st.tuples(DELTAS, DELTAS))
def test_a_larger_delta_rejects_no_fewer(name: str, p_values: list[float], deltas: tuple[float, float]) -> None:
    low, high = sorted(deltas)

    assert set(TESTS[name](p_values, low)) <= set(TESTS[name](p_values, high))


@pytest.mark.parametrize("name", sorted(TESTS))
@pytest.mark.parametrize("dependence", ["independent", "identical", "half of them false"])
def test_any_false_rejection_has_probability_at_most_delta(
    name: str, dependence: str, exceeds: Callable[[int, int, float], bool]
) -> None:
    rng = np.random.default_rng(0)
    draws, delta, true = 4000, 0.1, set(range(20))
    p_values = rng.random((draws, 20))
    if dependence == "identical":
        p_values[:] = p_values[:, :1]
    if dependence == "half of them false":
        p_values[:, ::2] *= 1e-6
        true = set(range(1, 20, 2))

    failures = sum(bool(true & set(TESTS[name](row, delta))) for row in p_values.tolist())

    assert not exceeds(failures, draws, delta)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("bonferroni", "bonferroni"), ("fixed_sequence", "fixed_sequence"), ("holm", "bonferroni_holm")],
)
def test_tests_are_mapies(name: str, theirs: str) -> None:
    mapie = pytest.importorskip("mapie.risk_control")
    for row in np.random.default_rng(0).random((200, 10)) ** 4:
        expected = np.ravel(mapie.control_fwer(row, 0.1, fwer_method=theirs))

        assert TESTS[name](row.tolist(), 0.1) == sorted(expected.tolist())


def test_largest_p_value_of_several_risks_is_valid_when_one_is_too_high(
    exceeds: Callable[[int, int, float], bool],
) -> None:
    rng = np.random.default_rng(0)

    failures = sum(max_p([0.0, p]) <= 0.1 for p in rng.random(4000))

    assert not exceeds(failures, 4000, 0.1)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_pareto_order_holds_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    order = pareto_order([p for p, _ in points], [cost for _, cost in points])

    front = {
        point
        for point in points
        if not any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)
    }
    assert [points[index] for index in order] == sorted(front)
