"""From a folder of published weights to a `DiffusionModel`, and back.

Three layouts are read: Qwen3's, as SDAR publishes it; Qwen2's, as Fast-dLLM v2 does; and LLaDA's own.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reasonrt.diffusion.model import DiffusionModel
from reasonrt.diffusion.shape import ModelShape

ARCHITECTURE = "BlockDiffusionForCausalLM"
"""Of the models that ship: SDAR's layout, whose `config.json` says what they were trained for as well."""


def load_model(folder: Path, dtype: torch.dtype) -> DiffusionModel:
    """The model in `folder`."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    model = DiffusionModel(_shape_of(config, config["vocab_size"]))
    fill_from_qwen(model, weights)
    return model.to(dtype)


def read_shape(folder: Path) -> ModelShape:
    """What `config.json` in `folder` says of its model."""
    config = json.loads((folder / "config.json").read_text())
    return _shape_of(config, config["vocab_size"])


def _shape_of(config: dict[str, Any], tokens: int) -> ModelShape:
    ends = config.get("eos_token_id")
    rope = config.get("rope_parameters") or {}
    return ModelShape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        mlp=config["intermediate_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        vocab_size=config["vocab_size"],
        tokens=tokens,
        max_positions=config["max_position_embeddings"],
        mask_token_id=config.get("mask_token_id", 0),
        block_length=config.get("block_size", 4),
        context=config.get("context", "block"),
        is_residual=config.get("residual_context", False),
        is_tied=config["tie_word_embeddings"],
        rope_theta=config.get("rope_theta") or rope.get("rope_theta", 10000.0),
        norm_eps=config["rms_norm_eps"],
        end_token_ids=tuple(ends) if isinstance(ends, list) else (ends,),
    )


def save_model(model: DiffusionModel, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write weights and configuration in Qwen3's layout."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in _qwen_names(model)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_to_config(model.shape, dtype), indent=2) + "\n")


def _qwen_names(model: DiffusionModel) -> Iterator[tuple[str, Tensor]]:
    shape = model.shape
    yield "model.embed_tokens.weight", model.embedding.weight
    yield "model.norm.weight", model.norm
    if not shape.is_tied:
        yield "lm_head.weight", model.head.weight
    sizes = [shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.kv_heads * shape.head_dim]
    for index, layer in enumerate(model.layers):
        name = f"model.layers.{index}."
        yield name + "input_layernorm.weight", layer.attention_norm
        yield name + "post_attention_layernorm.weight", layer.mlp_norm
        if shape.has_qk_norm:
            yield name + "self_attn.q_norm.weight", layer.query_norm
            yield name + "self_attn.k_norm.weight", layer.key_norm
        for part, weight in zip("qkv", layer.qkv.weight.split(sizes), strict=True):
            yield name + f"self_attn.{part}_proj.weight", weight
        if shape.has_qkv_bias:
            for part, bias in zip("qkv", layer.qkv.bias.split(sizes), strict=True):
                yield name + f"self_attn.{part}_proj.bias", bias
        yield name + "self_attn.o_proj.weight", layer.out.weight
        for part, weight in zip(("gate", "up"), layer.gate_up.weight.chunk(2), strict=True):
            yield name + f"mlp.{part}_proj.weight", weight
        yield name + "mlp.down_proj.weight", layer.down.weight


def fill_from_qwen(model: DiffusionModel, weights: dict[str, Tensor]) -> None:
    """Copy weights with Qwen's names into `model`.

    Raises:
        KeyError: the name of a weight that is missing.
        RuntimeError: one has another size.
    """
    with torch.no_grad():
        for name, weight in _qwen_names(model):
            weight.copy_(weights[name])


def _to_config(shape: ModelShape, dtype: torch.dtype) -> dict[str, Any]:
    ends = list(shape.end_token_ids)
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "block_diffusion",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.is_tied,
        "attention_bias": shape.has_qkv_bias,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "mask_token_id": shape.mask_token_id,
        "block_size": shape.block_length,
        "context": shape.context,
        "residual_context": shape.is_residual,
        "dtype": str(dtype).removeprefix("torch."),
    }
