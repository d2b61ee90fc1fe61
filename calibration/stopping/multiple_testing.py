"""Many rules, one promise: which of several hypotheses "rule j has a risk of at least alpha" may be rejected together.

Every test here keeps the probability of a single false rejection at most delta, whatever the dependence between the
p-values (they come from the same problems). So one may choose among the rejected ones by any criterion afterwards.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

Test = Callable[[Sequence[float], float], list[int]]
"""Takes p-values, one per rule, and delta; returns the indices of the rejected ones, ascending."""


def fixed_sequence(p_values: Sequence[float], delta: float) -> list[int]:
    """Test in the given order, each at level delta, until the first that cannot be rejected.

    The order must not depend on the data of the p-values: a false rejection needs the first true hypothesis of the
    order to be rejected, and that is one test at level delta.

    Source: Maurer, Hothorn & Lehmacher (1995); for risk control Angelopoulos et al. (2021), arXiv 2110.01052.
    """
    return list(takewhile(lambda index: p_values[index] <= delta, range(len(p_values))))


def bonferroni(p_values: Sequence[float], delta: float) -> list[int]:
    """Test each at level delta over their number. Source: the union bound; Dunn (1961)."""
    return [index for index, p_value in enumerate(p_values) if p_value <= delta / len(p_values)]


def holm(p_values: Sequence[float], delta: float) -> list[int]:
    """From the smallest p-value up, each at level delta over the number not yet rejected, until the first that fails.

    Source: Holm (1979), Scandinavian Journal of Statistics 6(2).
    """
    ascending = sorted(range(len(p_values)), key=lambda index: p_values[index])
    passes = takewhile(lambda step: p_values[step[1]] <= delta / (len(p_values) - step[0]), enumerate(ascending))
    return sorted(index for _, index in passes)


TESTS: Mapping[str, Test] = {"bonferroni": bonferroni, "fixed_sequence": fixed_sequence, "holm": holm}


def max_p(p_values: Sequence[float]) -> float:
    """One p-value for "at least one of these risks reaches its limit": the largest, without correction.

    Source: the intersection-union test, Berger (1982), Technometrics 24(4).
    """
    return max(p_values)


def pareto_order(p_values: Sequence[float], costs: Sequence[float]) -> list[int]:
    """The indices that nothing beats in both p-value and cost, from the safest to the cheapest.

    With p-values and costs from other problems than those to certify on, this is an order for `fixed_sequence`.

    Source: Pareto testing, Laufer-Goldshtein et al. (2023), ICLR, arXiv 2210.07913.
    """
    order: list[int] = []
    for index in sorted(range(len(p_values)), key=lambda index: (p_values[index], costs[index])):
        if not order or costs[index] < costs[order[-1]]:
            order.append(index)
    return order


def log_evidence_below(k: int, n: int, alpha: float) -> float:
    """Evidence that the mean of 0/1 losses is below alpha, from k losses among n; natural logarithm, 0 at the start.

    The likelihood ratio of a mean drawn from Beta(1/2, 1/2) cut to [0, alpha], against alpha. While the mean is at
    least alpha, it exceeds log(1/delta) at any time with probability at most delta: one may look at it after
    every problem and stop labelling when it does.

    Source: Robbins (1970), Annals of Mathematical Statistics 41(5), the method of mixtures; Ville (1939).
    """
    from scipy.special import betainc, betaln

    kept, prior = float(betainc(k + 0.5, n - k + 0.5, alpha)), float(betainc(0.5, 0.5, alpha))
    if kept == 0:  # with this many losses it vanishes in double precision
        return -math.inf
    mixture = math.log(kept / prior) + float(betaln(k + 0.5, n - k + 0.5) - betaln(0.5, 0.5))
    return mixture - k * math.log(alpha) - (n - k) * math.log1p(-alpha)


class Labelling:
    """Labelling until certified: fixed-sequence testing that may be looked at after every problem.

    Attributes:
        num_certified: how many rules, counted from the first of the order, are certified; it never falls.
    """

    def __init__(self, num_rules: int, alpha: float, delta: float) -> None:
        self.num_certified = 0
        self._alpha, self._delta = alpha, delta
        self._n, self._k, self._best = [0] * num_rules, [0] * num_rules, [0.0] * num_rules

    def add(self, losses: Sequence[bool | None]) -> int:
        """Add the loss of each rule on one more problem, None where it does not count; return `num_certified`."""
        for rule, loss in enumerate(losses):
            if loss is not None:
                self._n[rule] += 1
                self._k[rule] += loss
                now = log_evidence_below(self._k[rule], self._n[rule], self._alpha)
                self._best[rule] = max(self._best[rule], now)
        self.num_certified = len(fixed_sequence([math.exp(-best) for best in self._best], self._delta))
        return self.num_certified
