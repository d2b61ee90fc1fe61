"""What the tests of block diffusion share: tiny models with random weights, and requests through the engine's core."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch

from reasonrt.diffusion.batcher import Batcher
from reasonrt.diffusion.job import Job
from reasonrt.diffusion.model import DiffusionModel
from reasonrt.diffusion.reference import Written
from reasonrt.diffusion.shape import ModelShape
from reasonrt.diffusion.writers import Settled
from reasonrt.types import FinishReason

SHAPE = {
    "hidden": 32,
    "layers": 2,
    "mlp": 48,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "vocab_size": 48,
    "tokens": 40,
    "max_positions": 512,
    "mask_token_id": 41,
    "block_length": 8,
    "is_tied": False,
    "rope_theta": 50.0,
}


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., DiffusionModel]:
    """`tiny_model(seed, dtype, **changes of the shape)`: the same object for the same arguments."""
    return _tiny_model


@cache
def _tiny_model(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> DiffusionModel:
    """Weights so that predictions differ from position to position, with confidences from 0.1 to 0.99."""
    generator = torch.Generator().manual_seed(seed)
    model: DiffusionModel = DiffusionModel(ModelShape(**(SHAPE | changes)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "query_norm" in name:
                weight.fill_(3)
            elif weight.dim() == 2:
                is_table = "embedding" in name or "head" in name
                weight.normal_(0, 0.5 if is_table else 2 / weight.shape[1] ** 0.5, generator=generator)
    model.to(dtype).eval().requires_grad_(False)
    return model


@pytest.fixture(scope="session")
def generate() -> Callable[..., list[Written]]:
    """`generate(batcher, jobs, joins)`: what each job gets; `joins[i]`: the pass before which job i joins."""
    return _generate


def _generate(batcher: Batcher, jobs: Sequence[Job], joins: Sequence[int] = ()) -> list[Written]:
    settled: list[list[Settled]] = [[] for _ in jobs]
    for job, parts in zip(jobs, settled, strict=True):
        job.report = partial(_keep, parts)
    waiting = sorted(range(len(jobs)), key=lambda index: joins[index] if joins else 0)
    count = 0
    while waiting or not batcher.is_idle:
        while waiting and (not joins or joins[waiting[0]] <= count):
            batcher.add(jobs[waiting.pop(0)])
        batcher.step()
        count += 1
        assert count < 10_000, "it does not end"
    return [_joined(job, parts) for job, parts in zip(jobs, settled, strict=True)]


def _keep(parts: list[Settled], job: Job, part: Settled) -> None:
    parts.append(part)


def _joined(job: Job, parts: list[Settled]) -> Written:
    assert [part.finish is not None for part in parts] == [False] * (len(parts) - 1) + [True]
    tokens = [token for part in parts for token in part.tokens]
    logprobs = [logprob for part in parts for logprob in part.logprobs]
    finish: FinishReason | None = parts[-1].finish
    assert finish is not None
    return Written(tokens, logprobs, finish, job.passes)
