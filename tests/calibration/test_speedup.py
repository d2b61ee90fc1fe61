"""The cost model of speculation: its limits, its direction, and where it says that nothing is gained."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.calibration.speedup import Parts, break_even_share, predicted_speedup
from reasonrt.errors import CalibrationError

PARTS = st.builds(
    Parts,
    draft_s=st.floats(0.001, 1),
    target_s=st.floats(0.001, 1),
    accepted_share=st.floats(0, 1),
    step_tokens=st.floats(1, 100),
    wasted_share=st.floats(0, 1),
    router_s=st.floats(0, 1),
    draft_start_s=st.floats(0, 1),
    target_start_s=st.floats(0, 1),
    is_run_ahead=st.booleans(),
)


def test_published_formula_is_the_lock_step_case() -> None:
    """S = 1 / (c + rho + (1 - a)) with c = 0.2, rho = 0.1, and a rejected step's draft counted as waste."""
    for accepted, expected in ((0.5, 1.25), (0.7, 1.667), (0.9, 2.5)):
        parts = Parts(0.2, 1.0, accepted, 10, wasted_share=1 - accepted, router_s=1.0, is_run_ahead=False)
        assert predicted_speedup(parts) == pytest.approx(expected, abs=1e-3)


@given(PARTS)
def test_run_ahead_is_never_slower_than_lock_step(parts: Parts) -> None:
    ahead, behind = (predicted_speedup(replace(parts, is_run_ahead=flag)) for flag in (True, False))

    assert ahead >= behind * (1 - 1e-9)


@given(PARTS, st.floats(0, 3), st.floats(0, 1))
def test_verifications_cost_their_passes(parts: Parts, share: float, verify_s: float) -> None:
    """In seconds per token: their share of a step's, whatever else there is."""
    without, with_them = (
        parts.target_s / predicted_speedup(each)
        for each in (parts, replace(parts, verified_share=share, verify_s=verify_s))
    )

    assert with_them - without == pytest.approx(parts.length_ratio * share * verify_s / parts.step_tokens, abs=1e-9)


@given(PARTS)
def test_free_target_gains_nothing_and_everything_accepted_gains_the_ratio(parts: Parts) -> None:
    free = replace(parts, accepted_share=1.0, wasted_share=0.0, router_s=0.0, draft_start_s=0.0, is_run_ahead=True)

    assert predicted_speedup(free) == pytest.approx(parts.target_s / parts.draft_s)
    assert predicted_speedup(replace(free, accepted_share=0.0)) == pytest.approx(1.0 / (1 + parts.target_start_s / (
        parts.step_tokens * parts.target_s)))  # fmt: skip


@given(PARTS)
def test_at_the_break_even_share_the_pair_is_as_fast_as_the_target(parts: Parts) -> None:
    share = break_even_share(parts)

    if share is None:
        assert predicted_speedup(replace(parts, accepted_share=1.0, wasted_share=0.0)) <= 1.0
    elif share > 1e-5:
        assert predicted_speedup(replace(parts, accepted_share=share, wasted_share=1 - share)) == pytest.approx(
            1.0, rel=1e-3, abs=1e-3
        )


@pytest.mark.parametrize("wrong", [{"draft_s": 0.0}, {"target_s": -1.0}, {"accepted_share": 1.2}, {"step_tokens": 0}])
def test_impossible_parts_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(CalibrationError, match="must be positive"):
        replace(Parts(1.0, 1.0, 0.5, 10), **wrong)
