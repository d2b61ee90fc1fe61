"""Statistics of rows of logits: log-probability of a target, entropy, maximum, margin and the highest, in one pass."""

import torch
from torch import Tensor

from reasonrt.kernels.dispatch import PIECE, accumulator, check_matrix, piece_columns, runs_on_triton
from reasonrt.kernels.online import OnlineStats, RowStats, Wanted, whole_stats

_FEW = 2**15
"""Elements among which the highest are looked for without groups."""
_ROWS = 64
"""So many that what an operation costs beyond its work does not count."""


def row_stats(
    logits: Tensor,
    targets: Tensor | None = None,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    excluded: int | None = None,
) -> RowStats:
    """Statistics of softmax(logits / temperature), row by row; without gradients.

    Args:
        logits: [R, V], float32, bfloat16, float16 or float64; rows may lie apart, the columns of a row
            may not. All V columns count: cut off what only pads the vocabulary.
        targets: [R], int64 or int32, the id whose log-probability is wanted in each row.
        temperature: > 0.
        top_k: how many of the highest log-probabilities are wanted, in [0, min(64, V)].
        excluded: a column that counts as -inf, whatever it holds, such as that of the mask token.

    Raises:
        KernelError: a shape, dtype, stride, device or number that cannot be used.
    """
    check_matrix("logits", logits)
    wanted = Wanted(targets, temperature, top_k, excluded)
    wanted.check("logits", logits, logits.shape[1])
    if runs_on_triton(logits):
        from reasonrt.kernels.triton.row_stats import launch_row_stats

        with torch.cuda.device_of(logits):  # Triton launches on the current one
            return launch_row_stats(logits, wanted)
    return _row_stats_torch(logits.detach(), wanted)


def row_stats_reference(
    logits: Tensor,
    targets: Tensor | None = None,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    excluded: int | None = None,
) -> RowStats:
    """As `row_stats`, with every intermediate result written out."""
    logits = logits.to(accumulator(logits.dtype), copy=True)
    if excluded is not None:
        logits[:, excluded] = -torch.inf
    logprobs = torch.log_softmax(logits / temperature, 1)
    probs = logprobs.exp()
    ids = logits.argsort(dim=1, descending=True, stable=True)
    top_ids = ids[:, :top_k]
    second = probs.gather(1, ids[:, 1:2]).sum(1)  # 0 where there is one column
    logprob = None
    if targets is not None:
        is_id = (targets >= 0) & (targets < logits.shape[1])
        of_target = logprobs.gather(1, targets.long().where(is_id, 0)[:, None])[:, 0]
        logprob = of_target.where(is_id, torch.nan)
    return RowStats(
        lse=torch.logsumexp(logits / temperature, 1),
        logprob=logprob,
        entropy=torch.special.entr(probs).sum(1),
        max_prob=probs.gather(1, ids[:, :1])[:, 0],
        argmax=ids[:, 0],
        margin=probs.gather(1, ids[:, :1])[:, 0] - second,
        top_logprobs=logprobs.gather(1, top_ids),
        top_ids=top_ids.masked_fill(logits.gather(1, top_ids) == -torch.inf, -1),
    )


def _row_stats_torch(logits: Tensor, wanted: Wanted) -> RowStats:
    """Some rows after others, and of these a piece of columns after another, so that little is in memory."""
    if logits.numel() <= (_FEW if wanted.top_k else PIECE):
        return whole_stats(logits, wanted)
    parts = []
    for first in range(0, len(logits), _ROWS):
        rows = slice(first, first + _ROWS)
        stats = OnlineStats(logits[rows], wanted.of_rows(rows))
        for piece in logits[rows].split(piece_columns(len(logits[rows])), 1):
            stats.absorb(piece.to(accumulator(logits.dtype), copy=True))
        parts.append(stats.finish())
    return RowStats.concatenate(parts)
