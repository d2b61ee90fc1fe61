"""The roofline of decoding: points worked out by hand, its directions, and what it refuses."""

import json
import sys
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.calibration.roofline.passes import AUTOREGRESSIVE, BlockDecoding, Load, Roofline
from reasonrt.calibration.roofline.plot import plot_comparisons
from reasonrt.calibration.roofline.tables import GPUS, MODELS, Gpu, ModelSize, find_gpu, find_model
from reasonrt.errors import ConfigError

H200 = GPUS["H200"]
ON_H200 = Roofline(H200, MODELS["Qwen3-8B"])
REAL = Roofline(H200, MODELS["Qwen3-1.7B"], bandwidth_efficiency=4.0 / 4.8, compute_efficiency=650 / 989.5)
"""At 4 TB/s and 650 TFLOPS."""
ROOMY = Gpu("roomy", 1e12, 1e14, 1e18)

GPU = st.builds(Gpu, st.just("any"), st.floats(1e11, 1e13), st.floats(1e13, 1e16), st.just(1e18))
SIZES = st.builds(
    lambda kv_heads, group, **sizes: ModelSize("any", heads=kv_heads * group, kv_heads=kv_heads, **sizes),
    kv_heads=st.integers(1, 8),
    group=st.integers(1, 8),
    layers=st.integers(1, 80),
    hidden=st.integers(64, 8192),
    mlp=st.integers(64, 32768),
    head_dim=st.sampled_from([64, 128]),
    vocab_size=st.integers(100, 300_000),
    is_tied=st.booleans(),
)
ROOFLINES = st.builds(Roofline, GPU, SIZES)


@st.composite
def decodings(draw: st.DrawFn, residual: bool = True) -> BlockDecoding:
    block = draw(st.integers(2, 128))
    has_residual = residual and draw(st.booleans())
    return BlockDecoding(
        block,
        draw(st.floats(1, block)),
        merge_commits=draw(st.booleans()),
        masked_rows_only=draw(st.booleans()),
        residual=has_residual,
        residual_top_k=draw(st.none() | st.integers(1, 256)) if has_residual else None,
    )


def _head_ms(roofline: Roofline, rows: float, **residual: Any) -> float:
    """Of a model without layers: what the head takes with logits on `rows` rows, and the residual."""
    headed = replace(roofline, size=replace(roofline.size, layers=0))
    return 1000 * headed.pass_time(Load(1, rows, rows, **residual), 1, 0).seconds


@pytest.mark.parametrize(
    ("name", "billions", "of_layers"),
    [  # the model cards: parameters, and those that are no embeddings
        ("Qwen3-0.6B", 0.6, 0.44),
        ("Qwen3-1.7B", 1.7, 1.4),
        ("Qwen3-4B", 4.0, 3.6),
        ("Qwen3-8B", 8.2, 6.95),
        ("Qwen3-14B", 14.8, 13.2),
        ("Qwen3-32B", 32.8, 31.2),
    ],
)
def test_sizes_have_the_published_numbers_of_parameters(name: str, billions: float, of_layers: float) -> None:
    size = MODELS[name]

    assert size.weight_bytes / 2e9 == pytest.approx(billions, rel=0.02)
    assert size.body_weights / 1e9 == pytest.approx(of_layers, rel=0.02)


def test_ridge_of_an_h200_is_at_206_rows() -> None:
    """989e12 / 4.8e12; blocks of 32 reach it with 7 sequences, of 64 with 4."""
    assert H200.ridge_rows == pytest.approx(206, abs=0.5)
    for rows, batch in ((1, 206), (32, 6), (64, 3)):
        below, above = (ON_H200.pass_time(Load(1, rows, 0), n, context=0).seconds for n in (batch, batch + 1))
        reading_s = 2 * (ON_H200.size.body_weights + ON_H200.size.head_weights) / 4.8e12
        assert below == pytest.approx(reading_s, rel=1e-9)
        assert above > reading_s * (1 + 1e-4)


def test_8b_takes_about_4_ms_a_pass_at_batch_1() -> None:
    """16 GB at 4 TB/s; the input embeddings are not read. 5 tokens a pass are more than 1,000 a second."""
    real = replace(REAL, size=MODELS["Qwen3-8B"])
    point = real.compare(BlockDecoding(32, 5), 1, 1024)

    assert point.autoregressive_ms_per_pass == pytest.approx(
        1000 * (2 * (6_945_767_424 + 622_329_856) + 1024 * 147_456) / 4e12
    )
    assert point.autoregressive_ms_per_pass == pytest.approx(4.0, rel=0.06)
    assert point.diffusion_tokens_per_s > 1000
    assert (point.autoregressive_bound, point.diffusion_bound) == ("memory", "memory")


