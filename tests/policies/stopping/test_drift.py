"""The alarm: rarely false, and soon."""

import math
from collections.abc import Callable

import numpy as np

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
