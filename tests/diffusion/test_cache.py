"""Attention over the cache, in its two ways."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.diffusion.cache import KvCache, Segment
from reasonrt.diffusion.shape import ModelShape

SHAPE = ModelShape(32, 1, 8, 4, 2, 8, 48, 40, 64, 41, 8)
SLOTS, LENGTH = 3, 16


def filled(seed: int = 0) -> KvCache:
    cache = KvCache(SHAPE, SLOTS, LENGTH, torch.float64, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    for buffer in (*cache.keys, *cache.values):
        buffer.normal_(generator=generator)
    return cache


@st.composite
def segments(draw: st.DrawFn) -> list[Segment]:
    """Of each of some slots a run of rows, causal, even or in blocks."""
    made = []
    for slot in draw(st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=3, unique=True)):
        start = draw(st.integers(0, LENGTH - 1))
        positions = np.arange(start, draw(st.integers(start + 1, LENGTH)))
        grid = draw(st.sampled_from((1, 4, LENGTH)))
        limits = np.minimum((positions // grid + 1) * grid, positions[-1] + 1)
        made.append(Segment(slot, positions, limits))
    return made


def rows(count: int, heads: int) -> torch.Tensor:
    return torch.randn(count, heads, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(count + heads))


@given(segments())
@settings(max_examples=50)
def test_both_ways_and_the_formula_agree(made: list[Segment]) -> None:
    cache = filled()
    count = sum(len(segment.positions) for segment in made)
    queries, keys, values = rows(count, 4), rows(count, 2), -rows(count, 2)

    mixed = cache.attention(made)(0, queries, keys, values)

    padded = cache._padded(made)(0, queries, cache.keys[0], cache.values[0])
    assert torch.allclose(mixed, padded, atol=1e-12)
    row = 0
    for segment in made:
        for position, limit in zip(segment.positions, segment.limits, strict=True):
            assert torch.equal(cache.keys[0][segment.slot, position], keys[row])
            for head in range(4):
                told = cache.keys[0][segment.slot, :limit, head // 2]
                weights = (told @ queries[row, head] / 8**0.5).softmax(0)
                expected = weights @ cache.values[0][segment.slot, :limit, head // 2]
                assert torch.allclose(mixed[row, head], expected, atol=1e-12)
            row += 1


def test_what_nobody_has_written_poisons_nobody() -> None:
    """Of two requests of different lengths the padding of the shorter one is read with weight 0."""
    cache = KvCache(SHAPE, SLOTS, LENGTH, torch.float32, torch.device("cpu"))
    made = [Segment(0, np.arange(2), np.full(2, 2)), Segment(1, np.arange(9), np.full(9, 9))]
    queries, keys = rows(11, 4).float(), rows(11, 2).float()
    cache.attention(made)(0, queries, keys, keys)

    assert torch.isfinite(cache._padded(made)(0, queries, cache.keys[0], cache.values[0])).all()


def test_a_row_sees_nothing_at_or_beyond_its_limit() -> None:
    cache, queries, keys = filled(), rows(2, 4), rows(2, 2)
    made = [Segment(1, np.array([3, 4]), np.array([4, 6]))]
    before = cache.attention(made)(0, queries, keys, keys)

    cache.values[0][1, 6:] = 1000
    cache.values[0][0] = cache.values[0][2] = 1000
    after = cache.attention(made)(0, queries, keys, keys)
    cache.values[0][1, 5] = 1000
    seen = cache.attention(made)(0, queries, keys, keys)

    assert torch.equal(before, after)
    assert torch.equal(seen[0], before[0])
    assert not torch.allclose(seen[1], before[1])


def test_a_copy_is_of_the_beginning_alone() -> None:
    cache = filled()
    kept = cache.keys[0][2, 5:].clone()

    cache.copy(0, 2, 5)

    assert torch.equal(cache.keys[0][2, :5], cache.keys[0][0, :5])
    assert torch.equal(cache.values[0][2, :5], cache.values[0][0, :5])
    assert torch.equal(cache.keys[0][2, 5:], kept)


def test_num_bytes_is_what_the_buffers_take() -> None:
    cache = filled()

    taken = sum(buffer.numel() * buffer.element_size() for buffer in (*cache.keys, *cache.values))

    assert KvCache.num_bytes(SHAPE, SLOTS, LENGTH, torch.float64) == pytest.approx(taken, abs=0)