@pytest.mark.parametrize(
    ("batch", "stats", "residual", "top_64"),
    [(1, 0.16, 0.32, 0.16), (8, 0.25, 0.49, 0.26), (16, 0.49, 0.98, 0.52), (64, 1.96, 3.92, 2.10)],
)
def test_head_and_residual_of_a_1_7b(batch: int, stats: float, residual: float, top_64: float) -> None:
    """V = 151936, D = 2048, blocks of 32: a head of 622 MB takes 156 us to read, 31 us for 32 rows to compute."""
    rows = 32 * batch

    assert _head_ms(REAL, rows) == pytest.approx(stats, abs=0.006)
    assert _head_ms(REAL, rows, residual_rows=rows) == pytest.approx(residual, abs=0.006)
    assert _head_ms(REAL, rows, residual_rows=rows, residual_top_k=64) == pytest.approx(top_64, abs=0.006)


@pytest.mark.parametrize(("batch", "expected"), [(1, 0.31), (8, 0.33), (16, 0.49), (64, 1.96)])
def test_half_the_rows_halve_the_head_once_it_computes(batch: int, expected: float) -> None:
    rows = 16 * batch

    assert _head_ms(REAL, rows, residual_rows=rows) == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(("name", "share"), [("Qwen3-1.7B", 0.18), ("Qwen3-8B", 0.08)])
def test_a_residual_costs_one_more_head(name: str, share: float) -> None:
    """Compute-bound, on all rows: V D / (P + V D) more operations."""
    roofline = Roofline(replace(ROOMY, bandwidth=1e18), MODELS[name])
    plain, residual = (
        roofline.pass_time(BlockDecoding(32, 4, masked_rows_only=False, residual=flag).load, 1, 32).seconds
        for flag in (False, True)
    )

    assert residual / plain - 1 == pytest.approx(share, abs=0.005)


def test_a_block_of_four_in_two_passes_by_hand() -> None:
    """Masked at the start 4 and 2 rows, at the end 2 and 0: 3 and 1 in the mean. The commit is 4 rows, or a pass."""
    assert astuple(BlockDecoding(4, 2, residual=True).load) == (2, 6, 3, 1, None)
    assert astuple(BlockDecoding(4, 2, residual=True, masked_rows_only=False).load) == (2, 6, 6, 6, None)
    separate = BlockDecoding(4, 2, merge_commits=False, residual=True, residual_top_k=8).load
    assert astuple(separate) == pytest.approx((4 / 3, 4, 6 / 3, 2 / 3, 8))


def test_a_small_model_by_hand() -> None:
    """Each of its three kernels is a round number of bytes and operations."""
    size = ModelSize("small", 2, 10, 20, 2, 1, 5, 100, is_tied=True)  # 900 weights a layer, 1000 in the head
    roofline = Roofline(Gpu("slow", bandwidth=1000, flops=2000, memory_bytes=10_000), size)

    assert (size.body_weights, size.head_weights, size.weight_bytes, size.kv_bytes) == (1800, 1000, 5600, 40)
    one = roofline.pass_time(AUTOREGRESSIVE, 1, 8)  # read: 3600 bytes of layers, 320 of KV, 2000 of the head
    assert one.seconds == pytest.approx(3.6 + 0.32 + 2.0)
    assert one.is_memory_bound
    four = roofline.pass_time(AUTOREGRESSIVE, 4, 8)  # computed: 3600 x 4, 2000 x 4; of KV, 320 x 4 are read
    assert four.seconds == pytest.approx(14.4 / 2 + 1.28 + 8.0 / 2)
    assert not four.is_memory_bound
    assert roofline.most_batch(8) == 13  # (10000 - 5600) / 320
    fits = [roofline.compare(BlockDecoding(4, 2), batch, 8).fits for batch in (13, 14)]
    assert fits == [True, False]


@given(ROOFLINES, decodings(), st.integers(1, 512), st.integers(128, 100_000), st.floats(1, 10), st.booleans())
def test_a_better_gpu_is_never_slower(
    roofline: Roofline, decoding: BlockDecoding, batch: int, context: int, more: float, is_bandwidth: bool
) -> None:
    gpu = roofline.gpu
    better = replace(gpu, bandwidth=gpu.bandwidth * more) if is_bandwidth else replace(gpu, flops=gpu.flops * more)
    before, after = (replace(roofline, gpu=each).compare(decoding, batch, context) for each in (gpu, better))

    assert after.autoregressive_tokens_per_s >= before.autoregressive_tokens_per_s * (1 - 1e-9)
    assert after.diffusion_tokens_per_s >= before.diffusion_tokens_per_s * (1 - 1e-9)


