"""The promise itself, by simulation: populations where the truth is known, and many draws of problems from them.

The very functions of `certify` run on each draw; that they are what `certify` does is the last test here. Checks that
must find a violation stand beside those that must not.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from reasonrt.calibration.bounds import binomial_p_value
from reasonrt.calibration.certification import certify, order_rules
from reasonrt.calibration.families import (
    dynasor_rules,
    joint_rules,
    lower_threshold_rules,
    quantile_thresholds,
    upper_threshold_rules,
)
from reasonrt.calibration.planning import Infeasible
from reasonrt.calibration.rules import StoppingRule
from reasonrt.calibration.synthetic import KINDS, synthetic_traces
from reasonrt.calibration.testing import fixed_sequence, max_p
from reasonrt.calibration.trials import Limit, try_rules

NUM_PROBLEMS, DRAWS, DELTA = 1500, 2000, 0.1
exact = cache(binomial_p_value)
Choose = Callable[[Sequence[float], Sequence[float], float], int | None]
"""The p-values and costs of the rules, and delta, to the index of the chosen one."""
Exceeds = Callable[[int, int, float], bool]


class Population:
    """One family of rules on one population: [num_limits, num_rules, NUM_PROBLEMS] losses, and tokens."""

    def __init__(self, kind: str, rules: Sequence[StoppingRule], limits: Sequence[Limit]) -> None:
        traces = synthetic_traces(kind, NUM_PROBLEMS)
        trials = try_rules(traces, rules, limits)
        losses = np.array([trial.losses for trial in trials], dtype=float).swapaxes(0, 1)  # None is nan
        self.counted = ~np.isnan(losses)
        self.losses = np.nan_to_num(losses)
        self.tokens = np.array([trial.net_tokens for trial in trials], dtype=float)
        self.saving = 1 - self.tokens.sum(axis=1) / sum(trace.full_tokens for trace in traces)
        self.alphas = [limit.alpha for limit in limits]
        with np.errstate(invalid="ignore"):
            self.risks = self.losses.sum(axis=2) / self.counted.sum(axis=2)

    def violates(self, chosen: int) -> bool:
        return any(risks[chosen] > alpha for risks, alpha in zip(self.risks, self.alphas, strict=True))

    def choices(self, n: int, choose: Choose, seed: int = 0) -> list[int | None]:
        """What is chosen in each of DRAWS draws of n problems, with replacement."""
        rng = np.random.default_rng(seed)
        times = rng.multinomial(n, [1 / NUM_PROBLEMS] * NUM_PROBLEMS, size=DRAWS).astype(float)
        k = np.stack([times @ losses.T for losses in self.losses]).astype(int)  # [num_limits, DRAWS, num_rules]
        counted = np.stack([times @ counted.T for counted in self.counted.astype(float)]).astype(int)
        costs = times @ self.tokens.T
        chosen = []
        for draw in range(DRAWS):
            rows = zip(k[:, draw].tolist(), counted[:, draw].tolist(), self.alphas, strict=True)
            by_limit = [list(map(exact, ks, ns, [alpha] * len(ks))) for ks, ns, alpha in rows]
            p_values = list(map(max_p, zip(*by_limit, strict=True)))
            chosen.append(choose(p_values, costs[draw].tolist(), DELTA))
        return chosen

    def num_violations(self, n: int, choose: Choose) -> int:
        return sum(chosen is not None and self.violates(chosen) for chosen in self.choices(n, choose))


def certified(p_values: Sequence[float], costs: Sequence[float], delta: float) -> int | None:
    return min(fixed_sequence(p_values, delta), key=costs.__getitem__, default=None)


@cache
def upper_family(kind: str) -> list[StoppingRule]:
    thresholds = quantile_thresholds(synthetic_traces(kind, 300, seed=1), "confidence", 60)
    return [*upper_threshold_rules("confidence", thresholds)]


@cache
def upper_population(kind: str, risk: str = "lost_correct") -> Population:
    return Population(kind, upper_family(kind), [Limit(risk, 0.05)])


@pytest.mark.parametrize("risk", ["lost_correct", "early_error"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_certified_risk_exceeds_alpha_with_probability_at_most_delta(
    kind: str, risk: str, exceeds: Exceeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    population = upper_population(kind, risk)
    for alpha in (0.02, 0.05, 0.1):
        monkeypatch.setattr(population, "alphas", [alpha])
        for n in (100, 300, 1000):
            violations = population.num_violations(n, certified)

            assert not exceeds(violations, DRAWS, DELTA), (alpha, n, violations / DRAWS)


def test_selective_error_along_a_learned_order(exceeds: Exceeds) -> None:
    rules = [*upper_family("honest"), *dynasor_rules(range(2, 7), every_tokens=128)]
    order = order_rules(synthetic_traces("honest", 200, seed=2), rules, risk="selective_error", alpha=0.25)
    population = Population("honest", order.rules, [Limit("selective_error", 0.25)])

    assert_certified_often_and_rarely_wrong(population, exceeds)


def test_upper_and_lower_threshold_under_two_risks(exceeds: Exceeds) -> None:
    lowers = lower_threshold_rules("confidence", [4000, 2000, 1000, 500], slope_per_token=0.005, low=0.0, high=0.4)
    rules = joint_rules(upper_threshold_rules("confidence", [0.9, 0.95, 0.98, 0.99, 0.995, 0.999]), lowers)
    population = Population("hopeless", rules, [Limit("early_error", 0.2), Limit("premature_give_up", 0.05)])

    assert_certified_often_and_rarely_wrong(population, exceeds)


def assert_certified_often_and_rarely_wrong(population: Population, exceeds: Exceeds) -> None:
    chosen = [choice for choice in population.choices(300, certified) if choice is not None]

    assert len(chosen) > DRAWS / 2  # else there would be little to be wrong about
    assert not exceeds(sum(map(population.violates, chosen)), DRAWS, DELTA)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_certified_saving_is_near_that_of_the_best_rule_of_the_population(kind: str) -> None:
    population = upper_population(kind)
    best = max(population.saving[population.risks[0] <= 0.05])
    choices = population.choices(300, certified)

    mean = np.mean([0.0 if choice is None else population.saving[choice] for choice in choices])

    assert mean >= 0.85 * best


def boundary_null(num_rules: int, alpha: float) -> Population:
    """Every rule has a risk of just above alpha, each on problems of its own."""
    population = Population("honest", upper_family("honest")[:1], [Limit("early_error", alpha)])
    rng = np.random.default_rng(1)
    losses = np.zeros((num_rules, NUM_PROBLEMS))
    for row in losses:
        row[rng.permutation(NUM_PROBLEMS)[: int(alpha * NUM_PROBLEMS) + 1]] = 1
    population.losses, population.counted = losses[None], np.ones_like(losses[None], dtype=bool)
    population.risks, population.tokens = losses[None].mean(axis=2), rng.random((num_rules, NUM_PROBLEMS))
    return population


@pytest.mark.parametrize("n", [100, 300])
@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.1])
def test_boundary_null_is_certified_with_probability_at_most_delta(n: int, alpha: float, exceeds: Exceeds) -> None:
    population = boundary_null(40, alpha)

    assert not exceeds(population.num_violations(n, certified), DRAWS, DELTA)


def naive(p_values: Sequence[float], costs: Sequence[float], delta: float) -> int | None:
    """The cheapest rule of those that pass by themselves: no correction for having many."""
    passing = [index for index, p_value in enumerate(p_values) if p_value <= delta]
    return min(passing, key=costs.__getitem__, default=None)


def ordered_by_itself(p_values: Sequence[float], costs: Sequence[float], delta: float) -> int | None:
    """Fixed-sequence testing along an order learned from the very problems that it tests on."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    passing = [order[place] for place in fixed_sequence([p_values[index] for index in order], delta)]
    return min(passing, key=costs.__getitem__, default=None)


