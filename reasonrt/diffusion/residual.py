"""Residual context: what a pass expected at a masked position, as the embedding that the next pass reads there.

Residual Context Diffusion (2601.22954, sections 3.1 to 3.3): e = (1 - alpha) E[mask] + alpha p E, where p is the
prediction and alpha its entropy, normalized to [0, 1]. Entropy says least where a prediction is nearly sure, which is
what the positions beside it would have most use of: a model can be trained with a constant alpha instead, as for
self-conditioning (Analog Bits, 2208.04202).
"""

import math

import torch
from torch import Tensor

from reasonrt.diffusion.decoding import Decoding
from reasonrt.diffusion.model import DiffusionModel
from reasonrt.diffusion.sampling import entropy


def blend(model: DiffusionModel, logits: Tensor, decoding: Decoding) -> Tensor:
    """Embeddings [rows, hidden] for masked positions, from the logits [rows, tokens] of the last pass there."""
    probs = logits.softmax(-1)
    scaled = probs if decoding.residual_temperature == 1 else (logits / decoding.residual_temperature).softmax(-1)
    expected = scaled if decoding.residual_scaled else probs
    return blend_probs(model, expected, scaled, decoding.residual_weight, decoding.residual_top_k)


def blend_probs(
    model: DiffusionModel, expected: Tensor, weighing: Tensor, weight: float | None = None, top_k: int | None = None
) -> Tensor:
    """The same from distributions [rows, tokens]: of the one embeddings are expected, of the other entropy is taken.

    Args:
        weight: in the place of the entropy.
    """
    table = model.embedding.weight
    if top_k is None or top_k >= model.shape.tokens:
        mean = expected.to(table.dtype) @ table[: model.shape.tokens]
    else:
        top = expected.topk(top_k, dim=-1)
        shares = top.values / top.values.sum(-1, keepdim=True)
        mean = torch.einsum("rk,rkd->rd", shares.to(table.dtype), table[top.indices])
    mask = table[model.shape.mask_token_id]
    if weight is not None:
        return weight * mean + (1 - weight) * mask
    # the log of the true number of tokens: the padding of a table would make every weight too small
    alpha = entropy(weighing).unsqueeze(-1) / math.log(model.shape.tokens)
    alpha = alpha.clamp(0, 1).to(table.dtype)  # rounding may lead beyond
    return alpha * mean + (1 - alpha) * mask
