"""Statistics of rows of hidden states against a vocabulary, without their logits: the head of a verification."""

from dataclasses import replace

import torch
from torch import Tensor

from reasonrt.errors import KernelError
from reasonrt.kernels.dispatch import (
    PIECE,
    accumulator,
    check_matrix,
    check_same,
    check_shape,
    piece_columns,
    runs_on_triton,
)
from reasonrt.kernels.online import OnlineStats, RowStats, Wanted, whole_stats
from reasonrt.kernels.row_stats import row_stats_reference


def vocab_stats(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor | None = None,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    top_k: int = 0,
    excluded: int | None = None,
    logits: Tensor | None = None,
) -> RowStats:
    """Statistics of softmax(hidden @ weight.T / temperature), row by row; no logits are in memory but those wanted.

    With a draft's tokens as `targets` it verifies all positions of a step together. There are no gradients.

    Args:
        hidden: [R, D], float32, bfloat16, float16 or float64, the last hidden states.
        weight: [V, D], of the same dtype: the head, one row for each token. All V rows count: cut off what only pads.
        targets: [R], int64 or int32, the id whose log-probability is wanted in each row.
        softcap: bounds the logits to softcap * tanh(logits / softcap), as Gemma does; > 0, None is none.
        temperature, top_k, excluded: as in `row_stats`.
        logits: [R, V], of any of these dtypes: the logits are written here, -inf in the excluded column, and the
            statistics are those of what is written.

    Raises:
        KernelError: a shape, dtype, stride, device or number that cannot be used.

    Source: Wijmans et al. (2024), "Cut Your Losses in Large-Vocabulary Language Models", for the logits that are never
    whole; the statistics beyond the log-probability are computed in the same pass.
    """
    check_matrix("hidden", hidden)
    check_matrix("weight", weight)
    check_same("weight", weight, "hidden", hidden)
    if weight.shape[0] == 0 or weight.shape[1] != hidden.shape[1]:
        raise KernelError(
            f"weight must be [V, {hidden.shape[1]}] as hidden is {tuple(hidden.shape)}, got {tuple(weight.shape)}"
        )
    wanted = Wanted(targets, temperature, top_k, excluded)
    wanted.check("hidden", hidden, weight.shape[0])
    if logits is not None:
        check_matrix("logits", logits)
        check_shape("logits", logits, (len(hidden), len(weight)), hidden)
    if softcap is not None and not 0.0 < softcap < float("inf"):
        raise KernelError(f"softcap must be positive and finite, got {softcap}; None is none")
    if runs_on_triton(hidden, logits):
        from reasonrt.kernels.triton.vocab_stats import launch_vocab_stats

        with torch.cuda.device_of(hidden):  # Triton launches on the current one
            return launch_vocab_stats(hidden, weight, softcap, wanted, logits)
    return _vocab_stats_torch(hidden.detach(), weight.detach(), softcap, wanted, logits)


def vocab_stats_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor | None = None,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    top_k: int = 0,
    excluded: int | None = None,
    logits: Tensor | None = None,
) -> RowStats:
    """As `vocab_stats`, with every intermediate result written out."""
    dtype = accumulator(hidden.dtype)
    products = hidden.to(dtype) @ weight.to(dtype).T
    if softcap is not None:
        products = softcap * torch.tanh(products / softcap)
    if excluded is not None:
        products[:, excluded] = -torch.inf
    if logits is not None:
        products = logits.copy_(products).to(dtype)
    return row_stats_reference(products, targets, temperature=temperature, top_k=top_k, excluded=excluded)


def _vocab_stats_torch(
    hidden: Tensor, weight: Tensor, softcap: float | None, wanted: Wanted, logits: Tensor | None
) -> RowStats:
    """One piece of the vocabulary after another: its logits are used up while they are in the cache."""
    hidden = hidden.to(accumulator(hidden.dtype))
    if not wanted.top_k and len(hidden) * len(weight) <= PIECE:
        whole = hidden @ weight.to(hidden.dtype).T
        whole = whole if softcap is None else whole.div_(softcap).tanh_().mul_(softcap)
        if wanted.excluded is not None:
            whole[:, wanted.excluded] = -torch.inf
        # what is excluded is so already: no copy is made for it
        return whole_stats(whole if logits is None else logits.copy_(whole), replace(wanted, excluded=None))
    width = hidden.shape[0] if weight.dtype == hidden.dtype else max(hidden.shape)  # a converted piece is bounded too
    columns = piece_columns(width)
    pieces = hidden.new_empty(columns * hidden.shape[0])
    stats = OnlineStats(hidden, wanted)
    for first, rows in zip(range(0, len(weight), columns), weight.split(columns), strict=True):
        piece = pieces[: hidden.shape[0] * len(rows)].view(hidden.shape[0], len(rows))
        torch.mm(hidden, rows.to(hidden.dtype).T, out=piece)
        if softcap is not None:
            piece.div_(softcap).tanh_().mul_(softcap)
        stats.absorb(piece, None if logits is None else logits[:, first : first + len(rows)])
    return stats.finish()
