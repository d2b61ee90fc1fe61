"""The cost model of speculation: its limits, its direction, and where it says that nothing is gained."""

from dataclasses import astuple, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.calibration.speedup import break_even_share, fit_speed
from reasonrt.errors import CalibrationError
from reasonrt.policies.speculation.costs import Parts, Speed, Work, planned, predicted_speedup

SPEEDS = st.builds(Speed, pass_s=st.floats(1e-3, 1), write_s=st.floats(0, 0.1), read_s=st.floats(0, 0.1))
WORKS = st.builds(Work, passes=st.floats(1, 1000), read=st.floats(1, 5000))
PARTS = st.builds(
    Parts,
    draft=SPEEDS,
    target=SPEEDS,
    alone=WORKS,
    drafted=WORKS,
    targeted=WORKS,
    waits_s=st.floats(0, 1),
    at_once=st.floats(1, 64),
    is_shared=st.booleans(),
)


def test_published_formula_is_the_case_of_one_problem_and_free_tokens() -> None:
    """S = 1 / (c + rho + (1 - a)) with c = 0.2, rho = 0.1: the router waits a tenth of a target's token per token."""
    for accepted, expected in ((0.5, 1.25), (0.7, 1.667), (0.9, 2.5)):
        parts = planned(Speed(0.2), Speed(1.0), accepted, tokens=100, prompt_tokens=50, is_verified=False)

        assert predicted_speedup(replace(parts, waits_s=0.1 * 100)) == pytest.approx(expected, abs=1e-3)


@given(PARTS, WORKS, st.sampled_from(["drafted", "targeted"]))
def test_more_work_never_helps_one_problem(parts: Parts, more: Work, who: str) -> None:
    parts = replace(parts, at_once=1.0)
    own = getattr(parts, who)
    change: dict[str, Any] = {who: Work(own.passes + more.passes, own.read + more.read)}
    burdened = replace(parts, **change)

    assert predicted_speedup(burdened) <= predicted_speedup(parts) * (1 + 1e-9)


@given(PARTS)
def test_a_device_of_its_own_is_never_worse(parts: Parts) -> None:
    shared, apart = (predicted_speedup(replace(parts, is_shared=flag)) for flag in (True, False))

    assert apart >= shared * (1 - 1e-9)


@given(PARTS)
def test_work_on_a_shared_device_adds_up(parts: Parts) -> None:
    """No pass holds more problems than there are, and none less than one: between these the seconds lie."""
    parts = replace(parts, is_shared=True)
    pair = ((parts.drafted, parts.draft), (parts.targeted, parts.target))
    waits_s = parts.waits_s / parts.at_once
    least, most = (sum(work.seconds(speed, n) for work, speed in pair) + waits_s for n in (parts.at_once, 1.0))

    seconds = parts.alone.seconds(parts.target, parts.at_once) / predicted_speedup(parts)

    assert least * (1 - 1e-6) <= seconds <= most * (1 + 1e-6)


@given(SPEEDS, SPEEDS, st.floats(10, 500), st.booleans(), st.floats(1, 64))
def test_at_the_break_even_share_the_pair_is_as_fast_as_the_target(
    draft: Speed, target: Speed, tokens: float, is_verified: bool, at_once: float
) -> None:
    plan: dict[str, Any] = {"tokens": tokens, "prompt_tokens": 60.0, "is_verified": is_verified, "at_once": at_once}

    share = break_even_share(draft, target, **plan)

    if share is None:
        assert predicted_speedup(planned(draft, target, 1.0, **plan)) <= 1.0
    elif 1e-5 < share < 1 - 1e-5:
        below, above = (predicted_speedup(planned(draft, target, share + by, **plan)) for by in (-1e-5, 1e-5))
        assert below <= 1.0 + 1e-6
        assert above >= 1.0 - 1e-6


@given(SPEEDS, st.lists(st.tuples(WORKS, st.floats(1, 64)), min_size=3, max_size=6))
def test_a_speed_is_found_again(speed: Speed, runs: list[tuple[Work, float]]) -> None:
    """It explains what was measured, whether or not the measurements tell its three numbers apart."""
    measured = [(work.seconds(speed, at_once), work, at_once) for work, at_once in runs]

    found = fit_speed(measured)

    if len({at_once for _, _, at_once in measured}) > 1:
        for seconds, work, at_once in measured:
            assert work.seconds(found, at_once) == pytest.approx(seconds, rel=1e-6)


def test_what_cannot_be_told_is_free() -> None:
    """One measurement tells of passes; a second of reading; a second concurrency of written tokens."""
    reads = (0.3 + 0.02, Work(1, 300), 1.0)

    assert fit_speed([(2.0, Work(100, 500), 1.0)]) == Speed(0.02)
    found = fit_speed([(2.05, Work(100, 50), 1.0), reads])
    assert astuple(found) == pytest.approx((0.02, 0.0, 0.001))
    found = fit_speed([(2.05, Work(100, 50), 1.0), reads, (0.05 + 1.25, Work(100, 50), 4.0)])
    assert astuple(found) == pytest.approx((0.01, 0.01, 0.001))
    assert fit_speed([(1.0, Work(1, 300), at_once) for at_once in (1.0, 1.0)]).pass_s > 0
    with pytest.raises(CalibrationError, match="at least one measurement"):
        fit_speed([])


def test_reading_costs_a_pair_that_verifies_and_not_the_target_alone() -> None:
    def gain(read_s: float) -> float:
        target = Speed(0.01, 0.005, read_s)
        return predicted_speedup(planned(Speed(0.002), target, 0.7, tokens=100, prompt_tokens=0, at_once=8))

    assert gain(0.0) > gain(0.001) > gain(0.005)


@pytest.mark.parametrize("wrong", [{"accepted_share": 1.2}, {"tokens": 0}, {"step_tokens": 0}])
def test_impossible_plans_are_refused(wrong: dict[str, float]) -> None:
    known: dict[str, Any] = {"accepted_share": 0.5, "tokens": 100, "prompt_tokens": 10, "step_tokens": 10} | wrong
    with pytest.raises(CalibrationError, match=r"accepted_share must be in \[0, 1\]"):
        planned(Speed(1.0), Speed(1.0), **known)


@pytest.mark.parametrize("wrong", [(-1.0, 1.0), (0.0, 0.0), (0.0, 0.0, 1.0), (1.0, float("nan"))])
def test_impossible_speeds_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(CalibrationError, match="must not be negative"):
        Speed(*wrong)
