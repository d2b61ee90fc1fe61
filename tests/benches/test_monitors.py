"""The simulation of certificates in service does what the real monitor does, and finds what is kept wrongly."""

import numpy as np

from reasonrt.benches.monitors import ALPHA, DELTA, Monitors, delays, monitor_rows
from reasonrt.policies.stopping.drift import DriftMonitor


def test_many_monitors_are_each_one() -> None:
    losses = np.random.default_rng(0).random((5, 300)) < np.array([[0.0], [0.02], [0.05], [0.2], [1.0]])
    many, ones = Monitors(5), [DriftMonitor(ALPHA, DELTA) for _ in losses]

    for votes in losses.T:
        alarms = many.add(votes)
        assert list(alarms) == [one.add(float(loss)) for one, loss in zip(ones, votes, strict=True)]
        np.testing.assert_allclose(many.sums.T, [one.sums for one in ones])
        suspicions = [1.0 if alarm else one.suspicion for alarm, one in zip(alarms, ones, strict=True)]
        np.testing.assert_allclose(np.where(alarms, 1.0, many.suspicion), suspicions)


def test_a_rise_is_found_sooner_in_requests_than_in_a_fixed_share_of_them() -> None:
    shadowed, requests, before = delays(2.0, 300, 40)

    assert before is not None
    assert 0.05 <= before < 0.15
    assert (requests >= shadowed).all()
    assert requests.mean() < 0.6 * shadowed.mean() / 0.05


def test_rows_say_what_should_be_and_what_is_kept_wrongly_is_found_out() -> None:
    rows = list(monitor_rows(120))

    assert [(row["part"], row["choice"], row["ok"]) for row in rows] == [
        ("monitor", "one_evidence", True),
        ("control", "one_per_replica", True),
        ("control", "from_zero_after_restarts", True),
        ("monitor", "one_vote", True),
        ("control", "a_vote_per_request", True),
        ("power", "one_vote", True),
    ]
    assert all(0 <= row["rate_low"] <= row["rate"] <= 1 for row in rows)
