"""Intervals against known values, and their coverage by simulation."""

import numpy as np
import pytest

from reasonrt.evals.statistics import mcnemar_p_value, mean_interval, paired_difference_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (8, 10, 0.4902, 0.9433), (81, 263, 0.2553, 0.3662)],  # the last: Newcombe (1998), table I
)
def test_wilson_known_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("counts", "interval"),
    [  # Newcombe (1998), Statistics in Medicine 17, table III, method 10
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((20, 12, 2, 16), (0.0562, 0.3290)),
        ((0, 0, 0, 50), (-0.0713, 0.0713)),
    ],
)
def test_paired_interval_known_values(counts: tuple[int, int, int, int], interval: tuple[float, float]) -> None:
    assert paired_difference_interval(*counts) == pytest.approx(interval, abs=6e-4)


@pytest.mark.parametrize(("only_a", "only_b", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (3, 3, 1.0), (10, 2, 0.0386)])
def test_mcnemar_known_values(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar_p_value(only_a, only_b) == pytest.approx(p, abs=1e-4)


@pytest.mark.slow  # about ten seconds
@pytest.mark.parametrize("shares", [(0.4, 0.15, 0.05, 0.4), (0.6, 0.02, 0.08, 0.3), (0.25, 0.25, 0.25, 0.25)])
def test_paired_interval_covers_the_true_difference(shares: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    true_difference = shares[1] - shares[2]

    hits = [
        low <= true_difference <= high
        for counts in rng.multinomial(120, shares, size=1500)
        for low, high in [paired_difference_interval(*map(int, counts))]
    ]

    assert np.mean(hits) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(hits))


def test_interval_of_a_mean_covers_it() -> None:
    """Of differences as three seeds have them, whose mean is 0.1."""
    rng = np.random.default_rng(0)
    draws = rng.choice([-1 / 3, 0.0, 1 / 3, 2 / 3], p=[0.2, 0.4, 0.3, 0.1], size=(1000, 100))

    covered = sum(low <= 0.1 <= high for low, high in (mean_interval(values.tolist()) for values in draws))

    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((-0.4841, 4.4841), abs=1e-4)
    assert covered >= 930  # of 1,000; 95 % less three standard errors
