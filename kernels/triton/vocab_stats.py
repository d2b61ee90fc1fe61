"""The kernel of `vocab_stats`: a GEMM whose tiles of logits are used up in registers.

One program for each block of rows and split of the vocabulary. Programs of one split run side by side, so that its
weights come once from memory and then from the cache.
"""

from dataclasses import dataclass

import torch
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
    target_name,
)


@triton.jit(do_not_specialize=["excluded"])
def _vocab_stats_kernel(
    hidden_ptr,  # [num_rows, hidden_size], rows hidden_stride apart
    weight_ptr,  # [vocab_size, hidden_size], rows weight_stride apart
    targets_ptr,  # [num_rows], or None
    parts_ptr,
    argmax_ptr,
    chosen_ptr,
    keys_ptr,  # or None
    logits_ptr,  # [num_rows, vocab_size], rows logits_stride apart, or None
    num_rows,
    vocab_size,
    hidden_size,
    hidden_stride,
    weight_stride,
    logits_stride,
    tiles_per_split,
    excluded,  # a column, or -1
    scale,  # log2(e) / temperature
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first_row = tl.program_id(0) * BLOCK_R
    block_rows = tl.arange(0, BLOCK_R)
    rows = first_row + block_rows
    mask = rows < num_rows
    first = tl.program_id(1) * tiles_per_split * BLOCK_V
    last = tl.minimum(first + tiles_per_split * BLOCK_V, vocab_size)
    dims = tl.arange(0, BLOCK_D)
    # 64 bits are for the start of a tile alone: within it 32 are enough, in fewer registers
    hidden_ptr += first_row.to(tl.int64) * hidden_stride
    weight_ptr += first.to(tl.int64) * weight_stride
    hidden_offsets = block_rows[:, None] * hidden_stride + dims[None, :]
    weight_offsets = tl.arange(0, BLOCK_V)[None, :] * weight_stride + dims[:, None]
    if logits_ptr is not None:
        logits_offsets = block_rows[:, None] * logits_stride + tl.arange(0, BLOCK_V)[None, :]
    if targets_ptr is not None:
        targets = tl.load(targets_ptr + rows, mask=mask, other=-1)
    best = tl.full([BLOCK_R], float("-inf"), tl.float32)
    second = tl.full([BLOCK_R], float("-inf"), tl.float32)
    argmax = tl.zeros([BLOCK_R], tl.int32)
    total = tl.zeros([BLOCK_R], tl.float32)
    moment = tl.zeros([BLOCK_R], tl.float32)
    keys = no_keys(BLOCK_R, BLOCK_K)
    for start in range(first, last, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        x = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
        for at in range(0, hidden_size, BLOCK_D):
            is_dim = dims < hidden_size - at
            hidden = tl.load(hidden_ptr + at + hidden_offsets, mask=mask[:, None] & is_dim[None, :], other=0.0)
            weight = tl.load(
                weight_ptr + at + weight_offsets, mask=is_dim[:, None] & (columns < vocab_size)[None, :], other=0.0
            )
            x = tl.dot(hidden, weight, x, input_precision=INPUT_PRECISION)
        if HAS_SOFTCAP:
            x = softcap * (1.0 - 2.0 / (tl.exp2(x * (2 * 1.4426950408889634 / softcap)) + 1.0))  # tanh
        x = tl.where((columns < vocab_size)[None, :], x, float("-inf"))
        if (excluded >= start) & (excluded < start + BLOCK_V):  # in every tile it would take registers
            x = tl.where((columns == excluded)[None, :], float("-inf"), x)
        if logits_ptr is not None:
            written = x.to(logits_ptr.dtype.element_ty)
            at = first_row.to(tl.int64) * logits_stride + start + logits_offsets
            tl.store(logits_ptr + at, written, mask=mask[:, None] & (columns < vocab_size)[None, :])
            x = written.to(tl.float32)
        if targets_ptr is not None:
            is_here = (targets >= start) & (targets < start + BLOCK_V)
            if tl.max(is_here.to(tl.int32), axis=0) > 0:
                chosen = tl.sum(tl.where(columns[None, :] == targets[:, None], x, 0.0), axis=1)
                tl.store(chosen_ptr + rows, chosen, mask=is_here)
        best, second, argmax, total, moment = absorb(x, start, best, second, argmax, total, moment, scale)
        if keys_ptr is not None:
            keys = keep_highest(x, start, keys)
        weight_ptr += BLOCK_V * weight_stride
    store_part(parts_ptr, argmax_ptr, rows, mask, num_rows, best, second, argmax, total, moment)
    if keys_ptr is not None:
        store_keys(keys_ptr, rows, mask, keys)


@dataclass(frozen=True, slots=True)
class _Tiles:
    block_r: int
    block_v: int
    block_d: int
    num_warps: int
    num_stages: int


_WARPS_PER_PROCESSOR = 8
"""As many as its registers hold."""
_INTERPRETED = _Tiles(16, 128, 64, 4, 1)


def _tiles(target: str, num_rows: int, itemsize: int, is_narrow: bool) -> _Tiles:
    """Chosen by arithmetic and by what compiles without spills; none of it is measured.

    Narrow is what keeps keys, or writes its logits.
    """
    if itemsize == 4:
        return _Tiles(max(16, min(64, triton.next_power_of_2(num_rows))), 64, 32, 4, 2)
    block_d, num_stages = 32 if target == "sm_80" else 64, 2 if target == "gfx942" else 4
    if num_rows <= 16:
        return _Tiles(16, 128, 64, 4, num_stages)
    block_r = 64 if num_rows <= 64 else 128
    if is_narrow:
        return _Tiles(block_r, 64, block_d, 8, num_stages)
    return _Tiles(block_r, 128, block_d, 8 if target == "sm_100" else block_r // 16, num_stages)


def launch_vocab_stats(
    hidden: Tensor, weight: Tensor, softcap: float | None, wanted: Wanted, logits: Tensor | None
) -> RowStats:
    """As `vocab_stats`, of arguments that are checked."""
    num_rows, vocab_size, top_k = hidden.shape[0], weight.shape[0], wanted.top_k
    tiles = (
        _tiles(target_name(hidden.device), num_rows, hidden.element_size(), bool(top_k) or logits is not None)
        if hidden.is_cuda
        else _INTERPRETED
    )
    num_blocks = triton.cdiv(num_rows, tiles.block_r)
    num_programs = num_processors(hidden.device) * _WARPS_PER_PROCESSOR // tiles.num_warps // max(1, num_blocks)
    num_splits, tiles_per_split = split(triton.cdiv(vocab_size, tiles.block_v), num_programs, top_k)
    parts = Parts.allocate(hidden, num_splits, wanted)
    _vocab_stats_kernel[(num_blocks, num_splits)](
        hidden,
        weight,
        parts.wanted.targets,
        parts.parts,
        parts.argmax,
        parts.chosen,
        parts.keys,
        logits,
        num_rows,
        vocab_size,
        hidden.shape[1],
        hidden.stride(0),
        weight.stride(0),
        0 if logits is None else logits.stride(0),
        tiles_per_split,
        excluded_column(wanted.excluded),
        LOG2_E / wanted.temperature,
        1.0 if softcap is None else softcap,
        HAS_SOFTCAP=softcap is not None,
        INPUT_PRECISION="ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        BLOCK_R=tiles.block_r,
        BLOCK_V=tiles.block_v,
        BLOCK_D=tiles.block_d,
        BLOCK_K=block_k(top_k),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        enable_fp_fusion=True,
    )
    return parts.combine(vocab_size)


def builds(target: Target) -> list[Build]:
    vocab_size, hidden_size = 151_936, 2048
    found = []
    for num_rows, top_k, writes in (
        (256, 0, True),
        (256, 0, False),
        (256, 64, False),
        (64, 0, True),
        (64, 0, False),
        (64, 64, False),
        (16, 0, False),
        (16, 64, False),
    ):
        tiles = _tiles(target.name, num_rows, 2, bool(top_k) or writes)
        found.append(
            Build(
                kernel=_vocab_stats_kernel,
                pointers={
                    "hidden_ptr": "bf16",
                    "weight_ptr": "bf16",
                    "targets_ptr": "i64",
                    "parts_ptr": "fp32",
                    "argmax_ptr": "i32",
                    "chosen_ptr": "fp32",
                    "keys_ptr": "i64" if top_k else None,
                    "logits_ptr": "bf16" if writes else None,
                },
                sizes={
                    "num_rows": num_rows,
                    "vocab_size": vocab_size,
                    "hidden_size": hidden_size,
                    "hidden_stride": hidden_size,
                    "weight_stride": hidden_size,
                    "logits_stride": vocab_size if writes else 0,
                    "tiles_per_split": 18,
                    "excluded": -1,
                },
                floats=("scale", "softcap"),
                constants={
                    "HAS_SOFTCAP": False,
                    "INPUT_PRECISION": "ieee",
                    "BLOCK_R": tiles.block_r,
                    "BLOCK_V": tiles.block_v,
                    "BLOCK_D": tiles.block_d,
                    "BLOCK_K": block_k(top_k),
                },
                num_warps=tiles.num_warps,
                num_stages=tiles.num_stages,
                shape=f"R={num_rows} V={vocab_size} D={hidden_size} bf16 top_k={top_k}" + " with logits" * writes,
                bytes_moved=2 * hidden_size * (vocab_size + num_rows) + 2 * num_rows * vocab_size * writes,
                flops=2 * num_rows * vocab_size * hidden_size,
                is_gemm=True,
            )
        )
    return found
