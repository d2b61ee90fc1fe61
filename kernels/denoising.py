"""What a denoising pass predicts at the positions of its blocks, and what becomes of them, for `denoise_update`."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a pass predicts at R positions of B blocks; the rows come block after block, from the left.

    Attributes:
        tokens: [R] int64, drawn, or the most probable ones.
        confidences: [R] float32 or float64, their probabilities, unscaled; no NaN.
        is_open: [R] bool, whether the position is masked and needed; the others are left as they are.
        slots: [R] int64, where the position is among those of the canvas; no two open rows have the same.
        starts: [B + 1] int64, ascending from 0 to R: the rows of block b are those from starts[b] to starts[b + 1].
    """

    tokens: Tensor
    confidences: Tensor
    is_open: Tensor
    slots: Tensor
    starts: Tensor


@dataclass(frozen=True, slots=True)
class Residual:
    """What positions that stay masked read: alpha * expected + (1 - alpha) * mask (Residual Context Diffusion).

    Attributes:
        expected: [R, D], of `expected_embedding`, of the dtype of the other embeddings.
        entropies: [R] float32 or float64, in nats; alpha is the entropy normalized by log `num_tokens`, within [0, 1].
        num_tokens: how many tokens can be predicted, >= 2.
        weight: alpha, in the place of the entropy; in [0, 1].
        mask: [D], the embedding of the mask token.
        embeds: [S, D], by slot; written to.
    """

    expected: Tensor
    entropies: Tensor
    num_tokens: int
    mask: Tensor
    embeds: Tensor
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """What became of the rows, and of the blocks.

    Attributes:
        is_committed: [R] bool, whether the token is in the canvas now.
        is_open: [R] bool, as in `Predicted`, for the next pass: masked, and before the first end of the text.
        is_done: [B] bool, whether no row of the block is open any more.
    """

    is_committed: Tensor
    is_open: Tensor
    is_done: Tensor
