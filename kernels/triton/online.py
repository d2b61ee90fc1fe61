"""Statistics of softmax rows on a device: how a tile of logits is taken in, and how the parts of a row are combined.

A row is read in splits, by programs that run concurrently; each reads tile after tile and writes the part of its split,
and one small launch combines the parts. In a tile, x is [BLOCK_R, BLOCK_V], float32, -inf where there is no column.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from reasonrt.kernels.online import RowStats, Wanted
from reasonrt.kernels.triton.builds import Build, Target

LOG2_E = 1.4426950408889634
_LN_2 = tl.constexpr(0.6931471805599453)
_LOWEST = tl.constexpr(-3.0e38)
_MAX_COLUMN = tl.constexpr(0x7FFFFFFF)
_MAX_KEYS = 8192
"""Of a row, from all of its splits: what one program can hold in registers."""
_NUM_WARPS = 8
_NO_KEY = tl.constexpr(-(2**63))  # and up to 63 more: below the key of every number


@triton.jit
def absorb(x, first_column, best, second, argmax, total, moment, scale):
    """Take a tile into the running statistics, [BLOCK_R] each; `scale` is log2(e) / temperature.

    With d = (x - best) * scale, `total` is the sum of 2**d and `moment` that of 2**d * d.
    """
    tile_best = tl.max(x, axis=1)
    old = tl.where(best == float("-inf"), 0.0, best)
    if tl.max((tile_best > second).to(tl.int32), axis=0) > 0:  # otherwise both of the highest stay
        at = tl.argmax(x, axis=1)  # the lowest among equals
        is_at = tl.arange(0, x.shape[1])[None, :] == at[:, None]
        tile_second = tl.max(tl.where(is_at, float("-inf"), x), axis=1)
        second = tl.maximum(tl.maximum(second, tile_second), tl.minimum(best, tile_best))
        argmax = tl.where(tile_best > best, first_column + at, argmax)
        best = tl.maximum(best, tile_best)
    shift = tl.where(best == float("-inf"), 0.0, best)
    fall = tl.minimum((old - shift) * scale, 0.0)  # above 0 only while there is nothing yet to decay
    decay = tl.exp2(fall)
    scaled = (x - shift[:, None]) * scale
    weights = tl.exp2(scaled)
    # 0 * -inf is NaN
    moment = decay * (moment + total * fall) + tl.sum(weights * tl.maximum(scaled, _LOWEST), axis=1)
    total = decay * total + tl.sum(weights, axis=1)
    return best, second, argmax, total, moment


@triton.jit
def no_keys(BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):
    """Keys of nothing, [BLOCK_R, BLOCK_K]; those of a row differ, so that one of them is the lowest."""
    slots = tl.arange(0, BLOCK_K).to(tl.int64) + _NO_KEY
    return tl.zeros([BLOCK_R, BLOCK_K], tl.int64) + slots[None, :]


@triton.jit
def keep_highest(x, first_column, keys):
    """Take a tile into the keys of the BLOCK_K highest columns so far, [BLOCK_R, BLOCK_K], in no order.

    Each round puts the highest column that is left in the place of the lowest key: after a few tiles there are few.
    """
    value, at = tl.max(x, axis=1, return_indices=True)
    key = _key(value, first_column + at)
    lowest = tl.min(keys, axis=1)
    is_kept = (key > lowest) & (value > float("-inf"))
    while tl.max(is_kept.to(tl.int32), axis=0) > 0:
        keys = tl.where(is_kept[:, None] & (keys == lowest[:, None]), key[:, None], keys)
        x = tl.where(tl.arange(0, x.shape[1])[None, :] == at[:, None], float("-inf"), x)
        value, at = tl.max(x, axis=1, return_indices=True)
        key = _key(value, first_column + at)
        lowest = tl.min(keys, axis=1)
        is_kept = (key > lowest) & (value > float("-inf"))
    return keys


@triton.jit
def store_part(parts_ptr, argmax_ptr, rows, mask, num_rows, best, second, argmax, total, moment):
    """Write the statistics of a split: parts are [4, num_splits, num_rows], their argmax is [num_splits, num_rows]."""
    at = tl.program_id(1) * num_rows + rows
    size = tl.num_programs(1) * num_rows
    tl.store(parts_ptr + at, best, mask=mask)
    tl.store(parts_ptr + size + at, second, mask=mask)
    tl.store(parts_ptr + 2 * size + at, total, mask=mask)
    tl.store(parts_ptr + 3 * size + at, moment, mask=mask)
    tl.store(argmax_ptr + at, argmax, mask=mask)


@triton.jit
def store_keys(keys_ptr, rows, mask, keys):
    """Write the keys of a split into [num_rows, num_splits, BLOCK_K]."""
    slots = tl.program_id(1) * keys.shape[1] + tl.arange(0, keys.shape[1])
    at = rows[:, None] * (tl.num_programs(1) * keys.shape[1]) + slots[None, :]
    tl.store(keys_ptr + at, keys, mask=mask[:, None])


@triton.jit
def _key(value, column):
    """An int64 that is the higher the higher the value, and among equal values the lower the column."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)  # -0.0 is as high as 0.0
    ordered = bits ^ ((bits >> 31) & _MAX_COLUMN)
    return (ordered.to(tl.int64) << 32) | (column ^ _MAX_COLUMN).to(tl.int64)