@given(ROOFLINES, decodings(), st.integers(1, 512), st.integers(128, 100_000), st.floats(1, 4))
def test_efficiencies_scale_the_peaks(
    roofline: Roofline, decoding: BlockDecoding, batch: int, context: int, worse: float
) -> None:
    gpu = replace(roofline.gpu, bandwidth=roofline.gpu.bandwidth / worse, flops=roofline.gpu.flops / worse)
    efficient = replace(roofline, bandwidth_efficiency=1 / worse, compute_efficiency=1 / worse)

    slower, same = (each.pass_time(decoding.load, batch, context) for each in (replace(roofline, gpu=gpu), efficient))

    assert same.seconds == pytest.approx(slower.seconds)


@given(ROOFLINES, decodings(residual=False), st.integers(1, 512), st.integers(1, 512), st.integers(128, 100_000))
def test_the_ratio_falls_and_the_break_even_grows_with_the_batch(
    roofline: Roofline, decoding: BlockDecoding, batch: int, more: int, context: int
) -> None:
    small, large = (roofline.compare(decoding, n, context) for n in (batch, batch + more))

    assert large.ratio <= small.ratio * (1 + 1e-9)
    if large.break_even_tokens_per_pass is not None:
        assert small.break_even_tokens_per_pass is not None
        assert small.break_even_tokens_per_pass <= large.break_even_tokens_per_pass + 1e-5


@given(ROOFLINES, decodings(), st.integers(1, 512), st.integers(128, 100_000))
def test_at_the_break_even_both_are_as_fast(
    roofline: Roofline, decoding: BlockDecoding, batch: int, context: int
) -> None:
    point = roofline.compare(decoding, batch, context)
    even = point.break_even_tokens_per_pass

    assert point.ratio == pytest.approx(point.diffusion_tokens_per_s / point.autoregressive_tokens_per_s)
    if even is None:
        assert point.ratio < 1
        return
    assert 1 <= even <= decoding.block_length
    assert roofline.ratio(replace(decoding, tokens_per_pass=even), batch, context) >= 1 - 1e-9
    if even > 1 + 1e-5:
        assert roofline.ratio(replace(decoding, tokens_per_pass=even - 2e-6), batch, context) < 1


