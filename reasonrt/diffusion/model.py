"""The transformer of a diffusion model: embeddings to hidden states, and hidden states to logits.

One body for all who run it. What differs between training, decoding and the reference is only what a position may
attend to, so attention is handed in: a function that gets the queries, keys and values of one layer.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reasonrt.diffusion.shape import ModelShape

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""`(layer, queries [..., heads, head_dim], keys [..., kv_heads, head_dim], values) -> mixed values`, as the queries."""


def attend_among_rows(limits: Tensor) -> Attend:
    """Attention without a cache: the rows are the whole sequence, row i attends to those before `limits[i]`."""
    mask = torch.arange(len(limits), device=limits.device) < limits[:, None]

    def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        queries, keys, values = (heads.transpose(0, 1) for heads in (queries, keys, values))  # [heads, rows, dim]
        return nn.functional.scaled_dot_product_attention(queries, keys, values, mask, enable_gqa=True).transpose(0, 1)

    return attend


class DiffusionModel(nn.Module):  # type: ignore[misc]
    """Qwen3's decoder, and what SDAR, Fast-dLLM v2 (Qwen2: biases, no norms of queries) and LLaDA share with it."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab_size, shape.hidden)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        self.head = self.embedding if shape.is_tied else nn.Embedding(shape.vocab_size, shape.hidden)
        exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float64, device="cpu") / shape.head_dim
        positions = torch.arange(shape.max_positions, dtype=torch.float64, device="cpu")  # not meta, as weights may be
        angles = torch.outer(positions, shape.rope_theta**-exponents)
        self.register_buffer("cos", angles.cos().to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("sin", angles.sin().to(torch.get_default_dtype()), persistent=False)

    def forward(self, embeds: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        """Hidden states [..., hidden] after the last norm, for embeddings [..., hidden] at positions [...].

        Args:
            embeds: of all rows.
            positions: of all rows.
            attend: how the rows see each other.
            wanted: [wanted] rows whose hidden states are returned, of embeddings [rows, hidden]; None: all. Of the
                others the last layer makes keys and values only.
        """
        cos, sin = self.cos[positions].unsqueeze(-2), self.sin[positions].unsqueeze(-2)
        hidden = embeds
        for index, layer in enumerate(self.layers):
            mixed = attend(index, *layer.project(hidden, cos, sin))
            if wanted is not None and index == len(self.layers) - 1:
                hidden, mixed = hidden[wanted], mixed[wanted]
            hidden = layer.mix(hidden, mixed)
        return nn.functional.rms_norm(hidden, (self.shape.hidden,), self.norm, self.shape.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., tokens], in fp32 or better: the mask token's is -inf, the padding of the table has none."""
        shape = self.shape
        logits = nn.functional.linear(hidden, self.head.weight[: shape.tokens])
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if shape.mask_token_id < shape.tokens:
            logits[..., shape.mask_token_id] = -torch.inf
        return logits


class _Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.attention_norm = nn.Parameter(torch.ones(shape.hidden))
        self.qkv = nn.Linear(shape.hidden, queries + 2 * keys, bias=shape.has_qkv_bias)
        self.out = nn.Linear(queries, shape.hidden, bias=False)
        if shape.has_qk_norm:
            self.query_norm = nn.Parameter(torch.ones(shape.head_dim))
            self.key_norm = nn.Parameter(torch.ones(shape.head_dim))
        self.mlp_norm = nn.Parameter(torch.ones(shape.hidden))
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.mlp, bias=False)
        self.down = nn.Linear(shape.mlp, shape.hidden, bias=False)

    def project(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [..., heads, head_dim], keys and values [..., kv_heads, head_dim] of one layer."""
        shape = self.shape
        normed = nn.functional.rms_norm(hidden, (shape.hidden,), self.attention_norm, shape.norm_eps)
        heads = self.qkv(normed).unflatten(-1, (-1, shape.head_dim))
        asked, values = heads.split([shape.heads + shape.kv_heads, shape.kv_heads], dim=-2)  # queries with keys
        if shape.has_qk_norm:
            weight = torch.cat((self.query_norm.expand(shape.heads, -1), self.key_norm.expand(shape.kv_heads, -1)))
            asked = nn.functional.rms_norm(asked, (shape.head_dim,), None, shape.norm_eps) * weight
        queries, keys = _rotate(asked, cos, sin).split([shape.heads, shape.kv_heads], dim=-2)
        return queries, keys, values

    def mix(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output [..., hidden], from its input and what attention has mixed [..., heads, head_dim]."""
        shape = self.shape
        hidden = hidden + self.out(mixed.flatten(-2))
        normed = nn.functional.rms_norm(hidden, (shape.hidden,), self.mlp_norm, shape.norm_eps)
        gate, up = self.gate_up(normed).chunk(2, dim=-1)
        return hidden + self.down(nn.functional.silu(gate) * up)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, halves as pairs (Qwen, Llama)."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