@pytest.mark.parametrize("choose", [naive, ordered_by_itself])
def test_uncorrected_choice_is_found_out(choose: Choose, exceeds: Exceeds) -> None:
    assert exceeds(boundary_null(40, 0.05).num_violations(300, choose), DRAWS, DELTA)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_observed_risk_without_a_bound_is_found_out(kind: str, exceeds: Exceeds) -> None:
    """The cheapest rule with an observed risk of at most alpha."""
    choose = passing_up_to(binomial_p_value(15, 300, 0.05))

    assert exceeds(upper_population(kind).num_violations(300, choose), DRAWS, DELTA)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_number_of_thresholds_in_the_place_of_n_is_found_out(kind: str, exceeds: Exceeds) -> None:
    """Hoeffding's correction with n = 50,000, the size of a grid, is 0.005 in the place of 0.11."""
    most = int(100 * (0.05 - np.sqrt(np.log(1 / DELTA) / (2 * 50_000))))
    choose = passing_up_to(binomial_p_value(most, 100, 0.05))

    assert exceeds(upper_population(kind).num_violations(100, choose), DRAWS, DELTA)


def passing_up_to(level: float) -> Choose:
    """The cheapest rule whose p-value is at most `level`: for one alpha and n, whose losses are at most so many."""
    return lambda p_values, costs, delta: naive(p_values, costs, level)


def test_the_simulation_does_what_certify_does() -> None:
    traces, rules = synthetic_traces("wavering", NUM_PROBLEMS).traces, upper_family("wavering")
    times = np.random.default_rng(0).multinomial(300, [1 / NUM_PROBLEMS] * NUM_PROBLEMS, size=DRAWS)

    for draw, chosen in enumerate(upper_population("wavering").choices(300, certified)[:4]):
        drawn = [
            replace(traces[index], problem_id=f"{index} {copy}")
            for index in np.flatnonzero(times[draw])
            for copy in range(times[draw, index])
        ]
        try:
            rule = certify(drawn, rules, risk="lost_correct", alpha=0.05, delta=DELTA).rule
        except Infeasible:
            rule = None
        assert rule == (None if chosen is None else rules[chosen])
