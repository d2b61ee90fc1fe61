"""Many rules, one promise: which of several hypotheses "rule j has a risk of at least alpha" may be rejected together.

Every test here keeps the probability of a single false rejection at most delta, whatever the dependence between the
p-values (they come from the same problems). So one may choose among the rejected ones by any criterion afterwards.
"""

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
