"""Each rule by hand-made numbers, ties included."""

from dataclasses import replace

import numpy as np
import pytest

from reasonrt.diffusion.decoding import Decoding
from reasonrt.diffusion.strategies import Predictions, choose


def predictions(confidences: list[float], entropies: list[float] | None = None) -> Predictions:
    count = len(confidences)
    return Predictions(
        np.arange(count), np.array(confidences), np.array(entropies or [0.0] * count), np.log(np.array(confidences))
    )


def chosen(decoding: Decoding, confidences: list[float], passes_done: int = 0) -> list[int]:
    flags = choose(predictions(confidences), replace(decoding, block_length=8), passes_done)
    return [int(index) for index in np.flatnonzero(flags)]


@pytest.mark.parametrize(("passes", "quotas"), [(8, [1] * 8), (3, [3, 3, 2]), (1, [8]), (5, [2, 2, 2, 1, 1])])
def test_a_block_is_full_after_its_passes(passes: int, quotas: list[int]) -> None:
    decoding = Decoding("sequential", passes=passes)

    assert [len(chosen(decoding, [0.5] * 8, done)) for done in range(passes)] == quotas


def test_sequential_takes_the_leftmost() -> None:
    assert chosen(Decoding("sequential", passes=4), [0.1, 0.2, 0.9]) == [0, 1]


def test_static_takes_the_most_confident_and_the_leftmost_among_equals() -> None:
    assert chosen(Decoding("static", passes=4), [0.1, 0.5, 0.9, 0.5]) == [1, 2]


def test_static_takes_no_more_than_are_open() -> None:
    assert chosen(Decoding("static", passes=1), [0.1, 0.5]) == [0, 1]


def test_threshold_takes_what_is_above_it() -> None:
    assert chosen(Decoding("threshold", threshold=0.5), [0.5, 0.51, 0.2, 0.9]) == [1, 3]


def test_threshold_takes_the_leftmost_most_confident_where_none_is_above() -> None:
    assert chosen(Decoding("threshold", threshold=0.9), [0.3, 0.9, 0.9]) == [1]


def test_threshold_1_takes_one_though_all_are_certain() -> None:
    assert chosen(Decoding("threshold", threshold=1.0), [1.0, 1.0]) == [0]


@pytest.mark.parametrize("strategy", ["sub_blocks", "adaptive"])
def test_parts_and_adapted_blocks_use_the_threshold(strategy: str) -> None:
    decoding = Decoding(strategy, threshold=0.5)  # type: ignore[arg-type]

    assert chosen(decoding, [0.5, 0.51, 0.2, 0.9]) == [1, 3]


@pytest.mark.parametrize(
    ("entropies", "bound", "expected"),
    [
        ([0.25, 0.125, 0.5], 0.375, [0, 1]),  # the sum may reach the bound
        ([0.25, 0.125, 0.5], 0.37, [1]),
        ([0.5, 0.25, 0.25], 0.25, [1]),  # the leftmost of equals
        ([0.5, 0.4, 0.6], 0.1, [1]),  # the lowest, where nothing fits
        ([0.0, 0.0, 1.0], 0.0, [0, 1]),
    ],
)
def test_entropy_takes_the_lowest_while_their_sum_is_within_the_bound(
    entropies: list[float], bound: float, expected: list[int]
) -> None:
    decoding = Decoding("entropy", entropy_bound=bound, block_length=8)

    assert np.flatnonzero(choose(predictions([0.5] * 3, entropies), decoding, 0)).tolist() == expected


@pytest.mark.parametrize(
    ("confidences", "factor", "expected"),
    [
        ([0.75, 0.75, 0.75], 1.0, [0, 1]),  # 2/4, 3/4 < 1; 4/4 is not
        ([0.75, 0.75, 0.75], 0.5, [0]),  # 2/4 is not below: only the most confident
        ([0.1, 0.9, 0.95, 0.8], 1.0, [1, 2, 3]),  # .1, .3, .8 < 1
        ([0.5, 0.9375, 0.5], 1.75, [0, 1]),  # .125, 1.5 < 1.75; 2 is not: the leftmost of equals
        ([0.4, 0.4, 0.4], 2.0, [0, 1]),  # 1.2, 1.8, 2.4: the largest n that fits is 2
    ],
)
def test_factor_takes_the_largest_count_that_is_confident_enough(
    confidences: list[float], factor: float, expected: list[int]
) -> None:
    assert chosen(Decoding("factor", factor=factor), confidences) == expected


def test_factor_takes_all_that_are_certain() -> None:
    assert chosen(Decoding("factor", factor=0.1), [1.0] * 5) == [0, 1, 2, 3, 4]