@triton.jit
def _value_of_key(key):
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & _MAX_COLUMN)).to(tl.float32, bitcast=True)


@triton.jit
def _combine_kernel(
    parts_ptr,  # [4, num_splits, num_rows]: best, second, total, moment
    part_argmax_ptr,  # [num_splits, num_rows]
    keys_ptr,  # [num_rows, num_splits, BLOCK_K], or None
    chosen_ptr,  # [num_rows], the logit of the target where that is an id
    targets_ptr,  # [num_rows], or None
    stats_ptr,  # [5, num_rows]: lse, logprob, entropy, max_prob, margin
    argmax_ptr,  # [num_rows]
    top_logprobs_ptr,  # [num_rows, top_k]
    top_ids_ptr,  # [num_rows, top_k]
    num_rows,
    num_splits,
    vocab_size,
    top_k,
    scale,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, BLOCK_S)
    mask = splits < num_splits
    at = splits * num_rows + row
    size = num_splits * num_rows
    bests = tl.load(parts_ptr + at, mask=mask, other=float("-inf"))
    seconds = tl.load(parts_ptr + size + at, mask=mask, other=float("-inf"))
    totals = tl.load(parts_ptr + 2 * size + at, mask=mask, other=0.0)
    moments = tl.load(parts_ptr + 3 * size + at, mask=mask, other=0.0)
    argmaxes = tl.load(part_argmax_ptr + at, mask=mask, other=_MAX_COLUMN)

    best = tl.max(bests, axis=0)
    argmax = tl.min(tl.where(bests == best, argmaxes, _MAX_COLUMN), axis=0)
    is_winner = argmaxes == argmax
    second = tl.max(tl.where(is_winner, seconds, bests), axis=0)
    shift = tl.where(best == float("-inf"), 0.0, best)
    fall = tl.minimum((tl.where(bests == float("-inf"), 0.0, bests) - shift) * scale, 0.0)
    decay = tl.exp2(fall)
    total = tl.sum(decay * totals, axis=0)
    moment = tl.sum(decay * (moments + totals * fall), axis=0)

    log_total = tl.log2(total)
    tl.store(stats_ptr + row, (shift * scale + log_total) * _LN_2)
    tl.store(stats_ptr + 2 * num_rows + row, (log_total - moment / total) * _LN_2)
    max_prob = tl.exp2((best - shift) * scale) / total
    tl.store(stats_ptr + 3 * num_rows + row, max_prob)
    tl.store(stats_ptr + 4 * num_rows + row, max_prob - tl.exp2((second - shift) * scale) / total)
    tl.store(argmax_ptr + row, argmax.to(tl.int64))
    if targets_ptr is not None:
        target = tl.load(targets_ptr + row)
        is_id = (target >= 0) & (target < vocab_size)
        chosen = tl.load(chosen_ptr + row, mask=is_id, other=float("nan"))
        tl.store(stats_ptr + num_rows + row, ((chosen - shift) * scale - log_total) * _LN_2)
    if keys_ptr is not None:
        slots = tl.arange(0, BLOCK_S * BLOCK_K)
        keys = tl.load(keys_ptr + row * num_splits * BLOCK_K + slots, mask=slots < num_splits * BLOCK_K, other=_NO_KEY)
        for rank in range(top_k):
            key = tl.max(keys, axis=0)
            keys = tl.where(keys == key, _NO_KEY, keys)
            is_none = key < _NO_KEY + BLOCK_K
            value = tl.where(is_none, float("-inf"), _value_of_key(key))
            column = tl.where(is_none, -1, (key & _MAX_COLUMN) ^ _MAX_COLUMN)
            tl.store(top_logprobs_ptr + row * top_k + rank, ((value - shift) * scale - log_total) * _LN_2)
            tl.store(top_ids_ptr + row * top_k + rank, column)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the programs of the splits write, and the launch that combines it."""

    parts: Tensor  # [4, num_splits, num_rows]
    argmax: Tensor  # [num_splits, num_rows]
    chosen: Tensor  # [num_rows]
    keys: Tensor | None  # [num_rows, num_splits, block_k]
    wanted: Wanted  # with targets that are adjacent, as kernels read them

    @classmethod
    def allocate(cls, rows: Tensor, num_splits: int, wanted: Wanted) -> "Parts":
        num_rows, num_keys, device = rows.shape[0], block_k(wanted.top_k), rows.device
        if wanted.targets is not None:
            wanted = replace(wanted, targets=wanted.targets.contiguous())
        return cls(
            torch.empty(4, num_splits, num_rows, dtype=torch.float32, device=device),
            torch.empty(num_splits, num_rows, dtype=torch.int32, device=device),
            torch.empty(num_rows, dtype=torch.float32, device=device),
            torch.empty(num_rows, num_splits, num_keys, dtype=torch.int64, device=device) if wanted.top_k else None,
            wanted,
        )

    def combine(self, vocab_size: int) -> RowStats:
        _, num_splits, num_rows = self.parts.shape
        targets, top_k = self.wanted.targets, self.wanted.top_k
        stats = self.parts.new_empty(5, num_rows)
        argmax = self.argmax.new_empty(num_rows, dtype=torch.int64)
        top_logprobs = self.parts.new_empty(num_rows, top_k)
        top_ids = self.argmax.new_empty(num_rows, top_k, dtype=torch.int64)
        _combine_kernel[(num_rows,)](
            self.parts,
            self.argmax,
            self.keys,
            self.chosen,
            targets,
            stats,
            argmax,
            top_logprobs,
            top_ids,
            num_rows,
            num_splits,
            vocab_size,
            top_k,
            LOG2_E / self.wanted.temperature,
            BLOCK_S=triton.next_power_of_2(num_splits),
            BLOCK_K=block_k(top_k),
            num_warps=_NUM_WARPS,
            enable_fp_fusion=True,
        )
        lse, logprob, entropy, max_prob, margin = stats
        return RowStats(
            lse, None if targets is None else logprob, entropy, max_prob, argmax, margin, top_logprobs, top_ids
        )


def excluded_column(excluded: int | None) -> int:
    """As kernels take it: -1, which is no column, where nothing is excluded."""
    return -1 if excluded is None else excluded


def block_k(top_k: int) -> int:
    return int(triton.next_power_of_2(max(1, top_k)))


def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors or compute units of the device; in the interpreter so few that rows have splits."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 4


def target_name(device: torch.device) -> str:
    """The target of `builds.TARGETS` that is nearest to the device."""
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return "sm_80" if major < 9 else "sm_90" if major == 9 else "sm_100"


def split(num_tiles: int, num_wanted: int, top_k: int = 0) -> tuple[int, int]:
    """(splits, tiles of each): about as many splits as wanted, none of them empty, all but the last of equal size."""
    num_splits = max(1, min(num_tiles, num_wanted, _MAX_KEYS // block_k(top_k)))
    tiles_per_split = triton.cdiv(num_tiles, num_splits)
    return triton.cdiv(num_tiles, tiles_per_split), tiles_per_split


def builds(target: Target) -> list[Build]:
    num_rows, num_splits = 256, 128
    return [
        Build(
            kernel=_combine_kernel,
            pointers={
                "parts_ptr": "fp32",
                "part_argmax_ptr": "i32",
                "keys_ptr": "i64" if top_k else None,
                "chosen_ptr": "fp32",
                "targets_ptr": "i64",
                "stats_ptr": "fp32",
                "argmax_ptr": "i64",
                "top_logprobs_ptr": "fp32",
                "top_ids_ptr": "i64",
            },
            sizes={"num_rows": num_rows, "num_splits": num_splits, "vocab_size": 151_936, "top_k": top_k},
            floats=("scale",),
            constants={"BLOCK_S": num_splits, "BLOCK_K": block_k(top_k)},
            num_warps=_NUM_WARPS,
            shape=f"R={num_rows} splits={num_splits} top_k={top_k}",
            bytes_moved=num_rows * num_splits * (20 + 8 * top_k),
        )
        for top_k in (64, 0)
    ]
