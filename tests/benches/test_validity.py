"""The promise itself, by simulation: populations where the truth is known, and many draws of problems from them.

Checks that must find a violation stand beside those that must not. That the simulation does what `certify` does is the
last test here.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from reasonrt.benches.validity import (
    Choose,
    Population,
    boundary_null,
    certified,
    certified_while_growing,
    observed,
    reused_split,
    uncorrected,
    wrong_n,
)
from reasonrt.calibration.stopping.certification import certify, order_rules
from reasonrt.calibration.stopping.families import (
    dynasor_rules,
    joint_rules,
    lower_threshold_rules,
    quantile_thresholds,
    upper_threshold_rules,
)
from reasonrt.calibration.stopping.sample_size import Infeasible
from reasonrt.calibration.stopping.synthetic import KINDS, synthetic_traces
from reasonrt.calibration.stopping.trials import Limit
from reasonrt.policies.stopping.rules import StoppingRule
from reasonrt.policies.stopping.traces import TraceSet

NUM_PROBLEMS, DRAWS, DELTA = 1500, 2000, 0.1
Exceeds = Callable[[int, int, float], bool]


@cache
def upper_family(kind: str) -> list[StoppingRule]:
    thresholds = quantile_thresholds(synthetic_traces(kind, 300, seed=1), "confidence", 60)
    return [*upper_threshold_rules("confidence", thresholds)]


@cache
def upper_population(kind: str, risk: str = "lost_correct") -> Population:
    return Population.of(synthetic_traces(kind, NUM_PROBLEMS), upper_family(kind), [Limit(risk, 0.05)])


def num_violations(population: Population, n: int, choose: Choose) -> int:
    return int(population.violates(choose(population.draws(n, DRAWS), DELTA)).sum())


@pytest.mark.parametrize("risk", ["lost_correct", "early_error"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_certified_risk_exceeds_alpha_with_probability_at_most_delta(kind: str, risk: str, exceeds: Exceeds) -> None:
    for alpha in (0.02, 0.05, 0.1):
        population = replace(upper_population(kind, risk), alphas=np.array([alpha]))
        for n in (100, 300, 1000):
            violations = num_violations(population, n, certified)

            assert not exceeds(violations, DRAWS, DELTA), (alpha, n, violations / DRAWS)


def test_selective_error_along_a_learned_order(exceeds: Exceeds) -> None:
    rules = [*upper_family("honest"), *dynasor_rules(range(2, 7), every_tokens=128)]
    order = order_rules(synthetic_traces("honest", 200, seed=2), rules, risk="selective_error", alpha=0.25)
    traces = synthetic_traces("honest", NUM_PROBLEMS)
    population = Population.of(traces, order.rules, [Limit("selective_error", 0.25)])

    assert_certified_often_and_rarely_wrong(population, exceeds)


def test_upper_and_lower_threshold_under_two_risks(exceeds: Exceeds) -> None:
    lowers = lower_threshold_rules("confidence", [4000, 2000, 1000, 500], slope_per_token=0.005, low=0.0, high=0.4)
    rules = joint_rules(upper_threshold_rules("confidence", [0.9, 0.95, 0.98, 0.99, 0.995, 0.999]), lowers)
    limits = [Limit("early_error", 0.2), Limit("premature_give_up", 0.05)]
    population = Population.of(synthetic_traces("hopeless", NUM_PROBLEMS), rules, limits)

    assert_certified_often_and_rarely_wrong(population, exceeds)


def assert_certified_often_and_rarely_wrong(population: Population, exceeds: Exceeds) -> None:
    chosen = certified(population.draws(300, DRAWS), DELTA)

    assert (chosen >= 0).mean() > 0.5  # else there would be little to be wrong about
    assert not exceeds(int(population.violates(chosen).sum()), DRAWS, DELTA)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_certified_saving_is_near_that_of_the_best_rule_of_the_population(kind: str) -> None:
    population = upper_population(kind)

    saving = population.mean_saving(certified(population.draws(300, DRAWS), DELTA))

    assert saving >= 0.85 * population.best_saving() > 0


@pytest.mark.parametrize("n", [100, 300])
@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.1])
def test_boundary_null_is_certified_with_probability_at_most_delta(n: int, alpha: float, exceeds: Exceeds) -> None:
    assert not exceeds(num_violations(boundary_null(40, alpha), n, certified), DRAWS, DELTA)


@pytest.mark.parametrize("choose", [uncorrected, reused_split])
def test_uncorrected_choice_is_found_out(choose: Choose, exceeds: Exceeds) -> None:
    assert exceeds(num_violations(boundary_null(40, 0.05), 300, choose), DRAWS, DELTA)


@pytest.mark.parametrize(("choose", "n"), [(observed, 300), (wrong_n, 100)])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_observed_risk_with_no_bound_or_a_wrong_one_is_found_out(
    kind: str, choose: Choose, n: int, exceeds: Exceeds
) -> None:
    assert exceeds(num_violations(upper_population(kind), n, choose), DRAWS, DELTA)


def test_the_simulation_does_what_certify_does() -> None:
    traces, rules = synthetic_traces("wavering", NUM_PROBLEMS).traces, upper_family("wavering")
    times = np.random.default_rng(0).multinomial(300, [1 / NUM_PROBLEMS] * NUM_PROBLEMS, size=DRAWS)
    chosen = certified(upper_population("wavering").draws(300, DRAWS), DELTA)

    for draw in range(4):
        drawn = [
            replace(traces[index], problem_id=f"{index} {copy}")
            for index in np.flatnonzero(times[draw])
            for copy in range(times[draw, index])
        ]
        try:
            rule = certify(drawn, rules, risk="lost_correct", alpha=0.05, delta=DELTA).rule
        except Infeasible:
            rule = None
        assert rule == (None if chosen[draw] < 0 else rules[chosen[draw]])


def test_the_simulation_of_growing_data_does_what_certify_does() -> None:
    """Draw by draw, from the same random numbers: `growing` adds problems, and every size is a look."""
    num_problems, sizes = 200, (80, 160, 320)
    traces, rules = synthetic_traces("wavering", num_problems), upper_family("wavering")[:20]
    population = Population.of(traces, rules, [Limit("lost_correct", 0.1)])
    rng, times = np.random.default_rng(0), np.zeros((3, num_problems), int)

    for before, size, draws in zip((0, *sizes), sizes, population.growing(sizes, 3), strict=False):
        times += rng.multinomial(size - before, [1 / num_problems] * num_problems, size=3)
        for chosen, counts in zip(certified_while_growing(draws, DELTA), times, strict=True):
            drawn = TraceSet(
                tuple(traces.traces[index] for index in np.repeat(range(num_problems), counts)), is_drawn=True
            )
            try:
                rule = certify(drawn, rules, risk="lost_correct", alpha=0.1, delta=DELTA, growing=True).rule
            except Infeasible:
                rule = None
            assert rule == (None if chosen < 0 else rules[chosen])


@pytest.mark.parametrize(("n", "expected"), [(44, 0.0), (45, 0.5), (10_000, 0.5)])  # 0.95^45 is the first below 0.1
def test_the_best_single_test_saves_what_it_can_certify(n: int, expected: float) -> None:
    num_problems = 1000
    losses = np.zeros((1, 2, num_problems))
    losses[0, 1, :80] = 1  # saves more, and breaks its promise
    population = Population(
        losses, np.ones_like(losses), np.array([[5.0], [1.0]]).repeat(num_problems, 1),
        np.full(num_problems, 10.0), np.array([0.05]),
    )  # fmt: skip

    saving = population.one_test_saving(n, 0.1)

    assert saving == pytest.approx(expected, abs=0.04)
