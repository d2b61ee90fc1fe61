"""The diffusion engine writes by kernels what it writes by torch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from reasonrt.diffusion.batcher import Batcher
from reasonrt.diffusion.decoding import read_decoding
from reasonrt.diffusion.job import Job
from reasonrt.diffusion.model import DiffusionModel
from reasonrt.diffusion.sampling import Drawing
from reasonrt.diffusion.shape import ModelShape
from reasonrt.diffusion.writers import Settled, Task

SHAPE = ModelShape(8, 1, 8, 1, 1, 8, vocab_size=48, tokens=40, max_positions=32, mask_token_id=3, block_length=3)
REQUESTS: tuple[tuple[float, dict[str, Any]], ...] = (
    (1.0, {"residual_start": "dirichlet"}),
    (0.0, {"residual_start": "reference", "residual_top_k": 5}),
    (0.0, {"residual_temperature": 2.0, "residual_scaled": True}),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_requests_of_several_kinds_get_the_same_tokens(interpreting: Callable[[], Any], dtype: torch.dtype) -> None:
    by_torch = written(dtype)
    with interpreting():
        by_kernels = written(dtype)

    assert by_kernels == by_torch
    assert [len(tokens) for tokens in by_torch] == [3, 3, 3]


def written(dtype: torch.dtype) -> list[list[int]]:
    """What each of `REQUESTS` gets, in passes that they share."""
    batcher = Batcher(make_model(0).to(dtype), len(REQUESTS), 16, make_model(1).to(dtype))
    found: list[list[int]] = [[] for _ in REQUESTS]
    for (temperature, options), tokens in zip(REQUESTS, found, strict=True):
        decoding = read_decoding({"residual": True, "threshold": 1.0} | options, SHAPE, has_reference=True)
        drawing = Drawing(temperature, 0.9, seed=0)
        batcher.add(Job(Task((5, 6, 7), 3, frozenset()), decoding, drawing, partial(keep, tokens)))
    while not batcher.is_idle:
        batcher.step()
    return found


def keep(tokens: list[int], job: Job, settled: Settled) -> None:
    tokens += settled.tokens


def make_model(seed: int) -> DiffusionModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: DiffusionModel = DiffusionModel(SHAPE)
    return model
