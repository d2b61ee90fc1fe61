"""Each bound: known values, its properties, and its validity by simulation."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from reasonrt.calibration.stopping.bounds import (
    PValue,
    anytime_p_value,
    anytime_upper_bound,
    betting_p_value,
    binomial_lower_bound,
    binomial_p_value,
    binomial_upper_bound,
    empirical_bernstein_p_value,
    hoeffding_bentkus_p_value,
    upper_bound,
)


def exact(losses: Sequence[float], alpha: float) -> float:
    return binomial_p_value(int(sum(losses)), len(losses), alpha)


GENERAL: list[PValue] = [hoeffding_bentkus_p_value, betting_p_value, empirical_bernstein_p_value]
COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
RATES = st.floats(0.001, 0.999)
LOSSES = st.lists(st.floats(0, 1), min_size=2, max_size=50)


@given(COUNTS, RATES)
def test_binomial_p_value_is_scipys(counts: tuple[int, int], alpha: float) -> None:
    k, n = counts

    assert binomial_p_value(k, n, alpha) == pytest.approx(float(binom.cdf(k, n, alpha)), abs=1e-12)


@given(COUNTS, st.floats(0.01, 0.5))
def test_binomial_bounds_are_clopper_and_pearsons(counts: tuple[int, int], delta: float) -> None:
    k, n = counts
    interval = binomtest(k, n).proportion_ci(1 - 2 * delta, method="exact")

    assert binomial_lower_bound(k, n, delta) == pytest.approx(interval.low, abs=1e-9)
    assert binomial_upper_bound(k, n, delta) == pytest.approx(interval.high, abs=1e-9)


@given(COUNTS, RATES, st.floats(0.01, 0.5))
def test_binomial_test_and_bound_agree(counts: tuple[int, int], alpha: float, delta: float) -> None:
    bound = binomial_upper_bound(*counts, delta)

    if abs(bound - alpha) > 1e-9:
        assert (binomial_p_value(*counts, alpha) <= delta) == (bound < alpha)


@pytest.mark.parametrize(
    ("k", "n", "alpha", "p"), [(0, 45, 0.05, 0.0994), (0, 44, 0.05, 0.1047), (0, 0, 0.05, 1.0), (7, 7, 0.3, 1.0)]
)
def test_binomial_known_values(k: int, n: int, alpha: float, p: float) -> None:
    assert binomial_p_value(k, n, alpha) == pytest.approx(p, abs=1e-4)


@given(COUNTS, RATES)
def test_anytime_p_value_rises_with_every_loss_and_falls_with_every_other_problem(
    counts: tuple[int, int], alpha: float
) -> None:
    k, n = counts
    now = anytime_p_value(k, n, alpha)

    assert anytime_p_value(k, n + 1, alpha) <= now + 1e-9
    assert anytime_p_value(k + 1, n + 1, alpha) >= now - 1e-9
    assert now >= binomial_p_value(k, n, alpha) - 1e-9  # looking at any time has its price


def test_anytime_p_value_is_one_over_a_martingale_from_one() -> None:
    alpha = 0.07
    assert anytime_p_value(0, 0, alpha) == 1.0
    for k, n in [(0, 60), (2, 100), (10, 400)]:
        now, after_loss, after_none = (
            1 / anytime_p_value(k + loss, n + more, alpha) for loss, more in ((0, 0), (1, 1), (0, 1))
        )

        assert min(now, after_loss) > 1  # a p-value of 1 would hide what is below
        assert alpha * after_loss + (1 - alpha) * after_none == pytest.approx(now)


@given(COUNTS, st.tuples(RATES, RATES), st.floats(0.01, 0.5))
def test_anytime_test_and_confidence_sequence_agree(
    counts: tuple[int, int], alphas: tuple[float, float], delta: float
) -> None:
    bound, (low, high) = anytime_upper_bound(*counts, delta), sorted(alphas)

    assert anytime_p_value(*counts, high) <= anytime_p_value(*counts, low) + 1e-12
    if abs(bound - low) > 1e-6:
        assert (anytime_p_value(*counts, low) <= delta) == (bound < low)


@pytest.mark.parametrize(("look", "holds"), [(anytime_p_value, True), (binomial_p_value, False)])
def test_a_look_after_every_problem_is_wrong_with_probability_at_most_delta(
    look: Callable[[int, int, float], float], holds: bool, exceeds: Callable[[int, int, float], bool]
) -> None:
    """While the mean is alpha, whoever looks after each problem ever rejects that; the exact test is for one look."""
    alpha, delta, draws, longest = 0.05, 0.1, 2000, 600
    most = np.full(longest + 1, -1)  # the p-value depends on (k, n) alone: the most losses at which it rejects
    for n in range(1, longest + 1):
        most[n] = most[n - 1]  # adding a problem without a loss takes nothing back
        while most[n] < n and look(int(most[n]) + 1, n, alpha) <= delta:
            most[n] += 1
    losses = np.random.default_rng(0).random((draws, longest)) < alpha

    crossed = int((losses.cumsum(axis=1) <= most[1:]).any(axis=1).sum())

    assert exceeds(crossed, draws, delta) != holds


def test_hoeffding_bentkus_rounds_the_sum_and_not_the_mean() -> None:
    """100 * (7 / 100) is 7.000000000000001, and 8 losses would be another p-value."""
    losses = [1.0] * 7 + [0.0] * 93

    assert hoeffding_bentkus_p_value(losses, 0.2) <= np.e * binomial_p_value(7, 100, 0.2)


@pytest.mark.parametrize("p_value", [*GENERAL, exact])
@given(losses=LOSSES, alphas=st.tuples(RATES, RATES))
def test_p_values_fall_as_the_limit_rises(p_value: PValue, losses: list[float], alphas: tuple[float, float]) -> None:
    low, high = sorted(alphas)

    assert 0 <= p_value(losses, high) <= p_value(losses, low) + 1e-12 <= 1 + 1e-9


@pytest.mark.parametrize("p_value", GENERAL)
@given(losses=LOSSES, delta=st.floats(0.01, 0.5))
def test_upper_bound_inverts_the_test(p_value: PValue, losses: list[float], delta: float) -> None:
    bound = upper_bound(p_value, losses, delta)

    assert bound > 1 - 2e-9 or p_value(losses, min(bound + 1e-6, 1 - 1e-9)) <= delta
    assert bound < 2e-9 or p_value(losses, max(bound - 1e-6, 1e-9)) >= delta


Draw = Callable[[np.random.Generator, int], np.ndarray]
POPULATIONS: dict[str, tuple[float, Draw]] = {  # the true mean, and n losses
    "rare": (0.05, lambda rng, n: (rng.random(n) < 0.05).astype(float)),
    "often": (0.3, lambda rng, n: (rng.random(n) < 0.3).astype(float)),
    "graded": (0.1, lambda rng, n: rng.beta(0.5, 4.5, n)),
}


@pytest.mark.parametrize("n", [60, 200])
@pytest.mark.parametrize(
    ("p_value", "population"),
    [*itertools.product(GENERAL, POPULATIONS), (exact, "rare"), (exact, "often")],  # exact is for 0/1 losses
    ids=lambda value: getattr(value, "__name__", value),
)
def test_true_hypothesis_is_rejected_with_probability_at_most_delta(
    p_value: PValue, population: str, n: int, exceeds: Callable[[int, int, float], bool]
) -> None:
    mean, draw = POPULATIONS[population]
    rng = np.random.default_rng(0)

    draws = 2000
    p_values = np.array([p_value(draw(rng, n).tolist(), mean) for _ in range(draws)])

    for delta in (0.02, 0.1, 0.3):
        assert not exceeds(int((p_values <= delta).sum()), draws, delta)


def test_two_maxima_multiplied_are_no_bound(exceeds: Callable[[int, int, float], bool]) -> None:
    """The check finds a broken bound: betting on each half and multiplying the best of both, as one library does."""
    rng = np.random.default_rng(0)

    def broken(losses: list[float], alpha: float) -> float:
        half = len(losses) // 2
        return betting_p_value(losses[:half], alpha) * betting_p_value(losses[half:], alpha)

    failures = sum(broken((rng.random(200) < 0.1).tolist(), 0.1) <= 0.1 for _ in range(2000))

    assert exceeds(failures, 2000, 0.1)


@pytest.mark.parametrize(("k", "n"), [(0, 60), (7, 100), (30, 300)])
def test_hoeffding_bentkus_is_mapies(k: int, n: int) -> None:
    methods = pytest.importorskip("mapie.risk_control.methods")
    losses = [1.0] * k + [0.0] * (n - k)

    theirs = methods.compute_hoeffding_bentkus_p_value(np.array([k / n]), n, 0.1)

    assert hoeffding_bentkus_p_value(losses, 0.1) <= float(np.ravel(theirs)[0]) + 1e-12  # they round up k = 7 of 100
