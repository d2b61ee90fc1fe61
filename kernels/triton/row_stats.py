"""The kernel of `row_stats`: one pass over the logits, one program for each split of a row."""

import triton
import triton.language as tl
from torch import Tensor

from reasonrt.kernels.online import RowStats, Wanted
from reasonrt.kernels.triton.builds import Build, Target
from reasonrt.kernels.triton.online import (
    LOG2_E,
    Parts,
    absorb,
    block_k,
    excluded_column,
    keep_highest,
    no_keys,
    num_processors,
    split,
    store_keys,
    store_part,
)

_BLOCK_V = 2048
_NUM_WARPS = 8
_NUM_STAGES = 3
_PROGRAMS_PER_PROCESSOR = 8
"""Resident together, so that while one reduces its tile the others load theirs."""
_INTERPRETED_BLOCK_V = 256


@triton.jit(do_not_specialize=["excluded"])
def _row_stats_kernel(
    logits_ptr,  # [num_rows, vocab_size], rows row_stride apart
    targets_ptr,  # [num_rows], or None
    parts_ptr,
    argmax_ptr,
    chosen_ptr,
    keys_ptr,  # or None
    num_rows,
    vocab_size,
    row_stride,
    tiles_per_split,
    excluded,  # a column, or -1
    scale,  # log2(e) / temperature
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * tiles_per_split * BLOCK_V
    last = tl.minimum(first + tiles_per_split * BLOCK_V, vocab_size)
    logits_ptr += row * row_stride
    best = tl.full([1], float("-inf"), tl.float32)
    second = tl.full([1], float("-inf"), tl.float32)
    argmax = tl.zeros([1], tl.int32)
    total = tl.zeros([1], tl.float32)
    moment = tl.zeros([1], tl.float32)
    keys = no_keys(1, BLOCK_K)
    for start in tl.range(first, last, BLOCK_V, num_stages=NUM_STAGES):
        columns = start + tl.arange(0, BLOCK_V)
        x = tl.load(logits_ptr + columns, mask=columns < vocab_size, other=float("-inf"))
        x = tl.where(columns == excluded, float("-inf"), x.to(tl.float32))[None, :]
        best, second, argmax, total, moment = absorb(x, start, best, second, argmax, total, moment, scale)
        if keys_ptr is not None:
            keys = keep_highest(x, start, keys)
    rows = row + tl.zeros([1], tl.int64)
    mask = rows < num_rows
    store_part(parts_ptr, argmax_ptr, rows, mask, num_rows, best, second, argmax, total, moment)
    if keys_ptr is not None:
        store_keys(keys_ptr, rows, mask, keys)
    if targets_ptr is not None:
        target = tl.load(targets_ptr + row)
        is_here = (target >= first) & (target < last)
        chosen = tl.load(logits_ptr + target, mask=is_here, other=0.0)
        tl.store(chosen_ptr + row, tl.where(target == excluded, float("-inf"), chosen.to(tl.float32)), mask=is_here)


def launch_row_stats(logits: Tensor, wanted: Wanted) -> RowStats:
    """As `row_stats`, of arguments that are checked."""
    num_rows, vocab_size = logits.shape
    block_v = _BLOCK_V if logits.is_cuda else _INTERPRETED_BLOCK_V
    num_programs = _PROGRAMS_PER_PROCESSOR * num_processors(logits.device) // max(1, num_rows)
    num_splits, tiles_per_split = split(triton.cdiv(vocab_size, block_v), num_programs, wanted.top_k)
    parts = Parts.allocate(logits, num_splits, wanted)
    _row_stats_kernel[(num_rows, num_splits)](
        logits,
        parts.wanted.targets,
        parts.parts,
        parts.argmax,
        parts.chosen,
        parts.keys,
        num_rows,
        vocab_size,
        logits.stride(0),
        tiles_per_split,
        excluded_column(wanted.excluded),
        LOG2_E / wanted.temperature,
        BLOCK_V=block_v,
        BLOCK_K=block_k(wanted.top_k),
        NUM_STAGES=_NUM_STAGES,
        num_warps=_NUM_WARPS,
        enable_fp_fusion=True,
    )
    return parts.combine(vocab_size)


def builds(target: Target) -> list[Build]:
    num_rows, vocab_size = 256, 151_936
    return [
        Build(
            kernel=_row_stats_kernel,
            pointers={
                "logits_ptr": dtype,
                "targets_ptr": "i64",
                "parts_ptr": "fp32",
                "argmax_ptr": "i32",
                "chosen_ptr": "fp32",
                "keys_ptr": "i64" if top_k else None,
            },
            sizes={
                "num_rows": num_rows,
                "vocab_size": vocab_size,
                "row_stride": vocab_size,
                "tiles_per_split": 10,
                "excluded": -1,
            },
            floats=("scale",),
            constants={"BLOCK_V": _BLOCK_V, "BLOCK_K": block_k(top_k), "NUM_STAGES": _NUM_STAGES},
            num_warps=_NUM_WARPS,
            shape=f"R={num_rows} V={vocab_size} {dtype} top_k={top_k}",
            bytes_moved=num_rows * vocab_size * (4 if dtype == "fp32" else 2),
        )
        for dtype, top_k in (("bf16", 64), ("bf16", 0), ("fp32", 0))
    ]
