"""What a diffusion model looks like and was trained for; without torch, so that policies may read it."""

from dataclasses import dataclass

CONTEXTS = ("block", "causal", "full")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a checkpoint says of its model.

    Attributes:
        vocab_size: rows of the embedding table, padding included.
        tokens: ids that can be written: the first so many rows, without the mask token.
        mask_token_id: what stands where no token has been committed.
        block_length: of the blocks that it was trained on, the longest.
        context: what a committed token attends to: `block`, its own block and those before it (SDAR), `causal`, what
            precedes it, `full`, everything, what is still masked included (LLaDA).
        is_shifted: whether the logits of a position predict the token after it (Fast-dLLM v2), not its own.
        is_residual: whether it was trained to read residual context.
        residual_weight: of what was expected, in residual context: a constant, or None: its entropy.
        end_token_ids: each ends a text.
    """

    hidden: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tokens: int
    max_positions: int
    mask_token_id: int
    block_length: int
    context: str = "block"
    is_shifted: bool = False
    is_residual: bool = False
    residual_weight: float | None = None
    is_tied: bool = True
    has_qk_norm: bool = True
    has_qkv_bias: bool = False
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    end_token_ids: tuple[int, ...] = ()
