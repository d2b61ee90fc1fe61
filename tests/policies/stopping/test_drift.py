"""The alarm: rarely false, and soon, however long it was not needed."""

import math
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.policies.stopping.drift import DriftMonitor


def false_alarms(losses: np.ndarray, alpha: float, delta: float, horizon: int) -> int:
    alarms = 0
    for row in losses.tolist():
        monitor = DriftMonitor(alpha, delta, horizon)
        alarms += any(monitor.add(loss) for loss in row)
    return alarms


def test_an_alarm_within_the_horizon_is_false_with_probability_at_most_delta(
    exceeds: Callable[[int, int, float], bool],
) -> None:
    losses = np.random.default_rng(0).random((600, 300)) < 0.05

    assert not exceeds(false_alarms(losses, 0.05, 0.1, 300), 600, 0.1)


def test_a_test_for_one_look_raises_too_many(exceeds: Callable[[int, int, float], bool]) -> None:
    """The same data, looked at after every problem."""
    losses = np.random.default_rng(0).random((1000, 400)) < 0.05
    n = np.arange(1, 401)
    bound = 0.05 * n + 1.2816 * np.sqrt(0.05 * 0.95 * n)

    assert exceeds(int((losses.cumsum(axis=1) > bound).any(axis=1).sum()), 1000, 0.1)


def run_length(monitor: DriftMonitor, losses: Iterator[bool]) -> int:
    return next(n for n in count(1) if monitor.add(next(losses)))


def test_on_average_as_many_problems_pass_before_a_false_alarm_as_are_promised() -> None:
    """With 99 % confidence; and a monitor that begins anew at each problem without a weight keeps no such promise."""

    class Unweighted(DriftMonitor):
        def add(self, loss: float) -> bool:
            self.sums = [1 - self._weight() + total for total in self.sums]  # one for each time that it may have risen
            return super().add(loss)

        def _weight(self) -> float:
            return (1 / ((self.n + 1) * (self.n + 2)) + 1 / self.horizon) / 2

    rng, delta, horizon, alpha = np.random.default_rng(0), 0.25, 40, 0.2
    promised = horizon * (2 / delta - 1)

    def lengths(kind: type[DriftMonitor], num: int) -> np.ndarray:
        risks = ((rng.random(4096) < alpha).tolist() for _ in count())
        losses = (loss for block in risks for loss in block)
        return np.array([run_length(kind(alpha, delta, horizon), losses) for _ in range(num)])

    kept, broken = lengths(DriftMonitor, 200), lengths(Unweighted, 200)

    assert kept.mean() - 2.326 * kept.std() / math.sqrt(len(kept)) > promised
    assert broken.mean() + 2.326 * broken.std() / math.sqrt(len(broken)) < promised


def test_a_long_good_past_delays_no_alarm() -> None:
    """Twenty times as long: the same delay, and each is short."""
    rng = np.random.default_rng(0)
    delays: dict[int, list[int]] = {500: [], 10_000: []}
    for good, found in delays.items():
        past = DriftMonitor(alpha=0.05, delta=0.1)
        for loss in rng.random(good) < 0.02:
            assert not past.add(float(loss))
        for _ in range(60):
            monitor = DriftMonitor(0.05, 0.1, n=past.n, sums=list(past.sums))
            found.append(run_length(monitor, iter((rng.random(2000) < 0.25).tolist())))

    assert np.median(delays[10_000]) < np.median(delays[500]) + 10 < 80


def test_alarm_stays() -> None:
    monitor = DriftMonitor(alpha=0.1, delta=0.1)
    for _ in range(50):
        monitor.add(1.0)
    for _ in range(500):
        monitor.add(0.0)

    assert monitor.alarm
    assert monitor.suspicion == 1.0
    assert math.isfinite(monitor.evidence)


@given(
    st.lists(st.booleans(), max_size=60),
    st.floats(0.001, 0.98),
    st.floats(0.001, 0.5),
    st.integers(1, 10**6),
)
def test_suspicion_is_a_share_that_is_whole_at_the_alarm(
    losses: list[bool], alpha: float, delta: float, horizon: int
) -> None:
    monitor = DriftMonitor(alpha, delta, horizon)
    for loss in losses:
        before = monitor.evidence
        monitor.add(loss)
        assert 0 <= monitor.suspicion <= 1
        assert (monitor.suspicion == 1) == monitor.alarm or math.isclose(monitor.evidence * delta, 1)
        assert monitor.evidence > before if loss else monitor.evidence <= before + 1


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("rise", [1.1, 1.2, 1.25, 1.5, 3.0])
def test_a_rise_to_a_tenth_above_the_limit_is_found_in_the_end(alpha: float, rise: float) -> None:
    """The evidence against one of the alternatives grows by so many nats a problem: above 0, an alarm is certain."""
    risk, growth = rise * alpha, []
    for bet in DriftMonitor(alpha, 0.1).bets:
        growth.append(risk * math.log1p(bet * (1 - alpha)) + (1 - risk) * math.log1p(-bet * alpha))

    assert max(growth) > 0
