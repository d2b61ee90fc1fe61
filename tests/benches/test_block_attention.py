"""The arithmetic by which blocks have no attention kernel of their own."""

import pytest

from reasonrt.benches.block_attention import block_attention


def test_times_follow_from_bytes_and_operations() -> None:
    row = next(row for row in block_attention() if (row["candidates"], row["block"], row["prefix"]) == (1, 4, 1024))

    keys_and_values, queries_and_results = 2 * 2 * (1024 + 4) * 8 * 128, 2 * 2 * 4 * 16 * 128
    assert row["megabytes"] == pytest.approx((keys_and_values + queries_and_results) / 1e6, abs=0.01)
    assert row["gigaflops"] == pytest.approx(4 * 4 * 16 * 128 * 1028 / 1e9, abs=0.01)
    assert row["fused_us"] == pytest.approx((keys_and_values + queries_and_results) / 4.3e6, abs=0.01)


def test_one_kernel_for_all_gains_less_than_a_fiftieth_of_a_pass_and_sharing_the_prefix_much_more() -> None:
    """What `docs/kernels.md` says of it."""
    rows = block_attention()

    assert all(row["fused_us"] <= row["merged_us"] for row in rows)
    assert max(row["gain_percent"] for row in rows) < 2
    shared = [row for row in rows if row["candidates"] > 1 and row["prefix"] >= 8192]
    assert all(row["repeated_us"] > 2.5 * row["merged_us"] for row in shared)
