"""The kernels of `expected_embedding`: a GEMM that exponentiates its left operand as it comes, and a weighted gather.

Its left operand is as wide as the vocabulary and its result as wide as an embedding, so that few tiles of the result
fill no GPU: the vocabulary is cut into splits, whose parts are added by torch.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from reasonrt.kernels.triton.builds import Build, Target
from reasonrt.kernels.triton.online import LOG2_E, block_k, num_processors, split, target_name


@triton.jit
def _expected_embedding_kernel(
    logits_ptr,  # [any, vocab_size], rows row_stride apart
    shifts_ptr,  # [any], about the highest logit of each row
    rows_ptr,  # [num_rows], which rows of these, or None
    embedding_ptr,  # [vocab_size, hidden_size], rows embedding_stride apart
    parts_ptr,  # [num_splits, num_rows, hidden_size]
    totals_ptr,  # [num_splits, num_rows]
    num_rows,
    vocab_size,
    hidden_size,
    row_stride,
    embedding_stride,
    tiles_per_split,
    scale,  # log2(e) / temperature
    INPUT_PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = rows < num_rows
    dims = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_dim = dims < hidden_size
    first = tl.program_id(2) * tiles_per_split * BLOCK_V
    last = tl.minimum(first + tiles_per_split * BLOCK_V, vocab_size)
    columns = tl.arange(0, BLOCK_V)
    sources = rows.to(tl.int64)
    if rows_ptr is not None:
        sources = tl.load(rows_ptr + rows, mask=mask, other=0)
    shifts = tl.load(shifts_ptr + sources, mask=mask, other=0.0)
    logits_ptrs = logits_ptr + first + sources[:, None] * row_stride + columns[None, :]
    # 64 bits are for the start of a tile alone: within it 32 are enough, in fewer registers
    embedding_ptr += first.to(tl.int64) * embedding_stride
    embedding_offsets = columns[:, None] * embedding_stride + dims[None, :]
    total = tl.zeros([BLOCK_R], tl.float32)
    mean = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for start in range(first, last, BLOCK_V):
        is_column = columns < vocab_size - start
        x = tl.load(logits_ptrs, mask=mask[:, None] & is_column[None, :], other=float("-inf"))
        weights = tl.exp2((x.to(tl.float32) - shifts[:, None]) * scale)
        embedding = tl.load(embedding_ptr + embedding_offsets, mask=is_column[:, None] & is_dim[None, :], other=0.0)
        weights = weights.to(embedding.dtype)
        total += tl.sum(weights.to(tl.float32), axis=1)  # as they are rounded, so that they are shares of 1
        mean = tl.dot(weights, embedding, mean, input_precision=INPUT_PRECISION)
        logits_ptrs += BLOCK_V
        embedding_ptr += BLOCK_V * embedding_stride
    at = tl.program_id(2).to(tl.int64) * num_rows + rows
    tl.store(parts_ptr + at[:, None] * hidden_size + dims[None, :], mean, mask=mask[:, None] & is_dim[None, :])
    if tl.program_id(1) == 0:
        tl.store(totals_ptr + at, total, mask=mask)


@triton.jit
def _expected_embedding_top_kernel(
    top_logprobs_ptr,  # [num_rows, top_k]
    top_ids_ptr,  # [num_rows, top_k]
    embedding_ptr,  # [any, hidden_size], rows embedding_stride apart
    mean_ptr,  # [num_rows, hidden_size]
    top_k,
    hidden_size,
    embedding_stride,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    dims = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_dim = dims < hidden_size
    ranks = tl.arange(0, BLOCK_K)
    logprobs = tl.load(top_logprobs_ptr + row * top_k + ranks, mask=ranks < top_k, other=float("-inf")).to(tl.float32)
    ids = tl.load(top_ids_ptr + row * top_k + ranks, mask=ranks < top_k, other=-1)
    weights = tl.exp2((logprobs - tl.max(logprobs, axis=0)) * 1.4426950408889634)
    mask = (ids >= 0)[:, None] & is_dim[None, :]
    embedding = tl.load(embedding_ptr + ids[:, None] * embedding_stride + dims[None, :], mask=mask, other=0.0)
    mean = tl.sum(weights[:, None] * embedding.to(tl.float32), axis=0) / tl.sum(weights, axis=0)
    tl.store(mean_ptr + row * hidden_size + dims, mean.to(mean_ptr.dtype.element_ty), mask=is_dim)


@dataclass(frozen=True, slots=True)
class _Tiles:
    block_r: int
    block_v: int
    block_d: int
    num_warps: int
    num_stages: int


_INTERPRETED = _Tiles(16, 128, 64, 4, 1)
_WARPS_PER_PROCESSOR = 8
_TOP_BLOCK_D = 128
_TOP_NUM_WARPS = 4


def _tiles(target: str, num_rows: int, itemsize: int) -> _Tiles:
    """Wide in the embedding, as each tile of it exponentiates the logits again. Chosen as in `vocab_stats`."""
    if itemsize == 4:
        return _Tiles(max(16, min(64, triton.next_power_of_2(num_rows))), 32, 64, 4, 2)
    num_stages = 2 if target == "gfx942" else 3
    if num_rows <= 16:
        return _Tiles(16, 64, 128, 4, num_stages)
    return _Tiles(64 if num_rows <= 64 else 128, 32 if target == "gfx942" else 64, 256, 8, num_stages)


def launch_expected_embedding(
    logits: Tensor, lse: Tensor, embedding: Tensor, rows: Tensor | None, temperature: float
) -> Tensor:
    """As `expected_embedding`, of arguments that are checked."""
    num_rows = len(logits if rows is None else rows)
    vocab_size, hidden_size = embedding.shape
    tiles = _INTERPRETED
    if logits.is_cuda:
        tiles = _tiles(target_name(logits.device), num_rows, embedding.element_size())
    num_blocks, num_slices = triton.cdiv(num_rows, tiles.block_r), triton.cdiv(hidden_size, tiles.block_d)
    num_programs = num_processors(logits.device) * _WARPS_PER_PROCESSOR // tiles.num_warps
    num_splits, tiles_per_split = split(
        triton.cdiv(vocab_size, tiles.block_v), num_programs // max(1, num_blocks * num_slices)
    )
    parts = torch.empty(num_splits, num_rows, hidden_size, dtype=torch.float32, device=logits.device)
    totals = torch.empty(num_splits, num_rows, dtype=torch.float32, device=logits.device)
    _expected_embedding_kernel[(num_blocks, num_slices, num_splits)](
        logits,
        lse.float() * temperature,
        None if rows is None else rows.contiguous(),
        embedding,
        parts,
        totals,
        num_rows,
        vocab_size,
        hidden_size,
        logits.stride(0),
        embedding.stride(0),
        tiles_per_split,
        LOG2_E / temperature,
        INPUT_PRECISION="ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        BLOCK_R=tiles.block_r,
        BLOCK_V=tiles.block_v,
        BLOCK_D=tiles.block_d,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        enable_fp_fusion=True,
    )
    return parts.sum(0).div_(totals.sum(0)[:, None]).to(embedding.dtype)


def launch_expected_embedding_top(top_logprobs: Tensor, top_ids: Tensor, embedding: Tensor) -> Tensor:
    """As `expected_embedding_top`, of arguments that are checked."""
    num_rows, top_k = top_logprobs.shape
    hidden_size = embedding.shape[1]
    mean = embedding.new_empty(num_rows, hidden_size)
    _expected_embedding_top_kernel[(num_rows, triton.cdiv(hidden_size, _TOP_BLOCK_D))](
        top_logprobs.contiguous(),
        top_ids.contiguous(),
        embedding,
        mean,
        top_k,
        hidden_size,
        embedding.stride(0),
        BLOCK_K=block_k(top_k),
        BLOCK_D=_TOP_BLOCK_D,
        num_warps=_TOP_NUM_WARPS,
        enable_fp_fusion=True,
    )
    return mean


def builds(target: Target) -> list[Build]:
    vocab_size, hidden_size = 151_936, 2048
    found = []
    for num_rows in (256, 64, 16):
        tiles = _tiles(target.name, num_rows, 2)
        found.append(
            Build(
                kernel=_expected_embedding_kernel,
                pointers={
                    "logits_ptr": "bf16",
                    "shifts_ptr": "fp32",
                    "rows_ptr": "i64",
                    "embedding_ptr": "bf16",
                    "parts_ptr": "fp32",
                    "totals_ptr": "fp32",
                },
                sizes={
                    "num_rows": num_rows,
                    "vocab_size": vocab_size,
                    "hidden_size": hidden_size,
                    "row_stride": vocab_size,
                    "embedding_stride": hidden_size,
                    "tiles_per_split": 18,
                },
                floats=("scale",),
                constants={
                    "INPUT_PRECISION": "ieee",
                    "BLOCK_R": tiles.block_r,
                    "BLOCK_V": tiles.block_v,
                    "BLOCK_D": tiles.block_d,
                },
                num_warps=tiles.num_warps,
                num_stages=tiles.num_stages,
                shape=f"R={num_rows} V={vocab_size} D={hidden_size} bf16",
                bytes_moved=2 * vocab_size * (hidden_size + num_rows) + 2 * num_rows * hidden_size,
                flops=2 * num_rows * vocab_size * hidden_size,
                is_gemm=True,
            )
        )
    num_rows, top_k = 256, 64
    found.append(
        Build(
            kernel=_expected_embedding_top_kernel,
            pointers={
                "top_logprobs_ptr": "fp32",
                "top_ids_ptr": "i64",
                "embedding_ptr": "bf16",
                "mean_ptr": "bf16",
            },
            sizes={"top_k": top_k, "hidden_size": hidden_size, "embedding_stride": hidden_size},
            constants={"BLOCK_K": top_k, "BLOCK_D": _TOP_BLOCK_D},
            num_warps=_TOP_NUM_WARPS,
            shape=f"R={num_rows} D={hidden_size} bf16 top_k={top_k}",
            bytes_moved=2 * num_rows * (top_k + 1) * hidden_size,
        )
    )
    return found
