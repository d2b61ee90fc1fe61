"""What follows a denoising pass: which tokens are committed, which blocks are done, what masked positions read next.

For blocks that commit by a threshold: every prediction above it, else the most confident one. Nothing is read by the
host, so that passes can follow each other without waiting for it.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasonrt.kernels.denoising import Predicted, Residual, Update
from reasonrt.kernels.dispatch import (
    check_contiguous,
    check_dtype,
    check_matrix,
    check_same,
    check_shape,
    runs_on_triton,
)

_CONFIDENCES = (torch.float32, torch.float64)
Array = NDArray[Any]


def denoise_update(
    predicted: Predicted, thresholds: Tensor, end_ids: Tensor, canvas: Tensor, residual: Residual | None = None
) -> Update:
    """Commit what is above the threshold, or the most confident prediction, the leftmost among equals; blend the rest.

    Args:
        predicted: of this pass.
        thresholds: [B] float64, of the blocks, in [0, 1].
        end_ids: [any] int64, the tokens of which the first that is committed ends the text: what comes after it in its
            block is needed no more.
        canvas: [S] int64, the tokens by slot; written to.
        residual: None: masked positions read the mask. Written to where a position stays masked, needed or not.

    Raises:
        KernelError: a shape, dtype, stride or device that cannot be used.
    """
    _check(predicted, thresholds, end_ids, canvas, residual)
    if runs_on_triton(predicted.tokens, None if residual is None else residual.expected):
        from reasonrt.kernels.triton.denoise_update import launch_denoise_update

        with torch.cuda.device_of(predicted.tokens):  # Triton launches on the current one
            return launch_denoise_update(predicted, thresholds, end_ids, canvas, residual)
    return _denoise_update_host(predicted, thresholds, end_ids, canvas, residual)


def denoise_update_reference(
    predicted: Predicted, thresholds: Tensor, end_ids: Tensor, canvas: Tensor, residual: Residual | None = None
) -> Update:
    """As `denoise_update`, block by block and row by row: the truth."""
    is_committed, is_open = torch.zeros_like(predicted.is_open), torch.zeros_like(predicted.is_open)
    is_done, starts = torch.zeros(len(thresholds), dtype=torch.bool), predicted.starts.tolist()
    confidences = predicted.confidences.double().tolist()
    for block, threshold in enumerate(thresholds.tolist()):
        rows = [row for row in range(starts[block], starts[block + 1]) if predicted.is_open[row]]
        chosen = [row for row in rows if confidences[row] > threshold]
        chosen = chosen or sorted(rows, key=lambda row: -confidences[row])[:1]  # stable: the leftmost among equals
        ends = [row for row in chosen if predicted.tokens[row] in end_ids]
        for row in rows:
            if row in chosen:
                is_committed[row] = True
                canvas[predicted.slots[row]] = predicted.tokens[row]
            else:
                is_open[row] = not ends or row < ends[0]
                if residual is not None:
                    residual.embeds[predicted.slots[row]] = _blend_reference(residual, row)
        is_done[block] = not is_open[starts[block] : starts[block + 1]].any()
    return Update(is_committed, is_open, is_done)


def _blend_reference(residual: Residual, row: int) -> Tensor:
    alpha = residual.weight
    if alpha is None:
        alpha = min(1.0, max(0.0, float(residual.entropies[row]) / math.log(residual.num_tokens)))
    return alpha * residual.expected[row].double() + (1 - alpha) * residual.mask.double()


def _denoise_update_host(
    predicted: Predicted, thresholds: Tensor, end_ids: Tensor, canvas: Tensor, residual: Residual | None
) -> Update:
    """In numpy, which takes a microsecond where torch takes five: the rows are few. The embeddings are torch's."""
    tokens, slots, is_open = predicted.tokens.numpy(), predicted.slots.numpy(), predicted.is_open.numpy()
    starts = predicted.starts.numpy()
    lengths = np.diff(starts)
    has_rows = lengths > 0
    heads, head_lengths = starts[:-1][has_rows], lengths[has_rows]
    rows = np.arange(len(tokens))

    def of_block(reduce: np.ufunc, values: Array) -> Array:
        """[R], the reduction of the block of each row."""
        return np.repeat(reduce.reduceat(values, heads), head_lengths)

    def first_of(is_wanted: Array) -> Array:
        """[R], of the block of each row the first row that is wanted, or no row."""
        return of_block(np.minimum, np.where(is_wanted, rows, len(rows)))

    confidences = np.where(is_open, predicted.confidences.numpy().astype(np.float64), -1)
    # where any is above the threshold, so is the best: it is committed in either case
    is_best = rows == first_of(confidences == of_block(np.maximum, confidences))
    is_chosen = (confidences > np.repeat(thresholds.numpy(), lengths)) | is_best
    is_committed, is_masked = is_open & is_chosen, is_open & ~is_chosen
    is_end = is_committed & (tokens[:, None] == end_ids.numpy()).any(1)
    stays_open = is_masked & (rows < first_of(is_end))
    canvas.numpy()[slots[is_committed]] = tokens[is_committed]
    if residual is not None:
        residual.embeds.index_copy_(0, torch.from_numpy(slots[is_masked]), _blend(residual, is_masked))
    is_done = np.ones(len(thresholds), dtype=bool)
    is_done[has_rows] = ~np.logical_or.reduceat(stays_open, heads)
    return Update(*map(torch.from_numpy, (is_committed, stays_open, is_done)))


