"""Whether certificates keep their promise, by simulation: a population that is all there is, and draws from it.

The truth about each rule is known there, so it can be counted how often a choice breaks the promise. The functions of
`certify` decide on each draw, for all draws together; tests/benches/test_validity.py holds them to `certify`.
Choices that are known to be wrong are checked as well: a check that does not detect those is broken.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

from reasonrt.calibration.stopping.bounds import anytime_p_value
from reasonrt.calibration.stopping.trials import Limit, try_rules
from reasonrt.policies.stopping.rules import StoppingRule
from reasonrt.policies.stopping.traces import TraceSet

Array = NDArray[np.float64]
Choose = Callable[["Draws", float], NDArray[np.int64]]
"""From draws and delta to the index of the rule chosen in each, or -1 for none."""


@dataclass(frozen=True)
class Population:
    """A family of rules on all problems there are.

    Attributes:
        losses: [num_limits, num_rules, num_problems], 0 or 1; 0 where the problem does not count.
        counted: of the same shape, whether it counts.
        tokens: [num_rules, num_problems], probes counted.
        full_tokens: [num_problems].
        alphas: [num_limits].
    """

    losses: Array
    counted: Array
    tokens: Array
    full_tokens: Array
    alphas: Array

    @classmethod
    def of(cls, traces: TraceSet, rules: Sequence[StoppingRule], limits: Sequence[Limit]) -> Self:
        trials = try_rules(traces, rules, limits)
        losses = np.array([trial.losses for trial in trials], dtype=float).swapaxes(0, 1)  # None becomes nan
        return cls(
            losses=np.nan_to_num(losses),
            counted=(~np.isnan(losses)).astype(float),
            tokens=np.array([trial.net_tokens for trial in trials], dtype=float),
            full_tokens=np.array([trace.full_tokens for trace in traces], dtype=float),
            alphas=np.array([limit.alpha for limit in limits]),
        )

    @property
    def risks(self) -> Array:
        """[num_limits, num_rules], nan where no problem counts."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.losses.sum(axis=2) / self.counted.sum(axis=2), dtype=np.float64)

    @property
    def savings(self) -> Array:
        """[num_rules], the net saving as a share."""
        return np.asarray(1 - self.tokens.sum(axis=1) / self.full_tokens.sum(), dtype=np.float64)

    def violates(self, chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the rule chosen in each draw has a risk above its limit; choosing none violates nothing."""
        breaks = np.any(self.risks > self.alphas[:, None], axis=0)
        return np.asarray(breaks[chosen] & (chosen >= 0))

    def best_saving(self) -> float:
        """The best saving among the rules that keep the promise; 0 where none does."""
        keeps = (self.risks <= self.alphas[:, None]).all(axis=0)
        return float(self.savings[keeps].max(initial=0.0))

    def one_test_saving(self, n: int, delta: float) -> float:
        """What the one rule is worth, on average over draws of n, that is best to test and nothing else: its saving
        times the probability that the exact binomial test certifies it. Who picks it knows the population."""
        from scipy.special import bdtr

        passing = np.max(np.flatnonzero(bdtr(np.arange(n), n, self.alphas[0]) <= delta), initial=-1)
        return float((self.savings * bdtr(passing, n, self.risks[0])).max(initial=0.0)) if passing >= 0 else 0.0

    def mean_saving(self, chosen: NDArray[np.int64]) -> float:
        """The net saving, on average over draws; choosing none saves nothing."""
        return float(np.where(chosen >= 0, self.savings[chosen], 0.0).mean())

    def draws(self, n: int, num_draws: int, seed: int = 0) -> "Draws":
        """Draw `n` problems with replacement, `num_draws` times."""
        num_problems = len(self.full_tokens)
        rng = np.random.default_rng(seed)
        return self._drawn(rng.multinomial(n, [1 / num_problems] * num_problems, size=num_draws).astype(float))

    def growing(self, sizes: Sequence[int], num_draws: int, seed: int = 0) -> Iterator["Draws"]:
        """Draw as `draws` does, problem after problem: one set of draws for each of the rising `sizes`."""
        num_problems = len(self.full_tokens)
        rng = np.random.default_rng(seed)
        times = np.zeros((num_draws, num_problems))
        for before, size in pairwise((0, *sizes)):
            times += rng.multinomial(size - before, [1 / num_problems] * num_problems, size=num_draws)
            yield self._drawn(times)

    def whole(self) -> "Draws":
        """One draw that holds every problem once."""
        return self._drawn(np.ones((1, len(self.full_tokens))))

    def only(self, rules: Sequence[int], alpha: float) -> Self:
        """The same population with these rules only, in this order, and another limit for every risk."""
        indices = list(rules)
        return replace(
            self,
            losses=self.losses[:, indices],
            counted=self.counted[:, indices],
            tokens=self.tokens[indices],
            alphas=np.full_like(self.alphas, alpha),
        )

    def _drawn(self, times: Array) -> "Draws":
        return Draws(
            losses=np.stack([times @ losses.T for losses in self.losses]),
            counts=np.stack([times @ counted.T for counted in self.counted]),
            tokens=times @ self.tokens.T,
            full_tokens=times @ self.full_tokens,
            alphas=self.alphas,
        )


@dataclass(frozen=True)
class Draws:
    """Sums over the problems of each draw.

    Attributes:
        losses, counts: [num_limits, num_draws, num_rules].
        tokens: [num_draws, num_rules].
        full_tokens: [num_draws].
    """

    losses: Array
    counts: Array
    tokens: Array
    full_tokens: Array
    alphas: Array

    @cached_property
    def p_values(self) -> Array:
        """[num_draws, num_rules]; of several limits the largest."""
        from scipy.special import bdtr

        counts = self.counts.astype(np.int64)
        each = np.where(counts > 0, bdtr(self.losses, np.maximum(counts, 1), self.alphas[:, None, None]), 1.0)
        return np.asarray(each.max(axis=0), dtype=np.float64)


def certified(draws: Draws, delta: float) -> NDArray[np.int64]:
    """What `certify` does: the cheapest of the rules before the first that fails, if it saves anything."""
    passes = np.logical_and.accumulate(draws.p_values <= delta, axis=1)
    return _cheapest(draws, passes & (draws.tokens < draws.full_tokens[:, None]))


def uncorrected(draws: Draws, delta: float) -> NDArray[np.int64]:
    """Wrong: the cheapest of the rules that pass by themselves, however many there are."""
    return _cheapest(draws, draws.p_values <= delta)


def observed(draws: Draws, delta: float) -> NDArray[np.int64]:
    """Wrong: the cheapest of the rules whose observed risk is at most alpha, without a bound."""
    return _cheapest(draws, _up_to(draws, 0.0))


def wrong_n(draws: Draws, delta: float) -> NDArray[np.int64]:
    """Wrong: Hoeffding's bound with the size of a grid of 50,000 thresholds instead of n."""
    return _cheapest(draws, _up_to(draws, float(np.sqrt(np.log(1 / delta) / (2 * 50_000)))))


def reused_split(draws: Draws, delta: float) -> NDArray[np.int64]:
    """Wrong: fixed-sequence testing along an order learned from the very problems that it tests on."""
    order = np.argsort(draws.p_values, axis=1, kind="stable")
    passes = np.logical_and.accumulate(np.take_along_axis(draws.p_values, order, axis=1) <= delta, axis=1)
    allowed = np.zeros_like(passes)
    np.put_along_axis(allowed, order, passes, axis=1)
    return _cheapest(draws, allowed)


def certified_while_growing(draws: Draws, delta: float) -> NDArray[np.int64]:
    """What `certify` does with problems that may be added to. Every problem must count."""
    n, alpha = int(draws.counts.flat[0]), float(draws.alphas[0])
    table = np.array([anytime_p_value(k, n, alpha) for k in range(n + 1)])
    passes = np.logical_and.accumulate(table[draws.losses[0].astype(np.int64)] <= delta, axis=1)
    return _cheapest(draws, passes & (draws.tokens < draws.full_tokens[:, None]))


def boundary_null(num_rules: int, alpha: float, num_problems: int = 1500, seed: int = 1) -> Population:
    """Rules whose risk is just above alpha, each on problems of its own: certifying any of them is a violation."""
    rng = np.random.default_rng(seed)
    losses = np.zeros((1, num_rules, num_problems))
    for row in losses[0]:
        row[rng.permutation(num_problems)[: int(alpha * num_problems) + 1]] = 1
    tokens = rng.random((num_rules, num_problems))
    return Population(losses, np.ones_like(losses), tokens, np.ones(num_problems), np.array([alpha]))


def _up_to(draws: Draws, margin: float) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        risks = draws.losses / draws.counts
    return np.asarray((risks + margin <= draws.alphas[:, None, None] + 1e-12).all(axis=0))


def _cheapest(draws: Draws, allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    chosen = np.where(allowed, draws.tokens, np.inf).argmin(axis=1)
    return np.where(allowed.any(axis=1), chosen, -1)
