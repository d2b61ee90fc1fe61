"""Residual context: what a pass expected at a masked position, as the embedding that the next pass reads there.

Residual Context Diffusion (2601.22954, sections 3.1 to 3.3): e = (1 - alpha) E[mask] + alpha p E, where p is the
prediction and alpha its entropy, normalized to [0, 1]. Entropy says least where a prediction is nearly sure, which is
what the positions beside it would have most use of: a model can be trained with a constant alpha instead, as for
self-conditioning (Analog Bits, 2208.04202).
"""

import math

from torch import Tensor

from reasonrt.diffusion.decoding import Decoding
from reasonrt.diffusion.model import DiffusionModel
from reasonrt.diffusion.sampling import entropy
from reasonrt.kernels.expected_embedding import expected_embedding, expected_embedding_top
from reasonrt.kernels.online import RowStats
from reasonrt.kernels.row_stats import row_stats


def blend(
    model: DiffusionModel, stats: RowStats, logits: Tensor | None, decoding: Decoding, rows: Tensor | None = None
) -> Tensor:
    """Embeddings [rows, hidden] for masked positions, from what the last pass predicted there.

    Args:
        stats: with at least `num_expected` of the most probable tokens.
        logits: of the same rows, [any, tokens]; None where `needs_logits` says that they are not read.
        rows: [rows] int64, those of the masked positions; None: all.
    """
    return _mix(model, *expect(model, stats, logits, decoding, rows), decoding.residual_weight)


def expect(
    model: DiffusionModel, stats: RowStats, logits: Tensor | None, decoding: Decoding, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `blend` mixes: the expected embeddings [rows, hidden], and the entropies [rows] in nats that weight them."""
    table, temperature = model.embedding.weight[: model.shape.tokens], decoding.residual_temperature
    top_k = num_expected(model, decoding)
    scaled = stats
    if temperature != 1:
        assert logits is not None  # noqa: S101 - for the type checker
        scaled = row_stats(logits, temperature=temperature, top_k=top_k if decoding.residual_scaled else 0)
    expected = scaled if decoding.residual_scaled else stats
    if top_k:
        top = expected if rows is None else expected.at(rows)
        mean = expected_embedding_top(top.top_logprobs[:, :top_k], top.top_ids[:, :top_k], table)
    else:
        assert logits is not None  # noqa: S101 - for the type checker
        heat = temperature if decoding.residual_scaled else 1.0
        mean = expected_embedding(logits, expected.lse, table, rows, temperature=heat)
    return mean, scaled.entropy if rows is None else scaled.entropy[rows]


def needs_logits(decoding: Decoding) -> bool:
    """Whether residual context is made from whole rows of logits."""
    return bool(decoding.residual) and not (decoding.residual_top_k and decoding.residual_temperature == 1)


def num_expected(model: DiffusionModel, decoding: Decoding) -> int:
    """Of how many of the most probable tokens embeddings are expected; 0: of all, or none is."""
    return min(decoding.residual_top_k or 0, model.shape.tokens) if decoding.residual else 0


def blend_probs(model: DiffusionModel, probs: Tensor, weight: float | None = None) -> Tensor:
    """The same from distributions [rows, tokens], over all tokens."""
    table = model.embedding.weight[: model.shape.tokens]
    return _mix(model, probs.to(table.dtype) @ table, entropy(probs), weight)


def _mix(model: DiffusionModel, mean: Tensor, entropies: Tensor, weight: float | None) -> Tensor:
    mask = model.embedding.weight[model.shape.mask_token_id]
    if weight is not None:
        return weight * mean + (1 - weight) * mask
    # the log of the true number of tokens: the padding of a table would make every weight too small
    alpha = (entropies / math.log(model.shape.tokens)).unsqueeze(-1).clamp(0, 1)  # rounding may lead beyond
    alpha = alpha.to(mean.dtype)
    return alpha * mean + (1 - alpha) * mask
