"""Statistics of rows of hidden states against a vocabulary, without their logits: the head of a verification."""

import torch
from torch import Tensor

from reasonrt.errors import KernelError
from reasonrt.kernels.dispatch import (
    accumulator,
    check_matrix,
    check_same,
    check_sampling,
    check_targets,
    runs_on_triton,
)
from reasonrt.kernels.online import OnlineStats, RowStats
from reasonrt.kernels.row_stats import row_stats_reference

_PIECE = 2**18
"""Logits that the torch path holds: 1 MiB of float32, which stays in a CPU's cache."""
_MIN_COLUMNS = 256
_COLUMNS_STEP = 64


def vocab_stats(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor | None = None,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    top_k: int = 0,
) -> RowStats:
    """Statistics of softmax(hidden @ weight.T / temperature), row by row; the logits are never whole in memory.

    With a draft's tokens as `targets` it verifies all positions of a step together.

    Args:
        hidden: [R, D], float32, bfloat16 or float16 (float64 too where torch computes), the last hidden states.
        weight: [V, D], of the same dtype: the head, one row for each token. All V rows count: cut off what only pads.
        targets: [R], int64 or int32, the id whose log-probability is wanted in each row.
        temperature: > 0.
        softcap: bounds the logits to softcap * tanh(logits / softcap), as Gemma does; > 0, None is none.
        top_k: how many of the highest log-probabilities are wanted, in [0, min(64, V)].

    Raises:
        KernelError: a shape, dtype, stride, device or number that cannot be used.

    Source: Wijmans et al. (2024), "Cut Your Losses in Large-Vocabulary Language Models", for the logits that are never
    whole; the statistics beyond the log-probability are computed in the same pass.
    """
    on_triton = runs_on_triton(hidden)
    check_matrix("hidden", hidden, on_triton)
    check_matrix("weight", weight, on_triton)
    check_same("weight", weight, "hidden", hidden)
    if weight.shape[0] == 0 or weight.shape[1] != hidden.shape[1]:
        raise KernelError(
            f"weight must be [V, {hidden.shape[1]}] as hidden is {tuple(hidden.shape)}, got {tuple(weight.shape)}"
        )
    check_targets(targets, "hidden", hidden)
    check_sampling(temperature, top_k, weight.shape[0])
    if softcap is not None and not 0.0 < softcap < float("inf"):
        raise KernelError(f"softcap must be positive and finite, got {softcap}; None is none")
    if on_triton:
        from reasonrt.kernels.triton.vocab_stats import launch_vocab_stats

        return launch_vocab_stats(hidden, weight, targets, temperature, softcap, top_k)
    return _vocab_stats_torch(hidden, weight, targets, temperature, softcap, top_k)


def vocab_stats_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor | None = None,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    top_k: int = 0,
) -> RowStats:
    """As `vocab_stats`, with the logits written out."""
    dtype = accumulator(hidden.dtype)
    logits = hidden.to(dtype) @ weight.to(dtype).T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return row_stats_reference(logits, targets, temperature=temperature, top_k=top_k)


def _vocab_stats_torch(
    hidden: Tensor, weight: Tensor, targets: Tensor | None, temperature: float, softcap: float | None, top_k: int
) -> RowStats:
    """One piece of the vocabulary after another: its logits are used up while they are in the cache."""
    hidden = hidden.to(accumulator(hidden.dtype))
    width = hidden.shape[0] if weight.dtype == hidden.dtype else max(hidden.shape)  # a converted piece is bounded too
    columns = max(_MIN_COLUMNS, _PIECE // max(1, width) // _COLUMNS_STEP * _COLUMNS_STEP)
    logits = hidden.new_empty(columns * hidden.shape[0])
    stats = OnlineStats(hidden, targets, temperature, top_k)
    for rows in weight.split(columns):
        piece = logits[: hidden.shape[0] * len(rows)].view(hidden.shape[0], len(rows))
        torch.mm(hidden, rows.to(hidden.dtype).T, out=piece)
        if softcap is not None:
            piece.div_(softcap).tanh_().mul_(softcap)
        stats.absorb(piece)
    return stats.finish()