def _blend(residual: Residual, is_masked: Array) -> Tensor:
    expected = residual.expected.index_select(0, torch.from_numpy(is_masked.nonzero()[0]))
    if residual.weight is not None:
        return torch.lerp(residual.mask, expected, residual.weight)
    alpha = np.clip(residual.entropies.numpy()[is_masked] / math.log(residual.num_tokens), 0, 1)
    return torch.lerp(residual.mask, expected, torch.from_numpy(alpha)[:, None].to(expected.dtype))


def _check(
    predicted: Predicted, thresholds: Tensor, end_ids: Tensor, canvas: Tensor, residual: Residual | None
) -> None:
    """Of values that are on a device nothing is asked: the host would have to wait for them."""
    num_rows = predicted.tokens.numel()
    num_blocks = thresholds.numel()
    for name, tensor, shape, dtypes in (
        ("tokens", predicted.tokens, (num_rows,), (torch.int64,)),
        ("confidences", predicted.confidences, (num_rows,), _CONFIDENCES),
        ("is_open", predicted.is_open, (num_rows,), (torch.bool,)),
        ("slots", predicted.slots, (num_rows,), (torch.int64,)),
        ("starts", predicted.starts, (num_blocks + 1,), (torch.int64,)),
        ("thresholds", thresholds, (num_blocks,), (torch.float64,)),
        ("end_ids", end_ids, (end_ids.numel(),), (torch.int64,)),
        ("canvas", canvas, (canvas.numel(),), (torch.int64,)),
    ):
        check_shape(name, tensor, shape, predicted.tokens)
        check_dtype(name, tensor, dtypes)
    check_contiguous("canvas", canvas)
    if residual is None:
        return
    check_matrix("expected", residual.expected)
    hidden_size = residual.expected.shape[1]
    check_shape("expected", residual.expected, (num_rows, hidden_size), predicted.tokens)
    check_shape("embeds", residual.embeds, (canvas.numel(), hidden_size), predicted.tokens)
    check_shape("mask", residual.mask, (hidden_size,), predicted.tokens)
    check_same("embeds", residual.embeds, "expected", residual.expected)
    check_same("mask", residual.mask, "expected", residual.expected)
    check_contiguous("embeds", residual.embeds)
    check_shape("entropies", residual.entropies, (num_rows,), predicted.tokens)
    check_dtype("entropies", residual.entropies, _CONFIDENCES)
