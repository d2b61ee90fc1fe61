"""The pace of an engine: exact where it can be, sane everywhere."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.pace import Pace
from reasonrt.types import FinishReason, TokenDelta

seconds = st.floats(0.0, 100.0)
counts = st.integers(0, 5000)
starts = st.lists(st.tuples(seconds, counts), min_size=1, max_size=40)
decodes = st.lists(st.tuples(seconds, st.integers(1, 600)), max_size=40)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def delta(tokens: int = 1, cached: int = 0, finish: FinishReason | None = None) -> TokenDelta:
    return TokenDelta((7,) * tokens, finish_reason=finish, cached_tokens=cached)


def test_nothing_is_predicted_before_anything_was_measured() -> None:
    pace = Pace()

    assert pace.seconds(10) is pace.seconds_per_token is pace.first_token_s is None
    assert pace.prefill_s_per_token == pace.running == 0


def test_a_generation_is_timed_from_its_submission_to_its_deltas() -> None:
    clock = Clock()
    pace = Pace(clock)
    watch = pace.watch(prompt_tokens=30)
    for wait_s, arrived in ((0.5, delta(1, cached=10)), (0.2, delta(2)), (0.4, delta(4, finish=FinishReason.STOP))):
        watch.asked()
        assert pace.running == 1
        clock.now += wait_s
        watch.came(arrived)

    assert pace.running == 0
    assert pace.first_token_s == pytest.approx(0.5)
    assert pace.seconds_per_token == pytest.approx(0.1)
    # one step with nothing missing, the rest over the twenty tokens that were
    assert pace.prefill_s_per_token == pytest.approx(0.4 / 20)
    assert pace.seconds(11, missing_tokens=5) == pytest.approx(0.1 + 5 * 0.02 + 10 * 0.1)


def generation(pace: Pace, clock: Clock, seconds_per_token: float, tokens: int = 20) -> None:
    watch = pace.watch(prompt_tokens=5)
    for _ in range(tokens):
        watch.asked()
        clock.now += seconds_per_token
        watch.came(delta())
    watch.ended()


def test_a_generation_that_waited_for_others_does_not_make_an_engine_slow() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.undisturbed is None

    for seconds_per_token in (0.3, 0.1, 0.9, 0.5):
        generation(pace, clock, seconds_per_token)
    generation(pace, clock, 0.01, tokens=4)  # too short to tell

    assert pace.undisturbed == pytest.approx((0.1, 0.0), rel=0.05)
    assert pace.seconds_per_token == pytest.approx(0.45, rel=0.2)
    for _ in range(128):  # the machine has become slower
        generation(pace, clock, 0.3)
    assert pace.undisturbed == pytest.approx((0.3, 0.0), rel=0.05)


def test_what_concurrent_generations_add_is_found() -> None:
    clock = Clock()
    pace = Pace(clock)

    for running in (1, 4, 16):
        pace.running = running - 1
        generation(pace, clock, 0.1 + 0.02 * running)

    assert pace.undisturbed == pytest.approx((0.1, 0.02), rel=0.1)


def test_a_delta_that_was_ready_before_it_was_asked_for_tells_nothing() -> None:
    clock = Clock()
    pace = Pace(clock)
    watch = pace.watch(5)
    for away_s, wait_s in ((0.0, 0.3), (0.0, 0.1), (60.0, 0.0), (0.01, 0.09)):
        clock.now += away_s
        watch.asked()
        clock.now += wait_s
        watch.came(delta())

    assert pace.seconds_per_token == pytest.approx(0.1)


def test_running_counts_each_generation_once() -> None:
    pace = Pace(Clock())
    never, given_up, finished = (pace.watch(1) for _ in range(3))
    given_up.asked()
    finished.asked()

    assert pace.running == 2
    never.ended()
    given_up.ended()
    given_up.ended()
    finished.came(delta(0, finish=FinishReason.LENGTH))
    finished.ended()
    finished.asked()
    assert pace.running == 0
    assert pace.first_token_s is None  # it never came


def test_the_speed_of_late_counts() -> None:
    pace = Pace()
    for tokens_per_s in (10, 1000):
        for _ in range(2000):
            pace.started(1 / tokens_per_s, 0)
            pace.decoded(4 / tokens_per_s, 4)

    assert pace.seconds_per_token == pytest.approx(0.001, rel=0.1)
    assert pace.first_token_s == pytest.approx(0.001, rel=0.01)


@given(constant=st.floats(0.001, 1.0), slope=st.floats(1e-5, 1e-2), lengths=st.lists(counts, min_size=30, max_size=60))
def test_the_line_is_found(constant: float, slope: float, lengths: list[int]) -> None:
    """Within the pull towards the prior, for lengths that differ as those of prompts do."""
    pace = Pace()
    pace.decoded(constant, 1)
    for length in (*lengths, 0, 5000, 2000):
        pace.started(constant + slope * length, length)

    for missing in (0, 100, 5000):
        assert pace.seconds(1, missing) == pytest.approx(constant + slope * missing, rel=0.05, abs=0.05 * slope * 2500)


@given(starts=starts, decodes=decodes, new=st.floats(0, 1e6), missing=counts)
def test_nothing_is_ever_negative_or_infinite(
    starts: list[tuple[float, int]], decodes: list[tuple[float, int]], new: float, missing: int
) -> None:
    pace = Pace()
    for measured in starts:
        pace.started(*measured)
    for measured in decodes:
        pace.decoded(*measured)

    predicted = pace.seconds(new, missing)
    assert predicted is not None
    assert 0 <= predicted < math.inf
    assert pace.prefill_s_per_token >= 0
    assert predicted <= (pace.seconds(new + 1, missing + 1) or 0) * (1 + 1e-9)
    spans = [span for span, _ in starts]
    assert min(spans) - 1e-6 <= (pace.first_token_s or 0) <= max(spans) + 1e-6


@given(span=seconds, missing=counts)
def test_what_was_measured_once_is_predicted_again(span: float, missing: int) -> None:
    pace = Pace()
    pace.started(span, missing)

    assert pace.seconds(1, missing) == pytest.approx(span, abs=1e-6)
