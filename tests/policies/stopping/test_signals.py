"""Signals against formulas over the whole history, and at their edges."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.signals import (
    Agreement,
    Boosted,
    Change,
    Ema,
    Highest,
    Logistic,
    Recorded,
    Signal,
    Steadiness,
    TokensUsed,
    arithmetic_confidence,
    boosted_probability,
    entropy,
    geometric_confidence,
)
from reasonrt.policies.stopping.traces import Checkpoint
from reasonrt.trees import Tree, Trees

NUMBERS = st.lists(st.floats(-10, 10), min_size=1, max_size=30)


def fold(signal: Signal, checkpoints: Sequence[Checkpoint]) -> list[float | None]:
    follow = signal.follow()
    return [follow(checkpoint) for checkpoint in checkpoints]


def recorded(values: Sequence[float | None]) -> list[Checkpoint]:
    return [Checkpoint(10 * i, "", {} if x is None else {"x": x}) for i, x in enumerate(values)]


def test_confidences() -> None:
    logprobs = [math.log(0.5), math.log(0.125)]

    assert arithmetic_confidence(logprobs) == pytest.approx(0.3125)
    assert geometric_confidence(logprobs) == pytest.approx(0.25)
    assert arithmetic_confidence([]) == geometric_confidence([]) == 0.0


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=12), st.data())
def test_entropy_of_the_likeliest_tokens_is_never_more_than_of_all(masses: list[float], data: st.DataObject) -> None:
    probabilities = np.sort(np.array(masses) / sum(masses))[::-1]
    full = entropy(np.log(probabilities).tolist())
    top = entropy(np.log(probabilities[: data.draw(st.integers(1, len(masses)))]).tolist())

    assert full == pytest.approx(float(-(probabilities * np.log(probabilities)).sum()), abs=1e-6)
    assert 0 <= top <= full + 1e-6


@given(st.floats(-20, -0.001), st.floats(-5, 5))
def test_boost_shifts_the_logit(logprob: float, boost: float) -> None:
    p, boosted = math.exp(logprob), boosted_probability(logprob, boost)

    assert math.log(boosted / (1 - boosted)) == pytest.approx(math.log(p / (1 - p)) + boost, abs=1e-6)


@pytest.mark.parametrize(
    ("answers", "runs"),
    [
        (["1", "1", "2", "2", "2"], [1, 2, 1, 2, 3]),
        (["", "", None, None], [0, 0, 0, 0]),  # blank never agrees with blank
        (["1", "", "1", " 1"], [1, 0, 1, 2]),
    ],
)
def test_agreement(answers: list[str | None], runs: list[int]) -> None:
    assert fold(Agreement(), [Checkpoint(index, answer) for index, answer in enumerate(answers)]) == runs


@given(NUMBERS, st.floats(0.05, 1.0))
def test_ema_is_the_weighted_sum_of_all_values(values: list[float], weight: float) -> None:
    t = len(values) - 1
    weights = [(1 - weight) ** t] + [weight * (1 - weight) ** (t - i) for i in range(1, t + 1)]

    last = fold(Ema(Recorded("x"), weight), recorded(values))[-1]

    assert last == pytest.approx(float(np.dot(weights, values)), abs=1e-9)


@given(NUMBERS, st.floats(0.05, 0.95))
def test_steadiness_is_one_less_the_moving_variance(values: list[float], weight: float) -> None:
    means = fold(Ema(Recorded("x"), weight), recorded(values))
    variance = 0.0
    for x, mean in zip(values, means, strict=True):
        variance = (1 - weight) * variance + weight * (x - (mean or 0.0)) ** 2
    variance /= 1 - (1 - weight) ** len(values)

    assert fold(Steadiness(Recorded("x"), weight), recorded(values))[-1] == pytest.approx(1 - variance, abs=1e-9)


def test_steadiness_waits() -> None:
    assert fold(Steadiness(Recorded("x"), 0.5, after=2), recorded([3.0, 3.0, 3.0])) == [None, None, 1.0]


@given(NUMBERS)
def test_change_and_highest_look_back(values: list[float]) -> None:
    changes = [0.0, *np.diff(values).tolist()]

    assert fold(Change(Recorded("x")), recorded(values)) == pytest.approx(changes)
    assert fold(Highest(Recorded("x")), recorded(values)) == np.maximum.accumulate(values).tolist()


@pytest.mark.parametrize(
    "signal",
    [
        Recorded("x"),
        Ema(Recorded("x"), 0.5),
        Steadiness(Recorded("x"), 0.5),
        Change(Recorded("x")),
        Highest(Recorded("x")),
    ],
)
def test_what_was_not_measured_is_not_known_and_changes_nothing(signal: Signal) -> None:
    with_gap = fold(signal, recorded([1.0, None, 3.0]))

    assert with_gap[1] is None
    assert [with_gap[0], with_gap[2]] == fold(signal, recorded([1.0, 3.0]))


def test_logistic() -> None:
    signal = Logistic((Recorded("x"), TokensUsed()), (2.0, 0.1), -1.0)

    assert fold(signal, recorded([0.5, None, 400.0]))[0] == pytest.approx(0.5)
    assert fold(signal, recorded([0.5, None, 400.0]))[1:] == [None, 1.0]
    assert signal.reads == {"x"}


def test_boosted() -> None:
    """0 where x is at most 0.5, and else the log-odds 2, while 15 tokens are not exceeded: then 1 more."""
    of_x = Tree((0, -1, -1), (0.5, 0.0, 0.0), (1, -1, -1), (2, -1, -1), (0.0, -1.0, 1.0))
    of_tokens = Tree((1, -1, -1), (15.0, 0.0, 0.0), (1, -1, -1), (2, -1, -1), (0.0, 0.0, 1.0))
    signal = Boosted((Recorded("x"), TokensUsed()), Trees(1.0, (of_x, of_tokens)))

    values = fold(signal, recorded([0.5, 0.6, None, 0.4]))

    assert values == pytest.approx([0.5, 1 / (1 + math.exp(-2)), None, 1 / (1 + math.exp(-1))], nan_ok=False)
    assert signal.reads == {"x"}
    with pytest.raises(CalibrationError, match="a tree reads signal 2 of 1"):
        Boosted((Recorded("x"),), signal.trees)


@given(NUMBERS)
def test_following_one_trace_does_not_disturb_another(values: list[float]) -> None:
    signal = Ema(Recorded("x"), 0.3)
    alone = fold(signal, recorded(values))
    first, second = signal.follow(), signal.follow()

    interleaved = []
    for point, other in zip(recorded(values), recorded(values[::-1]), strict=True):
        interleaved.append(first(point))
        second(other)

    assert interleaved == alone
