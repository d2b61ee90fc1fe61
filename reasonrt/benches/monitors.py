"""Whether evidence in service keeps its promise, and how soon it finds a rise, by simulation.

Worlds differ by what their questions are and by who draws what; in each of them the truth is known. The monitors of all
worlds are one array: tests/benches/test_monitors.py holds them to `DriftMonitor`. Ways to keep evidence that are known
to be wrong are checked as well: a check that does not detect those is broken.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reasonrt.calibration.stopping.bounds import binomial_lower_bound
from reasonrt.policies.stopping.drift import DriftMonitor

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

ALPHA, DELTA = 0.05, 0.1
NUM_REPLICAS, NUM_RESTARTS = 16, 20
RISES, GOOD = (1.1, 1.23, 1.25, 1.5, 2.0, 4.0), (0, 2000)
SHADOW = 0.05
NUM_SHADOWED = 10_000  # of one world; the horizon of its monitor
_LEVEL = 0.01  # of the interval of a rate
_DELAY_WORLDS = 200  # worlds per row: the smallest rise takes tens of thousands of votes in each
_NUM_QUESTIONS, _ZIPF = 100_000, 1.1
_NORMAL_975 = 1.959963984540054


class Monitors:
    """A `DriftMonitor` for each of many worlds.

    Attributes:
        sums: [num_rises, num_worlds].
        alarms: [num_worlds].
    """

    def __init__(self, num_worlds: int, alpha: float = ALPHA, delta: float = DELTA) -> None:
        one = DriftMonitor(alpha, delta)
        self._alpha, self._delta, self._horizon = alpha, delta, one.horizon
        self._bets = np.array(one.bets)[:, None]
        self._n = 0
        self.sums = np.zeros((len(self._bets), num_worlds))
        self.alarms = np.zeros(num_worlds, dtype=bool)

    @property
    def suspicion(self) -> Array:
        evidence = np.clip(self.sums.mean(axis=0), self._delta**2, 1 / self._delta)
        return np.asarray((2 - np.log(evidence) / math.log(self._delta)) / 3)

    def add(self, losses: Array) -> NDArray[np.bool_]:
        """One more vote in each world, [num_worlds]. Returns `alarms`."""
        self._n += 1
        self.sums += (1 / (self._n * (self._n + 1)) + 1 / self._horizon) / 2
        self.sums *= 1 + self._bets * (losses - self._alpha)
        np.minimum(self.sums, 1e300, out=self.sums)
        self.alarms |= self.sums.mean(axis=0) >= 1 / self._delta
        return self.alarms


Keep = Callable[[NDArray[np.bool_]], NDArray[np.bool_]]
"""From the losses of the votes, [num_worlds, num_votes], to which worlds have ever raised an alarm."""


def one_evidence(losses: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """As it is kept: whoever has seen the request, and whatever was started again meanwhile."""
    monitors = Monitors(len(losses))
    for votes in losses.T:
        monitors.add(votes)
    return monitors.alarms


def one_per_replica(losses: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Wrong: each replica watches what it has seen itself."""
    return _any_of(losses, NUM_REPLICAS)


