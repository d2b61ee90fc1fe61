"""How many problems a promise needs, before any is recorded."""

import math
from bisect import bisect_left
from dataclasses import dataclass

from reasonrt.calibration.stopping.bounds import anytime_p_value, binomial_p_value
from reasonrt.errors import CalibrationError

_MOST_LOSSES = 20_000


class Infeasible(CalibrationError):  # noqa: N818 - not a mistake of anybody's: the data say so
    """No rule can be certified from these problems. The message says why, and how many problems would do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What it takes to certify one rule, all rules before it in the order being safer.

    Attributes:
        least_n: problems below which nothing at all can be certified, even without a loss.
        n: problems with which the rule is certified with probability at least `power`.
        max_losses: the most losses among the n with which it is still certified.
        power: the probability that it is certified with exactly these n.
    """

    alpha: float
    delta: float
    expected_risk: float
    least_n: int
    n: int
    max_losses: int
    power: float


def least_n(alpha: float, delta: float, growing: bool = False) -> int:
    """The least n whose p-value without a loss is at most delta; of the exact test (1 - alpha)^n."""
    check_level("alpha", alpha)
    check_level("delta", delta)
    if growing:
        return _least_n(0, 1, alpha, delta)
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def plan(alpha: float, delta: float, *, expected_risk: float = 0.0, power: float = 0.9, growing: bool = False) -> Plan:
    """The n with which a rule of `expected_risk` is certified, by one test at level delta.

    Args:
        alpha: the limit of the risk, in (0, 1).
        delta: what the test spends, in (0, 1); of a try under a ledger `Attempt.tested_at`.
        expected_risk: of the rule, from a pilot for example; in [0, alpha).
        power: the probability to be certified with exactly that n, in (0, 1).
        growing: by a test that may be looked at again when problems have been added, in the place of the exact one.

    Raises:
        Infeasible: no n will do, or none of a size that anybody could record.
    """
    from scipy.special import bdtr, bdtrin

    n = least = least_n(alpha, delta, growing)
    if not 0 <= expected_risk < alpha:
        raise Infeasible(
            f"no n certifies a rule of risk {expected_risk:g} below alpha {alpha:g}; "
            "allow a larger alpha or take a more careful rule"
        )
    for max_losses in range(_MOST_LOSSES):
        if growing:
            n = _least_n(max_losses, n, alpha, delta)
        else:
            n = max(least, math.ceil(bdtrin(max_losses, delta, alpha)))
            n += binomial_p_value(max_losses, n, alpha) > delta  # where the inverse is exact but for rounding
        reached = float(bdtr(max_losses, n, expected_risk))
        if reached >= power:
            return Plan(alpha, delta, expected_risk, least, n, max_losses, reached)
    raise Infeasible(
        f"a rule of risk {expected_risk:g} is too near to alpha {alpha:g}: more than {n} problems would be needed; "
        "allow a larger alpha or take a more careful rule"
    )


def _least_n(k: int, at_least: int, alpha: float, delta: float) -> int:
    """The least n, from `at_least` up, at which k losses leave a p-value of growing data of at most delta."""
    n, step = at_least, 1
    while anytime_p_value(k, n, alpha) > delta:
        n, step = n + step, 2 * step
    below = range(at_least, n)
    return at_least + bisect_left(below, True, key=lambda n: anytime_p_value(k, n, alpha) <= delta)


def check_level(name: str, value: float) -> None:
    """Raises: CalibrationError: it is not in (0, 1)."""
    if not 0 < value < 1:
        raise CalibrationError(f"{name} must be in (0, 1), got {value}")
