"""Muon in float32 against torch's own, which computes in bfloat16."""

import pytest
import torch
from torch import nn

from reasonrt.zoo.muon import Float32Muon, orthogonalize


@pytest.mark.parametrize("size", [(24, 16), (16, 24), (16, 16)])
def test_steps_are_those_of_torch_to_bfloat16(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.full(size, 0.1)) for _ in range(2))
    optimizers = [
        Float32Muon([ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(5):
        gradient = torch.randn(size)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - 0.1).norm()
    assert (ours - theirs).norm() < 0.02 * moved


@pytest.mark.parametrize("size", [(5, 9), (9, 5)])
def test_an_orthogonalized_matrix_has_singular_values_near_one(size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(size)))
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.3
