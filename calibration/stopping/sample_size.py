"""How many problems a promise needs, before any is recorded."""

import math
from dataclasses import dataclass

from reasonrt.calibration.stopping.bounds import binomial_p_value
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


def least_n(alpha: float, delta: float) -> int:
    """The least n whose exact p-value without a loss, (1 - alpha)^n, is at most delta."""
    check_level("alpha", alpha)
    check_level("delta", delta)
    return math.ceil(math.log(delta) / math.log1p(-alpha))


def plan(alpha: float, delta: float, *, expected_risk: float = 0.0, power: float = 0.9) -> Plan:
    """The n with which a rule of `expected_risk` is certified, by the exact binomial test at level delta.

    Args:
        alpha: the limit of the risk, in (0, 1).
        delta: the probability that the certificate is wrong, in (0, 1).
        expected_risk: of the rule, from a pilot for example; in [0, alpha).
        power: the probability to be certified, in (0, 1).

    Raises:
        Infeasible: no n will do, or none of a size that anybody could record.
    """
    from scipy.special import bdtr, bdtrin

    least = least_n(alpha, delta)
    if not 0 <= expected_risk < alpha:
        raise Infeasible(
            f"no n certifies a rule of risk {expected_risk:g} below alpha {alpha:g}; "
            "allow a larger alpha or take a more careful rule"
        )
    for max_losses in range(_MOST_LOSSES):
        n = max(least, math.ceil(bdtrin(max_losses, delta, alpha)))
        n += binomial_p_value(max_losses, n, alpha) > delta  # where the inverse is exact but for rounding
        reached = float(bdtr(max_losses, n, expected_risk))
        if reached >= power:
            return Plan(alpha, delta, expected_risk, least, n, max_losses, reached)
    raise Infeasible(
        f"a rule of risk {expected_risk:g} is too near to alpha {alpha:g}: more than {n} problems would be needed; "
        "allow a larger alpha or take a more careful rule"
    )


def check_level(name: str, value: float) -> None:
    """Raises: CalibrationError: it is not in (0, 1)."""
    if not 0 < value < 1:
        raise CalibrationError(f"{name} must be in (0, 1), got {value}")
