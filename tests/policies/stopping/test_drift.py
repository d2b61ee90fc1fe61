"""The alarm: rarely false, and soon."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from reasonrt.policies.stopping.drift import DriftMonitor


def false_alarms(losses: np.ndarray, alpha: float, delta: float) -> int:
    alarms = 0
    for row in losses.tolist():
        monitor = DriftMonitor(alpha, delta)
        alarms += any(monitor.add(loss) for loss in row)
    return alarms


def test_monitor_raises_false_alarms_with_probability_at_most_delta(
    exceeds: Callable[[int, int, float], bool],
) -> None:
    losses = np.random.default_rng(0).random((1000, 400)) < 0.05

    assert not exceeds(false_alarms(losses, 0.05, 0.1), 1000, 0.1)


def test_naive_monitor_raises_too_many(exceeds: Callable[[int, int, float], bool]) -> None:
    """The same data, looked at after every problem with a test for one look."""
    losses = np.random.default_rng(0).random((1000, 400)) < 0.05
    n = np.arange(1, 401)
    bound = 0.05 * n + 1.2816 * np.sqrt(0.05 * 0.95 * n)

    assert exceeds(int((losses.cumsum(axis=1) > bound).any(axis=1).sum()), 1000, 0.1)


def test_monitor_notices_a_rise_soon_after_a_long_good_time() -> None:
    rng = np.random.default_rng(0)
    delays = []
    for _ in range(50):
        monitor = DriftMonitor(alpha=0.05, delta=0.1)
        assert not [loss for loss in rng.random(1000) < 0.02 if monitor.add(float(loss))]
        delays.append(next(n for n in range(1, 1000) if monitor.add(float(rng.random() < 0.25))))

    assert np.median(delays) < 80


def test_alarm_stays() -> None:
    monitor = DriftMonitor(alpha=0.1, delta=0.1)
    for _ in range(50):
        monitor.add(1.0)
    for _ in range(500):
        monitor.add(0.0)

    assert monitor.alarm
    assert math.isfinite(monitor.evidence)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("rise", [1.1, 1.2, 1.25, 1.5, 3.0])
def test_a_rise_to_a_tenth_above_the_limit_is_found_in_the_end(alpha: float, rise: float) -> None:
    """The evidence against one of the alternatives grows by so many nats a problem: above 0, an alarm is certain."""
    risk, growth = rise * alpha, []
    for alternative in (min(times * alpha, (1 + alpha) / 2) for times in DriftMonitor.RISES):
        bet = (alternative - alpha) / (alpha * (1 - alpha))
        growth.append(risk * math.log1p(bet * (1 - alpha)) + (1 - risk) * math.log1p(-bet * alpha))

    assert max(growth) > 0