def from_zero_after_restarts(losses: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Wrong: what was known is forgotten with the process."""
    return _any_of(losses, NUM_RESTARTS + 1)


def monitor_rows(num_worlds: int) -> Iterator[dict[str, Any]]:
    """False alarms over replicas, restarts and questions that come again and again, at a risk of exactly alpha."""
    fresh = np.random.default_rng(0).random((num_worlds, NUM_SHADOWED)) < ALPHA
    yield _rate("monitor", "replicas and restarts", one_evidence, one_evidence(fresh))
    for keep in (one_per_replica, from_zero_after_restarts):
        yield _rate("control", "replicas and restarts", keep, keep(fresh))
    yield _rate("monitor", "Zipf traffic", one_vote, one_vote(num_worlds, ALPHA))
    yield _rate("control", "Zipf traffic", a_vote_per_request, a_vote_per_request(num_worlds, ALPHA))
    yield _rate("power", "Zipf traffic", one_vote, one_vote(num_worlds, 2 * ALPHA))


def one_vote(num_worlds: int, risk: float) -> NDArray[np.bool_]:
    """The worlds that raise an alarm where each question departs with probability `risk`, and has one vote."""
    alarms = []
    for asked, departs in _zipf_worlds(num_worlds, risk):
        _, first = np.unique(asked, return_index=True)
        alarms.append(departs[asked[np.sort(first)]])
    return _ragged(alarms)


def a_vote_per_request(num_worlds: int, risk: float) -> NDArray[np.bool_]:
    """Wrong: the same, where who asks again votes again."""
    return _ragged([departs[asked] for asked, departs in _zipf_worlds(num_worlds, risk)])


def delay_rows(num_worlds: int = _DELAY_WORLDS) -> Iterator[dict[str, Any]]:
    """How many requests after a rise the alarm is raised: shadowed ones, and all of them."""
    for good in GOOD:
        for rise in RISES:
            shadowed, requests, before = delays(rise, good, num_worlds)
            yield {
                "part": "delay",
                "population": f"after {good} good",
                "rise": rise,
                "worlds": num_worlds,
                "alpha": ALPHA,
                "delta": DELTA,
                "shadowed_median": float(np.median(shadowed)),
                **_mean("shadowed", shadowed),
                "requests_median": float(np.median(requests)),
                **_mean("requests", requests),
                "shadowed_share_before": before,
            }


def delays(rise: float, good: int, num_worlds: int, alpha: float = ALPHA) -> tuple[Array, Array, float | None]:
    """Shadowed requests, and requests, from a rise to `rise` times alpha up to the alarm, [num_worlds].

    Before it, `good` shadowed requests have half the risk that is allowed; the last value is the share of all requests
    that these were. A world that has raised an alarm before counts with 0.
    """
    rng = np.random.default_rng(1)
    monitors = Monitors(num_worlds, alpha)
    shadowed, requests, spent = np.zeros(num_worlds), np.zeros(num_worlds), 0.0
    num = 0
    while not monitors.alarms.all():
        share = SHADOW ** (1 - monitors.suspicion)
        waited = rng.geometric(share)
        if num < good:
            spent += float(waited.mean())
        else:
            shadowed += ~monitors.alarms
            requests += waited * ~monitors.alarms
        monitors.add((rng.random(num_worlds) < (alpha / 2 if num < good else rise * alpha)).astype(float))
        num += 1
    return shadowed, requests, good / spent if good else None


def _any_of(losses: NDArray[np.bool_], num: int) -> NDArray[np.bool_]:
    """Whether any of `num` monitors has raised an alarm, which have shared the votes of each world."""
    each = losses.shape[1] // num
    own = losses[:, : each * num].reshape(len(losses) * num, each)
    return np.asarray(one_evidence(own).reshape(len(losses), num).any(axis=1))


def _zipf_worlds(num_worlds: int, risk: float) -> Iterator[tuple[Indices, NDArray[np.bool_]]]:
    """Of each world what was shadowed, by the number of the question, and which questions depart."""
    rng = np.random.default_rng(2)
    weights = np.arange(1, _NUM_QUESTIONS + 1) ** -_ZIPF
    cumulated = np.cumsum(weights / weights.sum())
    for _ in range(num_worlds):
        asked = np.searchsorted(cumulated, rng.random(NUM_SHADOWED) * cumulated[-1])
        yield asked, rng.random(_NUM_QUESTIONS) < risk


def _ragged(votes: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Alarms of worlds that have not as many votes each: the longest goes on alone."""
    order = np.argsort([-len(own) for own in votes], kind="stable")
    lengths = np.array([len(votes[index]) for index in order])
    monitors, alarms = Monitors(len(votes)), np.zeros(len(votes), dtype=bool)
    padded = np.zeros((len(votes), lengths[0]))
    for row, index in enumerate(order):
        padded[row, : lengths[row]] = votes[index]
    for column in range(lengths[0]):
        num_left = int(np.searchsorted(-lengths, -column, side="left"))
        monitors.add(padded[:, column])
        alarms[:num_left] = monitors.alarms[:num_left]
    return alarms


def _rate(part: str, population: str, keep: Callable[..., Any], alarms: NDArray[np.bool_]) -> dict[str, Any]:
    """A row; with `part` "monitor" alarms must be rare, "control" and "power" are where they must not be."""
    count, worlds = int(alarms.sum()), len(alarms)
    low = binomial_lower_bound(count, worlds, _LEVEL)
    least = {"control": DELTA, "power": 0.5}
    return {
        "part": part,
        "population": population,
        "choice": keep.__name__,
        "alpha": ALPHA,
        "delta": DELTA,
        "worlds": worlds,
        "alarms": count,
        "rate": count / worlds,
        "rate_low": low,
        "ok": low > least[part] if part in least else low <= DELTA,
    }


def _mean(name: str, values: Array) -> dict[str, float]:
    """With its 95 % interval."""
    mean, margin = float(values.mean()), _NORMAL_975 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return {name: mean, f"{name}_low": mean - margin, f"{name}_high": mean + margin}
