"""The n that a promise needs: the table of the field, and what certifying with it does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.calibration.stopping.bounds import anytime_p_value, binomial_p_value
from reasonrt.calibration.stopping.sample_size import Infeasible, least_n, plan
from reasonrt.errors import CalibrationError


@pytest.mark.parametrize(
    ("alpha", "delta", "n"),
    [(0.01, 0.1, 230), (0.02, 0.1, 114), (0.05, 0.1, 45), (0.05, 0.05, 59), (0.05, 0.01, 90), (0.1, 0.1, 22)],
)
def test_least_n_known_values(alpha: float, delta: float, n: int) -> None:
    assert least_n(alpha, delta) == plan(alpha, delta).n == n


@given(st.floats(0.005, 0.5), st.floats(0.01, 0.5), st.booleans())
def test_least_n_is_the_least(alpha: float, delta: float, growing: bool) -> None:
    n, p_value = least_n(alpha, delta, growing), anytime_p_value if growing else binomial_p_value

    assert p_value(0, n, alpha) <= delta + 1e-12
    assert n == 1 or p_value(0, n - 1, alpha) > delta - 1e-12


@given(st.floats(0.02, 0.3), st.floats(0.02, 0.3), st.floats(0, 0.6), st.booleans())
def test_plan_certifies_with_its_losses_and_not_with_one_more(
    alpha: float, delta: float, share: float, growing: bool
) -> None:
    made = plan(alpha, delta, expected_risk=share * alpha, growing=growing)
    p_value = anytime_p_value if growing else binomial_p_value

    assert p_value(made.max_losses, made.n, alpha) <= delta + 1e-9
    assert p_value(made.max_losses + 1, made.n, alpha) > delta
    assert made.n >= made.least_n
    assert made.power >= 0.9


@given(st.floats(0.02, 0.3), st.floats(0.02, 0.3), st.floats(0, 0.6))
def test_data_that_grow_take_more_problems(alpha: float, delta: float, share: float) -> None:
    once, growing = (plan(alpha, delta, expected_risk=share * alpha, growing=each) for each in (False, True))

    assert growing.n >= once.n
    assert growing.least_n >= once.least_n


def test_plan_reaches_its_power() -> None:
    made = plan(0.05, 0.1, expected_risk=0.02, power=0.8)
    losses = np.random.default_rng(0).binomial(made.n, 0.02, size=4000)

    certified = np.mean([binomial_p_value(int(k), made.n, 0.05) <= 0.1 for k in losses])

    assert certified == pytest.approx(made.power, abs=0.025)


@pytest.mark.parametrize("risk", [0.05, 0.2, 0.0499])
def test_a_risk_at_or_near_the_limit_is_infeasible(risk: float) -> None:
    with pytest.raises(Infeasible, match="allow a larger alpha or take a more careful rule"):
        plan(0.05, 0.1, expected_risk=risk)


@pytest.mark.parametrize(("alpha", "delta"), [(0.0, 0.1), (1.0, 0.1), (0.1, 0.0), (0.1, 2.0), (float("nan"), 0.1)])
def test_levels_outside_the_unit_interval_are_refused(alpha: float, delta: float) -> None:
    with pytest.raises(CalibrationError, match=r"must be in \(0, 1\)"):
        plan(alpha, delta)
