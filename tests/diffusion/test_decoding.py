"""What a request may ask of a model, and what the model says where it asks nothing."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.diffusion.decoding import over_defaults, read_decoding
from reasonrt.diffusion.shape import ModelShape
from reasonrt.errors import RequestError

SHAPE = ModelShape(
    hidden=8,
    layers=1,
    mlp=8,
    heads=1,
    kv_heads=1,
    head_dim=8,
    vocab_size=16,
    tokens=16,
    max_positions=64,
    mask_token_id=0,
    block_length=8,
    context="causal",
)
FULL = replace(SHAPE, context="full")
BLOCK = replace(SHAPE, context="block")


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        (SHAPE, {"block_length": 9}, "block_length must be at most 8, which the model was trained on, got 9"),
        (BLOCK, {"strategy": "self_speculation"}, "needs a model that can write token by token as well"),
        (FULL, {"strategy": "self_speculation"}, "needs a model that can write token by token as well"),
        (SHAPE, {"strategy": "self_speculation", "edit_threshold": 0.5}, "no edit_threshold, no residual_start"),
        (SHAPE, {"strategy": "self_speculation", "residual_start": "self"}, "no edit_threshold, no residual_start"),
        (SHAPE, {"strategy": "adaptive"}, "needs a model that attends to what follows a block"),
        (FULL, {"residual_start": "reference"}, "needs an engine with a reference model"),
        (SHAPE, {"residual_weight": 1.5}, "residual_weight must be"),
        (SHAPE, {"threshold": "high"}, "threshold must be"),
        (SHAPE, {"thresold": 0.5}, "thresold"),
    ],
)
def test_what_a_model_cannot_do_is_refused(shape: ModelShape, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        read_decoding(options, shape)
    assert "\n" not in str(refused.value)


def test_a_reference_start_is_allowed_where_there_is_a_reference() -> None:
    assert read_decoding({"residual_start": "reference"}, SHAPE, has_reference=True).residual_start == "reference"


@given(st.booleans(), st.sampled_from([None, 0.0, 0.5, 1.0]), st.integers(1, 8))
def test_what_is_left_out_is_the_models_own(is_residual: bool, weight: float | None, block: int) -> None:
    shape = replace(SHAPE, is_residual=is_residual, residual_weight=weight, block_length=block)

    found = read_decoding({}, shape)
    asked = read_decoding({"residual": not is_residual, "residual_weight": 0.25, "block_length": 1}, shape)

    assert (found.residual, found.residual_weight, found.block) == (is_residual, weight, block)
    assert (asked.residual, asked.residual_weight, asked.block) == (not is_residual, 0.25, 1)


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ({}, "self_speculation"),
        ({"residual_top_k": 4}, "self_speculation"),
        ({"threshold": 0.5}, "threshold"),
        ({"entropy_bound": 1.0}, "entropy"),
        ({"factor": 2.0}, "factor"),
        ({"passes": 4}, "static"),
        ({"sub_block_length": 4, "threshold": 0.5}, "sub_blocks"),
        ({"threshold": 0.5, "strategy": "self_speculation"}, "self_speculation"),
    ],
)
def test_an_option_asks_for_the_strategy_that_reads_it(options: dict[str, Any], strategy: str) -> None:
    defaults = {"strategy": "self_speculation", "threshold": 0.8}
    assert over_defaults(options, defaults) == {**defaults, **options, "strategy": strategy}


def test_a_strategy_that_reads_the_option_stays() -> None:
    assert over_defaults({"threshold": 0.5}, {"strategy": "sub_blocks"})["strategy"] == "sub_blocks"


@given(st.integers(1, 8), st.integers(1, 512), st.integers(1, 512))
def test_parts_and_passes_never_exceed_the_block(block: int, passes: int, part: int) -> None:
    found = read_decoding({"block_length": block, "passes": passes, "sub_block_length": part}, SHAPE)
    assert (found.passes, found.sub_block_length) == (min(passes, block), min(part, block))
