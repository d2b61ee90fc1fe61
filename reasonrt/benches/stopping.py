"""The stopping bench, on populations whose truth is known: do certificates hold, and how near do they come to the best?

What is simulated is in `validity.py`; what is saved live, in `stopping_live.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from reasonrt.calibration.stopping.bounds import binomial_lower_bound
from reasonrt.calibration.stopping.candidates import FAMILIES, LEARNED, Splits, candidate_rules
from reasonrt.calibration.stopping.multiple_testing import pareto_order
from reasonrt.calibration.stopping.synthetic import KINDS, synthetic_traces
from reasonrt.calibration.stopping.trials import Limit
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.attempt import share_of_try
from reasonrt.policies.stopping.rules import StoppingRule
from reasonrt.policies.stopping.traces import TraceSet

RISK, DELTA = "lost_correct", 0.1
ALPHAS, SIZES = (0.02, 0.05, 0.1), (100, 300, 1000)
ALL = "all"
NUM_DRAWS = 2000
NEAR_ENOUGH = 0.85
LEVELS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12)  # that requests may choose from
LOOKS = (100, 200, 400, 800, 1600, 3200)  # at data that grow
MISTAKES = {"levels": "apart", "tries": "without a ledger", "looks": "with tests for one look"}
_NUM_TRIES = 9  # on one set
_LEVEL = 0.01  # the level of the interval of a violation rate
_SYNTHETIC_PROBLEMS = 1500


@dataclass(frozen=True)
class Case:
    """One family of rules on one population.

    Attributes:
        order: other problems, to learn an order from; None where the rules stand in the order of their testing.
    """

    name: str
    family: str
    rules: list[StoppingRule]
    order: TraceSet | None
    truth: TraceSet

    @cached_property
    def population(self) -> Population:
        """All rules on all problems there are."""
        return Population.of(self.truth, self.rules, [Limit(RISK, ALPHAS[0])])

    @cached_property
    def _elsewhere(self) -> Population | None:
        return Population.of(self.order, self.rules, [Limit(RISK, ALPHAS[0])]) if self.order else None

    def along_its_order(self, alpha: float) -> Population:
        """The rules that `order_rules` keeps, in its order; all of them where their order is known."""
        if self._elsewhere is None:
            return self.population.only(range(len(self.rules)), alpha)
        known = self._elsewhere.only(range(len(self.rules)), alpha).whole()
        return self.population.only(pareto_order(list(known.p_values[0]), list(known.tokens[0])), alpha)

    def row(self, **values: Any) -> dict[str, Any]:
        return {"population": self.name, "family": self.family, "delta": DELTA} | values


def cases(recorded: Splits | None, families: Iterable[str] = ()) -> Iterator[Case]:
    """Every family on every population that has the signals it reads, and all that take an order together."""
    populations = {
        kind: tuple(synthetic_traces(kind, n, seed) for n, seed in ((300, 1), (300, 2), (_SYNTHETIC_PROBLEMS, 0)))
        for kind in KINDS
    }
    populations |= {"recorded": recorded} if recorded else {}
    for name, (train, order, truth) in populations.items():
        known: list[StoppingRule] = []
        for family in families or FAMILIES:
            learn = TraceSet((*train, *order)) if family in LEARNED else train
            try:
                rules = candidate_rules(learn, [family])
            except CalibrationError:
                if name != "recorded":
                    raise
                continue  # it was not recorded
            yield Case(name, family, rules, None if family in LEARNED else order, truth)
            known += [] if family in LEARNED else rules
        if known:
            yield Case(name, ALL, list(dict.fromkeys(known)), order, truth)


def most_cases(recorded: Splits | None, families: Iterable[str] = ()) -> int:
    """How many `cases` there are, at most: a family that was not recorded is left out."""
    return (len(KINDS) + (recorded is not None)) * (len(tuple(families) or FAMILIES) + 1)


def validity_rows(case: Case, num_draws: int = NUM_DRAWS) -> Iterator[dict[str, Any]]:
    """How often certified rules break their promise, for each alpha and n; `ok` unless more often than delta."""
    for alpha in ALPHAS:
        population = case.along_its_order(alpha)
        for n in SIZES:
            found = _violations(population, n, certified, num_draws)
            yield case.row(part="validity", alpha=alpha, n=n, **found, ok=found["rate_low"] <= DELTA)


def control_rows(case: Case, num_draws: int = NUM_DRAWS) -> Iterator[dict[str, Any]]:
    """Choices without a bound, or with a wrong one, on a population: `ok` when the check detects them."""
    population = case.population.only(range(len(case.rules)), 0.05)
    for choose, n in ((observed, 300), (wrong_n, 100)):
        found = _violations(population, n, choose, num_draws)
        values = {"choice": choose.__name__, "alpha": 0.05, "n": n}
        yield case.row(part="control", **values, **found, ok=found["rate_low"] > DELTA)


def boundary_rows(num_draws: int = NUM_DRAWS) -> Iterator[dict[str, Any]]:
    """Every rule has a risk just above alpha: certified rules must be rare there, uncorrected ones are not."""
    for alpha in ALPHAS:
        population = boundary_null(40, alpha)
        for n in SIZES[:2]:
            found = _violations(population, n, certified, num_draws)
            values = {"part": "boundary", "population": "boundary", "alpha": alpha, "n": n, "delta": DELTA}
            yield {**values, **found, "ok": found["rate_low"] <= DELTA}
    for choose in (uncorrected, reused_split):
        found = _violations(boundary_null(40, 0.05), 300, choose, num_draws)
        values = {"part": "control", "population": "boundary", "choice": choose.__name__, "alpha": 0.05, "n": 300}
        yield {**values, "delta": DELTA, **found, "ok": found["rate_low"] > DELTA}


def levels_row(case: Case, num_draws: int = NUM_DRAWS) -> dict[str, Any]:
    """Levels that requests choose from, on the same problems: wrong where any is. Apart each has all of delta."""
    populations = [case.along_its_order(alpha) for alpha in LEVELS]
    return _beside_the_mistake(case.row(part="levels"), *_levels(populations, num_draws))


def tries_row(tried: Sequence[Case], num_draws: int = NUM_DRAWS) -> dict[str, Any]:
    """Families tried one after the other on the same problems: wrong where any is. Without a ledger each has delta."""
    populations = [case.along_its_order(0.05) for case in tried]
    return _beside_the_mistake(tried[0].row(part="tries", family=ALL), *_tries(populations, num_draws))


def looks_row(case: Case, num_draws: int = NUM_DRAWS) -> dict[str, Any]:
    """One family, certified again when problems have been added: wrong where it is at any look."""
    return _beside_the_mistake(case.row(part="looks"), *_looks(case.along_its_order(0.05), num_draws))


def joint_boundary_rows(num_draws: int = NUM_DRAWS) -> Iterator[dict[str, Any]]:
    """The same where every rule has a risk just above alpha, on problems of its own: there each mistake must show."""
    by_level = [boundary_null(40, alpha, seed=seed) for seed, alpha in enumerate(LEVELS)]
    by_try = [boundary_null(40, 0.05, seed=seed) for seed in range(_NUM_TRIES)]
    for part, (right, mistake) in (
        ("levels", _levels(by_level, num_draws)),
        ("tries", _tries(by_try, num_draws)),
        ("looks", _looks(boundary_null(40, 0.05), num_draws)),
    ):
        base = {"population": "boundary", "delta": DELTA}
        yield {"part": part, **base, **right, "ok": right["rate_low"] <= DELTA}
        yield {
            "part": "control",
            **base,
            "choice": f"{part} {MISTAKES[part]}",
            **mistake,
            "ok": mistake["rate_low"] > DELTA,
        }


def tightness_row(case: Case, n: int = 300, alpha: float = 0.05, num_draws: int = NUM_DRAWS) -> dict[str, Any]:
    """The net saving of what is certified, as a share of that of the best rule of the family on the population."""
    everything = case.population.only(range(len(case.rules)), alpha)
    best = everything.best_saving()
    population = case.along_its_order(alpha)
    chosen = certified(population.draws(n, num_draws), DELTA)
    saving = population.mean_saving(chosen)
    share = saving / best if best > 0 else None
    return case.row(
        part="tightness",
        alpha=alpha,
        n=n,
        saving=saving,
        best_saving=best,
        share_of_best=share,
        one_test_saving=everything.one_test_saving(n, DELTA),
        certified=float((chosen >= 0).mean()),
        mean_risk=float(np.where(chosen >= 0, population.risks[0][chosen], 0).mean()),
        ok=share is not None and share >= NEAR_ENOUGH,
    )


Found = dict[str, Any]


def _levels(populations: Sequence[Population], num_draws: int) -> tuple[Found, Found]:
    def certify(delta: float) -> Found:
        chosen = [(each, certified(each.draws(300, num_draws), delta)) for each in populations]
        return {"alphas": LEVELS, "n": 300, **_any_wrong(chosen)}

    return certify(DELTA / len(LEVELS)), certify(DELTA)


def _tries(populations: Sequence[Population], num_draws: int) -> tuple[Found, Found]:
    def certify(shares: Sequence[float]) -> Found:
        tries = zip(populations, shares, strict=True)
        chosen = [(each, certified(each.draws(300, num_draws), DELTA * share)) for each, share in tries]
        return {"alpha": 0.05, "n": 300, "tries": len(populations), **_any_wrong(chosen)}

    numbers = range(1, len(populations) + 1)
    return certify([share_of_try(number) for number in numbers]), certify([1.0 for _ in numbers])


def _looks(population: Population, num_draws: int) -> tuple[Found, Found]:
    def certify(choose: Choose) -> Found:
        chosen = [(population, choose(draws, DELTA)) for draws in population.growing(LOOKS, num_draws)]
        return {"alpha": 0.05, "n": LOOKS, **_any_wrong(chosen)}

    return certify(certified_while_growing), certify(certified)


def _any_wrong(chosen: Sequence[tuple[Population, NDArray[np.int64]]]) -> Found:
    """How often any of the certificates of a draw is wrong, and what they save on average."""
    is_wrong = np.any([population.violates(index) for population, index in chosen], axis=0)
    is_certified = np.any([index >= 0 for _, index in chosen], axis=0)
    saving = float(np.mean([population.mean_saving(index) for population, index in chosen]))
    return {**_counted(is_wrong, is_certified), "saving": saving}


def _beside_the_mistake(base: Found, right: Found, mistake: Found) -> Found:
    """On a population a mistake need not show: its rules may keep a distance from alpha. So it is told, not checked."""
    told = {"mistake_rate": mistake["rate"], "mistake_saving": mistake["saving"]}
    return {**base, **right, **told, "ok": right["rate_low"] <= DELTA}


def _violations(population: Population, n: int, choose: Choose, num_draws: int) -> dict[str, Any]:
    chosen = choose(population.draws(n, num_draws), DELTA)
    return _counted(population.violates(chosen), chosen >= 0)


def _counted(is_wrong: NDArray[np.bool_], is_certified: NDArray[np.bool_]) -> dict[str, Any]:
    count, num_draws = int(is_wrong.sum()), len(is_wrong)
    return {
        "draws": num_draws,
        "certified": float(is_certified.mean()),
        "violations": count,
        "rate": count / num_draws,
        "rate_low": binomial_lower_bound(count, num_draws, _LEVEL),
    }
