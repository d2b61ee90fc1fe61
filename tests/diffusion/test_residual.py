"""The blend that a masked position reads."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.diffusion.decoding import Decoding
from reasonrt.diffusion.model import DiffusionModel
from reasonrt.diffusion.residual import blend as blend_predicted
from reasonrt.diffusion.residual import blend_probs, needs_logits, num_expected
from reasonrt.kernels.row_stats import row_stats

Made = Callable[..., DiffusionModel]


def blend(model: DiffusionModel, logits: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    decoding = replace(decoding, residual=True)
    stats = row_stats(logits, top_k=num_expected(model, decoding))
    return blend_predicted(model, stats, logits if needs_logits(decoding) else None, decoding)


def alphas(model: DiffusionModel, embeddings: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """The weights with which `means` entered."""
    mask = model.embedding.weight[model.shape.mask_token_id]
    return ((embeddings - mask) * (means - mask)).sum(-1) / (means - mask).square().sum(-1)


def test_a_certain_prediction_leaves_the_mask(tiny_model: Made) -> None:
    model = tiny_model()
    logits = torch.full((1, 40), -torch.inf, dtype=torch.float64)
    logits[0, 7] = 0

    assert torch.equal(blend(model, logits, Decoding())[0], model.embedding.weight[41])


def test_an_unsure_prediction_is_the_mean_of_the_tokens_without_padding(tiny_model: Made) -> None:
    """log V is of the 40 tokens, not of the 48 rows of the table: else the weight would be below 1."""
    model = tiny_model()

    [embedding] = blend(model, torch.zeros(1, 40, dtype=torch.float64), Decoding())

    assert torch.allclose(embedding, model.embedding.weight[:40].mean(0))


@given(st.lists(st.floats(-50, 50), min_size=40, max_size=40), st.floats(0.01, 100))
@settings(max_examples=25)
def test_the_weight_is_the_normalized_entropy_in_0_to_1(
    tiny_model: Made, values: list[float], temperature: float
) -> None:
    model, logits = tiny_model(), torch.tensor([values], dtype=torch.float64)
    probs, scaled = logits.softmax(-1), (logits / temperature).softmax(-1)

    [alpha] = alphas(
        model, blend(model, logits, Decoding(residual_temperature=temperature)), probs @ model.embedding.weight[:40]
    )

    expected = -sum(p * math.log(p) for p in scaled[0].tolist() if p > 0) / math.log(40)
    assert -1e-9 <= alpha <= 1 + 1e-9
    assert float(alpha) == pytest.approx(expected, abs=1e-6)


def test_the_temperature_scales_the_expectation_only_where_it_is_asked_to(tiny_model: Made) -> None:
    model = tiny_model()
    logits = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probs, scaled, table = logits.softmax(-1), (logits / 2).softmax(-1), model.embedding.weight[:40]
    options = Decoding(residual_temperature=2.0)

    plain = blend(model, logits, options)
    both = blend(model, logits, Decoding(residual_temperature=2.0, residual_scaled=True))

    weights = alphas(model, plain, probs @ table)
    assert torch.allclose(weights, alphas(model, both, scaled @ table))
    assert not torch.allclose(plain, both)


def test_a_constant_weight_takes_the_place_of_the_entropy(tiny_model: Made) -> None:
    model = tiny_model()
    logits = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    found = blend(model, logits, Decoding(residual_weight=0.5, residual_temperature=2.0))

    weights = alphas(model, found, logits.softmax(-1) @ model.embedding.weight[:40])
    assert torch.allclose(weights, torch.full((3,), 0.5, dtype=torch.float64))


def test_the_k_most_probable_tokens_are_renormalized_and_the_weight_is_of_all(tiny_model: Made) -> None:
    model = tiny_model()
    logits = torch.randn(1, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    best = logits[0].argmax()

    [one] = blend(model, logits, Decoding(residual_top_k=1))
    [all_tokens] = blend(model, logits, Decoding())

    alpha = alphas(model, all_tokens[None], logits.softmax(-1) @ model.embedding.weight[:40])
    assert torch.allclose(one, alpha * model.embedding.weight[best] + (1 - alpha) * model.embedding.weight[41])
    assert torch.allclose(blend(model, logits, Decoding(residual_top_k=40))[0], all_tokens)


def test_embeddings_are_those_that_are_read_not_the_head(tiny_model: Made) -> None:
    model = tiny_model(seed=1, is_tied=False)
    logits = torch.randn(2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    before = blend(model, logits, Decoding())

    kept = model.head.weight.data
    try:
        model.head.weight.data = torch.full_like(kept, torch.nan)
        after = blend(model, logits, Decoding())
    finally:
        model.head.weight.data = kept

    assert torch.equal(before, after)


def test_half_precision_gives_no_weight_beyond_1(tiny_model: Made) -> None:
    model = tiny_model(dtype=torch.bfloat16)
    probs = torch.full((1, 40), 1 / 40)

    assert torch.allclose(blend_probs(model, probs).float(), model.embedding.weight[:40].float().mean(0), atol=2e-2)
