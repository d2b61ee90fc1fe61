"""The kernel of `denoise_update`: one program for each block and slice of the embeddings, in one launch.

Each program finds out for itself which rows are committed; of a block only the first one writes tokens and flags.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from reasonrt.kernels.denoising import Predicted, Residual, Update
from reasonrt.kernels.triton.builds import Build, Target

_BLOCK_L = 32
_BLOCK_D = 256
_NUM_WARPS = 4


@triton.jit
def _open_rows(start, last, is_open_ptr, confidences_ptr, BLOCK_L: tl.constexpr):
    """(rows, whether each is open, confidences in float64, below 0 where it is not), [BLOCK_L] each."""
    rows = start + tl.arange(0, BLOCK_L)
    is_open = tl.load(is_open_ptr + rows, mask=rows < last, other=0) != 0
    confidences = tl.load(confidences_ptr + rows, mask=is_open, other=-1.0).to(tl.float64)
    return rows, is_open, confidences


@triton.jit
def _denoise_update_kernel(
    tokens_ptr,  # [num_rows]
    confidences_ptr,  # [num_rows]
    is_open_ptr,  # [num_rows]
    slots_ptr,  # [num_rows]
    starts_ptr,  # [num_blocks + 1]
    thresholds_ptr,  # [num_blocks]
    end_ids_ptr,  # [num_ends]
    canvas_ptr,  # [num_slots]
    expected_ptr,  # [num_rows, hidden_size], rows expected_stride apart, or None
    entropies_ptr,  # [num_rows], or None where the weight is a constant
    mask_ptr,  # [hidden_size], or None
    embeds_ptr,  # [num_slots, hidden_size], or None
    is_committed_ptr,  # [num_rows]
    stays_open_ptr,  # [num_rows]
    is_done_ptr,  # [num_blocks]
    num_ends,
    hidden_size,
    expected_stride,
    weight,  # of the expectation, or of an entropy in it
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    block = tl.program_id(0)
    is_first = tl.program_id(1) == 0
    first = tl.load(starts_ptr + block)
    last = tl.load(starts_ptr + block + 1)
    threshold = tl.load(thresholds_ptr + block)

    best = tl.full([], -2.0, tl.float64)
    best_row = first
    for start in range(first, last, BLOCK_L):
        rows, is_open, confidences = _open_rows(start, last, is_open_ptr, confidences_ptr, BLOCK_L)
        tile_best = tl.max(confidences, axis=0)
        at = tl.min(tl.where(confidences == tile_best, rows, last), axis=0)
        best_row = tl.where(tile_best > best, at, best_row)
        best = tl.maximum(best, tile_best)

    end = last  # of what is needed
    for start in range(first, last, BLOCK_L):
        rows, is_open, confidences = _open_rows(start, last, is_open_ptr, confidences_ptr, BLOCK_L)
        # where any is above the threshold, so is the best: it is committed in either case
        is_committed = is_open & ((confidences > threshold) | (rows == best_row))
        slots = tl.load(slots_ptr + rows, mask=is_open, other=0)
        tokens = tl.load(tokens_ptr + rows, mask=is_committed, other=0)
        for index in range(num_ends):
            is_end = is_committed & (tokens == tl.load(end_ids_ptr + index))
            end = tl.minimum(end, tl.min(tl.where(is_end, rows, last), axis=0))
        if is_first:
            tl.store(canvas_ptr + slots, tokens, mask=is_committed)
            tl.store(is_committed_ptr + rows, is_committed, mask=rows < last)
        if expected_ptr is not None:
            dims = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
            stays = is_open & (is_committed == 0)
            mask = stays[:, None] & (dims < hidden_size)[None, :]
            expected = tl.load(expected_ptr + rows[:, None] * expected_stride + dims[None, :], mask=mask, other=0.0)
            masked = tl.load(mask_ptr + dims, mask=dims < hidden_size, other=0.0).to(tl.float32)[None, :]
            alpha = tl.zeros([BLOCK_L], tl.float32) + weight
            if entropies_ptr is not None:
                entropies = tl.load(entropies_ptr + rows, mask=stays, other=0.0).to(tl.float32)
                alpha = tl.minimum(tl.maximum(entropies * weight, 0.0), 1.0)
            blend = alpha[:, None] * expected.to(tl.float32) + (1.0 - alpha)[:, None] * masked
            at = slots[:, None] * hidden_size + dims[None, :]
            tl.store(embeds_ptr + at, blend.to(embeds_ptr.dtype.element_ty), mask=mask)

    if is_first:
        num_open = tl.zeros([], tl.int32)
        for start in range(first, last, BLOCK_L):
            rows, is_open, confidences = _open_rows(start, last, is_open_ptr, confidences_ptr, BLOCK_L)
            is_committed = (confidences > threshold) | (rows == best_row)
            stays_open = is_open & (is_committed == 0) & (rows < end)
            num_open += tl.sum(stays_open.to(tl.int32), axis=0)
            tl.store(stays_open_ptr + rows, stays_open, mask=rows < last)
        tl.store(is_done_ptr + block, num_open == 0)


def launch_denoise_update(
    predicted: Predicted, thresholds: Tensor, end_ids: Tensor, canvas: Tensor, residual: Residual | None
) -> Update:
    """As `denoise_update`, of arguments that are checked."""
    num_blocks = len(thresholds)
    update = Update(
        torch.empty_like(predicted.is_open),
        torch.empty_like(predicted.is_open),
        predicted.is_open.new_empty(num_blocks),
    )
    expected = entropies = mask = embeds = None
    hidden_size, stride, weight = 1, 1, 0.0
    if residual is not None:
        expected, mask, embeds = residual.expected, residual.mask.contiguous(), residual.embeds
        hidden_size, stride = embeds.shape[1], expected.stride(0)
        if residual.weight is None:
            entropies, weight = residual.entropies.contiguous(), 1 / math.log(residual.num_tokens)
        else:
            weight = residual.weight
    _denoise_update_kernel[(num_blocks, triton.cdiv(hidden_size, _BLOCK_D))](
        predicted.tokens.contiguous(),
        predicted.confidences.contiguous(),
        predicted.is_open.contiguous(),
        predicted.slots.contiguous(),
        predicted.starts.contiguous(),
        thresholds.contiguous(),
        end_ids.contiguous(),
        canvas,
        expected,
        entropies,
        mask,
        embeds,
        update.is_committed,
        update.is_open,
        update.is_done,
        len(end_ids),
        hidden_size,
        stride,
        weight,
        BLOCK_L=_BLOCK_L,
        BLOCK_D=_BLOCK_D,
        num_warps=_NUM_WARPS,
        enable_fp_fusion=True,
    )
    return update


def builds(target: Target) -> list[Build]:
    num_rows, num_blocks, hidden_size = 256, 8, 2048
    return [
        Build(
            kernel=_denoise_update_kernel,
            pointers={
                "tokens_ptr": "i64",
                "confidences_ptr": "fp32",
                "is_open_ptr": "i1",
                "slots_ptr": "i64",
                "starts_ptr": "i64",
                "thresholds_ptr": "fp64",
                "end_ids_ptr": "i64",
                "canvas_ptr": "i64",
                "expected_ptr": "bf16" if is_residual else None,
                "entropies_ptr": "fp32" if is_residual else None,
                "mask_ptr": "bf16" if is_residual else None,
                "embeds_ptr": "bf16" if is_residual else None,
                "is_committed_ptr": "i1",
                "stays_open_ptr": "i1",
                "is_done_ptr": "i1",
            },
            sizes={"num_ends": 2, "hidden_size": hidden_size, "expected_stride": hidden_size},
            floats=("weight",),
            constants={"BLOCK_L": _BLOCK_L, "BLOCK_D": _BLOCK_D},
            num_warps=_NUM_WARPS,
            shape=f"R={num_rows} B={num_blocks} D={hidden_size} bf16 residual={is_residual}",
            bytes_moved=num_rows * (23 + (4 * hidden_size + 4 if is_residual else 0)),
        )
        for is_residual in (True, False)
    ]
