"""The intervals of a report; each function is one method with its source."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a binomial proportion.

    Args:
        successes: 0 to n.
        n: trials, >= 1.
        level: coverage, in (0, 1).

    Source: Wilson (1927), Journal of the American Statistical Association 22(158), equation for p.
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference_interval(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """95 % interval of the difference of two proportions, a minus b, measured on the same problems.

    Args:
        both, only_a, only_b, neither: problems solved by both, by one only, by none; together n >= 1.

    Source: Newcombe (1998), Statistics in Medicine 17, 2635-2650, method 10 (square-and-add Wilson limits with the
    correlation phi).
    """
    n = both + only_a + only_b + neither
    a, b = (both + only_a) / n, (both + only_b) / n
    (low_a, high_a), (low_b, high_b) = wilson_interval(both + only_a, n), wilson_interval(both + only_b, n)
    product = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    covariance = both * neither - only_a * only_b
    # the continuity correction of the source applies to positive correlation only
    numerator = max(covariance - n / 2, 0.0) if covariance > 0 else covariance
    phi = numerator / math.sqrt(product) if product else 0.0
    down = math.sqrt(max(0.0, (a - low_a) ** 2 - 2 * phi * (a - low_a) * (high_b - b) + (high_b - b) ** 2))
    up = math.sqrt(max(0.0, (high_a - a) ** 2 - 2 * phi * (high_a - a) * (b - low_b) + (b - low_b) ** 2))
    return a - b - down, a - b + up


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of what independent values are drawn from; no wider than 0 where all are equal.

    Args:
        values: two or more.

    Source: Student (1908), Biometrika 6(1), 1-25.
    """
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def mcnemar_p_value(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value that neither of two policies is better, from the problems that one of them solves.

    Source: McNemar (1947), Psychometrika 12, in its exact binomial form.
    """
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
