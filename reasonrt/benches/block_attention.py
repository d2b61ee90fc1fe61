"""What a kernel for the attention of blocks could gain over those that exist: by arithmetic, nothing is measured.

The queries of a block see a prefix, which candidates for the same block share, and the block itself. Without a kernel
of its own that is two calls of one that exists, over the prefix with the queries of all candidates as rows, and over
the blocks, and a merge of the two results by their normalizers.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

LAYERS, HEADS, KV_HEADS, HEAD_DIM, WEIGHTS = 28, 16, 8, 128, 1_720_000_000  # of Qwen3-1.7B, in bfloat16
BYTES_PER_S, FLOPS_PER_S = 4.3e12, 790e12  # as seen on an H200
_CANDIDATES, _BLOCKS, _PREFIXES = (1, 8), (4, 8, 16, 32), (1024, 8192, 32_768, 131_072)


def block_attention() -> list[dict[str, Any]]:
    """One row for each number of candidates, block length and prefix.

    Times are microseconds of one layer that the memory's and the cores' rates allow: `fused_us` of one kernel for all,
    `merged_us` of the two calls and the merge, `repeated_us` where each candidate reads the prefix for itself.
    `gain_percent` is what `fused` would save of a pass that `merged` takes, its weights read once.
    """
    return list(_rows())


def _rows() -> Iterator[dict[str, Any]]:
    for candidates, block, prefix in product(_CANDIDATES, _BLOCKS, _PREFIXES):
        queries = candidates * block
        queries_bytes = 2 * queries * HEADS * HEAD_DIM  # and those of the result
        prefix_bytes = 2 * 2 * prefix * KV_HEADS * HEAD_DIM
        moved = prefix_bytes + 2 * 2 * queries * KV_HEADS * HEAD_DIM + 2 * queries_bytes
        partial = 4 * queries_bytes + 4 * 4 * queries * HEADS  # both results and normalizers, written and read
        flops = 4 * queries * HEADS * HEAD_DIM * (prefix + block)
        fused_us, merged_us = _time_us(moved, flops), _time_us(moved + partial, flops)
        pass_us = LAYERS * merged_us + _time_us(2 * WEIGHTS, 2 * queries * WEIGHTS)
        yield {
            "candidates": candidates,
            "block": block,
            "prefix": prefix,
            "megabytes": round(moved / 1e6, 2),
            "gigaflops": round(flops / 1e9, 2),
            "flops_per_byte": round(flops / moved),
            "fused_us": round(fused_us, 2),
            "merged_us": round(merged_us, 2),
            "repeated_us": round(_time_us(moved + (candidates - 1) * prefix_bytes, flops), 2),
            "gain_percent": round(100 * LAYERS * (merged_us - fused_us) / pass_us, 2),
        }


def _time_us(moved_bytes: float, flops: float) -> float:
    return 1e6 * max(moved_bytes / BYTES_PER_S, flops / FLOPS_PER_S)