@given(ROOFLINES, decodings(), st.integers(128, 4096), st.integers(1, 300))
def test_the_crossing_is_where_autoregressive_decoding_becomes_faster(
    roofline: Roofline, decoding: BlockDecoding, context: int, most: int
) -> None:
    size = roofline.size
    memory_bytes = size.weight_bytes + (most + 0.5) * context * size.kv_bytes
    roofline = replace(roofline, gpu=replace(roofline.gpu, memory_bytes=memory_bytes))

    crossing = roofline.crossing(decoding, context)

    turn = crossing.autoregressive_from_batch
    assert crossing.most_batch == most
    if turn is None:
        assert roofline.ratio(decoding, most, context) >= 1 - 1e-9
        return
    assert all(roofline.ratio(decoding, n, context) < 1 for n in {turn, (turn + most) // 2, most})
    assert turn == 1 or roofline.ratio(decoding, turn - 1, context) >= 1 - 1e-9


def test_memory_bound_a_pass_is_worth_its_tokens() -> None:
    """Merged commits, no residual: a pass reads what an autoregressive one reads, and makes 4 tokens of it."""
    point = ON_H200.compare(BlockDecoding(32, 4), 1, 4096)

    assert point.ratio == pytest.approx(4)
    assert point.break_even_tokens_per_pass == 1
    separate = ON_H200.compare(BlockDecoding(32, 4, merge_commits=False), 1, 4096)
    assert separate.ratio == pytest.approx(4 * 8 / 9)  # a ninth of the passes commits


def test_compute_bound_no_number_of_tokens_is_enough() -> None:
    """A token costs block / tokens times the operations, and its row is computed once more for the cache."""
    roofline = Roofline(replace(ROOMY, bandwidth=1e20), replace(MODELS["Qwen3-8B"], vocab_size=1))
    point = roofline.compare(BlockDecoding(32, 8), 1000, 32)

    assert point.ratio == pytest.approx(1 / (32 / 8 + 1), rel=1e-3)
    assert (point.autoregressive_bound, point.diffusion_bound) == ("compute", "compute")
    assert point.break_even_tokens_per_pass is None


def test_the_break_even_rises_to_a_whole_block_before_none_is_enough() -> None:
    found = [ON_H200.break_even(BlockDecoding(16, 4), batch, 128) for batch in range(1, 200)]

    known = [even for even in found if even is not None]
    assert known == sorted(known)
    assert known[0] == 1
    assert 15.5 < known[-1] <= 16
    assert found == [*known, *[None] * (len(found) - len(known))]
    assert len(known) < len(found)


def test_long_contexts_keep_diffusion_ahead() -> None:
    """Keys and values are read once a pass, whatever it commits: at 32k tokens they are most of what is read."""
    decoding = BlockDecoding(32, 4)

    short, long = (ON_H200.crossing(decoding, context) for context in (1024, 32_768))

    assert short.autoregressive_from_batch == 30
    assert (long.most_batch, long.autoregressive_from_batch) == (25, None)
    assert ON_H200.crossing(decoding, 10_000_000).most_batch == 0


@pytest.mark.parametrize("name", ["H200", "h200", "RTX 4090", "rtx-4090", "a100 80g"])
def test_gpus_are_found_however_they_are_written(name: str) -> None:
    assert find_gpu(name) in GPUS.values()


@pytest.mark.parametrize("name", ["H300", "", "x" * 1000])
def test_an_unknown_gpu_names_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown GPU '.*'; there are A100-80G, H100-SXM, H200, ") as caught:
        find_gpu(name)

    assert len(str(caught.value)) < 200


CONFIG = {
    "num_hidden_layers": 36,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}


def test_a_model_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))

    assert replace(find_model(str(tmp_path)), name="Qwen3-8B") == find_model("qwen3-8b")
    old = {key: value for key, value in CONFIG.items() if key not in ("head_dim", "num_key_value_heads")}
    (tmp_path / "config.json").write_text(json.dumps(old))
    found = find_model(str(tmp_path))
    assert (found.kv_heads, found.head_dim) == (32, 128)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON that can be read"),
        ("[]", "hidden_size must be a positive whole number, got None"),
        (json.dumps(CONFIG | {"vocab_size": -1}), "vocab_size must be a positive whole number, got -1"),
        (json.dumps(CONFIG | {"hidden_size": "x" * 99}), "hidden_size must be a positive whole number, got x{40}$"),
        (json.dumps(CONFIG | {"num_experts": 128}), "mixture of experts; only dense models"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        find_model(str(tmp_path))


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown model '/no/such'; there are Qwen3-0\.6B, .* or give a folder"):
        find_model("/no/such")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"block_length": 1}, "block_length must be at least 2, got 1"),
        ({"tokens_per_pass": 0.5}, "tokens_per_pass must be in .1, block_length., which is 32, got 0.5"),
        ({"tokens_per_pass": 33}, "tokens_per_pass must be in .1, block_length., which is 32, got 33"),
        ({"tokens_per_pass": float("nan")}, "got nan"),
        ({"residual_top_k": 64}, "residual_top_k must be at least 1, with residual, got 64"),
        ({"residual_top_k": 0, "residual": True}, "residual_top_k must be at least 1, with residual, got 0"),
    ],
)
def test_impossible_decodings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BlockDecoding(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gpu": GPUS["L40S"], "size": MODELS["Qwen3-32B"]}, "Qwen3-32B does not fit: .* 65.5 GB .* L40S has 48 GB"),
        ({"bandwidth_efficiency": 0}, r"bandwidth_efficiency must be in \(0, 1\], got 0"),
        ({"compute_efficiency": 1.1}, r"compute_efficiency must be in \(0, 1\], got 1.1"),
    ],
)
def test_impossible_rooflines_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(ON_H200, **wrong)


@pytest.mark.parametrize(("batch", "context", "message"), [(0, 4096, "batch must be"), (1, 31, "at least a block, 32")])
def test_impossible_places_are_refused(batch: int, context: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ON_H200.compare(BlockDecoding(32, 4), batch, context)


def test_a_plot_is_drawn_of_what_fits(tmp_path: Path) -> None:
    decoding = BlockDecoding(32, 4)
    points = [ON_H200.compare(decoding, batch, context) for batch in (1, 16, 4096) for context in (1024, 10_000_000)]

    plot_comparisons(points, decoding, "title", tmp_path / "new" / "plot.png")

    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="give a PNG file"):
        plot_comparisons(points, decoding, "title", tmp_path / "plot.wrong")


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(ConfigError, match="a plot needs matplotlib: pip install"):
        plot_comparisons([], BlockDecoding(), "title", tmp_path / "plot.png")
