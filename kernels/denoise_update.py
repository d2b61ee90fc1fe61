"""What follows a denoising pass: which tokens are committed, which blocks are done, what masked positions read next.

For blocks that commit by a threshold: every prediction above it, else the most confident one. Nothing is read by the
host, so that passes can follow each other without waiting for it.
"""

import math

import torch
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

        return launch_denoise_update(predicted, thresholds, end_ids, canvas, residual)
    return _denoise_update_torch(predicted, thresholds, end_ids, canvas, residual)


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


def _denoise_update_torch(
    predicted: Predicted, thresholds: Tensor, end_ids: Tensor, canvas: Tensor, residual: Residual | None
) -> Update:
    num_rows, num_blocks, device = len(predicted.tokens), len(thresholds), canvas.device
    rows = torch.arange(num_rows, device=device)
    blocks = torch.arange(num_blocks, device=device).repeat_interleave(predicted.starts.diff(), output_size=num_rows)

    def first_of(is_wanted: Tensor) -> Tensor:
        """[R], of the block of each row the first row that is wanted, or no row."""
        wanted = rows.where(is_wanted, num_rows)
        return rows.new_full((num_blocks,), num_rows).scatter_reduce(0, blocks, wanted, "amin")[blocks]

    confidences = predicted.confidences.double().masked_fill(~predicted.is_open, -1)
    best = confidences.new_full((num_blocks,), -1).scatter_reduce(0, blocks, confidences, "amax")[blocks]
    # where any is above the threshold, so is the best: it is committed in either case
    is_chosen = (confidences > thresholds[blocks]) | (rows == first_of(confidences == best))
    is_committed = is_chosen & predicted.is_open
    is_masked = predicted.is_open & ~is_chosen
    is_open = is_masked & (rows < first_of(is_committed & torch.isin(predicted.tokens, end_ids)))
    canvas[predicted.slots[is_committed]] = predicted.tokens[is_committed]
    if residual is not None:
        residual.embeds[predicted.slots[is_masked]] = _blend(residual, is_masked)
    num_open = blocks.new_zeros(num_blocks).index_add_(0, blocks, is_open.long())
    return Update(is_committed, is_open, num_open == 0)


def _blend(residual: Residual, rows: Tensor) -> Tensor:
    expected = residual.expected[rows]
    if residual.weight is not None:
        return residual.weight * expected + (1 - residual.weight) * residual.mask
    alpha = (residual.entropies[rows, None] / math.log(residual.num_tokens)).clamp_(0, 1).to(expected.dtype)
    return alpha * expected + (1 - alpha) * residual.mask


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
