"""How strongly data speak for a mean loss below a limit: one bound, one function, one theorem.

A p-value here is of the hypothesis "the mean loss is at least alpha", for losses that are independent, identically
distributed and in [0, 1]: under the hypothesis it is at most u with probability at most u, for every u.
"""

import math
from collections.abc import Callable, Sequence

PValue = Callable[[Sequence[float], float], float]


def binomial_p_value(k: int, n: int, alpha: float) -> float:
    """Exact p-value from k losses among n problems, each 0 or 1: P(Bin(n, alpha) <= k); 1 for n = 0.

    Source: Clopper & Pearson (1934), Biometrika 26(4), the lower tail.
    """
    from scipy.special import bdtr

    return float(bdtr(k, n, alpha)) if n else 1.0


def binomial_upper_bound(k: int, n: int, delta: float) -> float:
    """The largest mean loss that `binomial_p_value` does not reject at level delta; 1 for n = 0.

    Source: Clopper & Pearson (1934); as a quantile of Beta(k + 1, n - k).
    """
    from scipy.special import betaincinv

    return float(betaincinv(k + 1, n - k, 1 - delta)) if k < n else 1.0


def binomial_lower_bound(k: int, n: int, delta: float) -> float:
    """The mirror image of `binomial_upper_bound`: the mean is below it with probability at most delta."""
    return 1 - binomial_upper_bound(n - k, n, delta)


def anytime_p_value(k: int, n: int, alpha: float) -> float:
    """A p-value from k losses among n problems, each 0 or 1, that holds at every n together; 1 for n = 0.

    One over the likelihood ratio of a mean drawn from Beta(1/2, 1/2) cut to [0, alpha], against alpha. While the mean
    is at least alpha that ratio is a supermartingale from 1: it ever reaches 1/u with probability at most u. So one
    may look after every problem, and add more as long as one likes.

    Source: Robbins (1970), Annals of Mathematical Statistics 41(5), the method of mixtures; Ville (1939).
    """
    from scipy.special import betainc, betaln

    kept, prior = float(betainc(k + 0.5, n - k + 0.5, alpha)), float(betainc(0.5, 0.5, alpha))
    if kept == 0:  # with this many losses it vanishes in double precision
        return 1.0
    mixture = math.log(kept / prior) + float(betaln(k + 0.5, n - k + 0.5) - betaln(0.5, 0.5))
    return math.exp(min(0.0, k * math.log(alpha) + (n - k) * math.log1p(-alpha) - mixture))


def anytime_upper_bound(k: int, n: int, delta: float) -> float:
    """The largest mean loss that `anytime_p_value` does not reject at level delta: a time-uniform confidence sequence.

    With probability at least 1 - delta the mean is at most this at every n together.
    """
    return _largest(lambda alpha: anytime_p_value(k, n, alpha), delta)


def hoeffding_bentkus_p_value(losses: Sequence[float], alpha: float) -> float:
    """The smaller of Hoeffding's bound in its relative-entropy form and Bentkus' bound by a binomial tail.

    Args:
        losses: [n], in [0, 1], n >= 1.

    Source: Bates et al. (2021), Journal of the ACM 68(6), Section 3.1, from Hoeffding (1963), Theorem 1, and Bentkus
    (2004), Annals of Probability 32(2); as a p-value in Angelopoulos et al. (2021), arXiv 2110.01052.
    """
    n, total = len(losses), math.fsum(losses)
    r_hat = total / n
    hoeffding = math.exp(-n * _relative_entropy(min(r_hat, alpha), alpha))
    # the sum is rounded up, not n times the mean: of 0/1 losses it is exact
    bentkus = math.e * binomial_p_value(math.ceil(total), n, alpha)
    return min(1.0, hoeffding, bentkus)


def betting_p_value(losses: Sequence[float], alpha: float, delta: float = 0.1) -> float:
    """One over the greatest capital of a gambler who bets that the losses stay below alpha.

    The capital starts at 1 and is multiplied by 1 - bet * (loss - alpha); each bet depends on earlier losses alone.
    Under the hypothesis it is a supermartingale, and exceeds 1/u with probability at most u (Ville 1939).

    Args:
        losses: [n], in [0, 1], in an order that does not depend on them.
        delta: the level that the bets are sized for; the p-value is valid at every level.

    Source: Waudby-Smith & Ramdas (2024), JRSS B 86(1), Section 4; with these bets in Bates et al. (2021), Section 3.1.
    """
    n = len(losses)
    capital = greatest = 1.0
    total, squares, variance = 0.5, 0.25, 0.25
    for index, loss in enumerate(losses, 1):
        bet = min(1.0, math.sqrt(2 * math.log(1 / delta) / (n * variance)))
        capital *= 1 - bet * (loss - alpha)
        greatest = max(greatest, capital)
        total += loss
        squares += (loss - total / (index + 1)) ** 2
        variance = squares / (index + 1)
    return 1 / greatest


def empirical_bernstein_p_value(losses: Sequence[float], alpha: float) -> float:
    """The level at which the empirical Bernstein bound on the mean reaches alpha.

    mean <= r_hat + sqrt(2 V log(2/delta) / n) + 7 log(2/delta) / (3 (n - 1)) with probability at least 1 - delta,
    where V is the sample variance; solved for delta.

    Args:
        losses: [n], in [0, 1], n >= 2.

    Source: Maurer & Pontil (2009), COLT, Theorem 4.
    """
    n = len(losses)
    r_hat = math.fsum(losses) / n
    variance = math.fsum((loss - r_hat) ** 2 for loss in losses) / (n - 1)
    linear, root = 7 / (3 * (n - 1)), math.sqrt(2 * variance / n)
    gap = max(0.0, alpha - r_hat)
    root_of_log = (math.sqrt(root**2 + 4 * linear * gap) - root) / (2 * linear)
    return min(1.0, 2 * math.exp(-(root_of_log**2)))


def upper_bound(p_value: PValue, losses: Sequence[float], delta: float) -> float:
    """The largest mean loss that `p_value` does not reject at level delta; P(mean <= it) >= 1 - delta.

    Source: the duality of tests and confidence sets, Lehmann & Romano (2005), Theorem 3.5.1.
    """
    return _largest(lambda alpha: p_value(losses, alpha), delta)


def _largest(p_value: Callable[[float], float], delta: float) -> float:
    """The largest alpha that a p-value, falling in alpha, does not reject."""
    from scipy.optimize import brentq

    low, high = 1e-9, 1 - 1e-9
    if p_value(high) > delta:
        return 1.0
    if p_value(low) <= delta:
        return low
    return float(brentq(lambda alpha: p_value(alpha) - delta, low, high))


def _relative_entropy(a: float, b: float) -> float:
    """The relative entropy of Bernoulli(a) with respect to Bernoulli(b), in nats."""
    heads = a * math.log(a / b) if a > 0 else 0.0
    return heads + ((1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else 0.0)
