"""How families of diffusion models are published: what their `config.json` says, and what their weights are called."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from reasonrt.diffusion.shape import CONTEXTS, ModelShape
from reasonrt.errors import ConfigError, shown

ARCHITECTURE = "BlockDiffusionForCausalLM"
"""Of the models that `checkpoints.save_model` writes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a family of models is published.

    Attributes:
        keys: fields of `ModelShape` to their keys in `config.json`; of several, the first that has a value counts.
        options: keys that change what the model computes to the values that can be run, None for no value.
        names: parts of the model to the names of their weights, without the ending.
        values: fields that no key gives, or not in every folder.
    """

    keys: Mapping[str, tuple[str, ...]]
    options: Mapping[str, tuple[Any, ...]]
    names: Mapping[str, str]
    values: Mapping[str, Any] = field(default_factory=dict)


_QWEN = Layout(
    keys={
        "hidden": ("hidden_size",),
        "layers": ("num_hidden_layers",),
        "mlp": ("intermediate_size",),
        "heads": ("num_attention_heads",),
        "kv_heads": ("num_key_value_heads", "num_attention_heads"),
        "head_dim": ("head_dim",),
        "vocab_size": ("vocab_size",),
        "tokens": ("vocab_size",),
        "max_positions": ("max_position_embeddings",),
        "rope_theta": ("rope_theta", "rope_parameters.rope_theta"),
        "norm_eps": ("rms_norm_eps",),
        "is_tied": ("tie_word_embeddings",),
        "mask_token_id": ("mask_token_id",),
        "block_length": ("block_size",),
    },
    options={
        "hidden_act": ("silu", None),
        "attention_bias": (False, None),
        "use_sliding_window": (False, None),
        "layer_types": ("full_attention", None),
        "rope_scaling.type": ("default", None),
        "rope_scaling.rope_type": ("default", None),
        "rope_parameters.rope_type": ("default", None),
        "quantization_config": (None,),
    },
    names={
        "embedding": "model.embed_tokens",
        "norm": "model.norm",
        "head": "lm_head",
        "attention_norm": "model.layers.{}.input_layernorm",
        "query": "model.layers.{}.self_attn.q_proj",
        "key": "model.layers.{}.self_attn.k_proj",
        "value": "model.layers.{}.self_attn.v_proj",
        "query_norm": "model.layers.{}.self_attn.q_norm",
        "key_norm": "model.layers.{}.self_attn.k_norm",
        "out": "model.layers.{}.self_attn.o_proj",
        "mlp_norm": "model.layers.{}.post_attention_layernorm",
        "gate": "model.layers.{}.mlp.gate_proj",
        "up": "model.layers.{}.mlp.up_proj",
        "down": "model.layers.{}.mlp.down_proj",
    },
)
OURS = replace(
    _QWEN,
    keys={
        **_QWEN.keys,
        "tokens": ("num_tokens", "vocab_size"),
        "context": ("context",),
        "is_shifted": ("token_shift",),
        "is_residual": ("residual_context",),
        "residual_weight": ("residual_weight",),
        "has_qk_norm": ("qk_norm",),
        "has_qkv_bias": ("qkv_bias",),
    },
    values={"is_shifted": False, "residual_weight": None, "has_qk_norm": True, "has_qkv_bias": False},
)
_LLADA = Layout(
    keys={
        "hidden": ("d_model",),
        "layers": ("n_layers",),
        "mlp": ("mlp_hidden_size",),
        "heads": ("n_heads",),
        "kv_heads": ("n_kv_heads", "n_heads"),
        "vocab_size": ("embedding_size", "vocab_size"),
        "tokens": ("vocab_size",),
        "max_positions": ("max_sequence_length",),
        "rope_theta": ("rope_theta",),
        "norm_eps": ("rms_norm_eps",),
        "is_tied": ("weight_tying",),
        "has_qkv_bias": ("include_qkv_bias",),
        "mask_token_id": ("mask_token_id",),
    },
    options={
        "block_type": ("llama",),
        "activation_type": ("silu",),
        "layer_norm_type": ("rms",),
        "rope": (True,),
        "alibi": (False, None),
        "include_bias": (False, None),
        "bias_for_layer_norm": (False, None),
        "attention_layer_norm": (False, None),
        "input_emb_norm": (False, None),
        "scale_logits": (False, None),
        "multi_query_attention": (False, None),
        "block_group_size": (1, None),
        "quantization_config": (None,),
    },
    names={
        "embedding": "model.transformer.wte",
        "norm": "model.transformer.ln_f",
        "head": "model.transformer.ff_out",
        "attention_norm": "model.transformer.blocks.{}.attn_norm",
        "query": "model.transformer.blocks.{}.q_proj",
        "key": "model.transformer.blocks.{}.k_proj",
        "value": "model.transformer.blocks.{}.v_proj",
        "out": "model.transformer.blocks.{}.attn_out",
        "mlp_norm": "model.transformer.blocks.{}.ff_norm",
        "gate": "model.transformer.blocks.{}.ff_proj",
        "up": "model.transformer.blocks.{}.up_proj",
        "down": "model.transformer.blocks.{}.ff_out",
    },
    # it knows no blocks: 32 is what it is decoded with where blocks are used (Fast-dLLM, 2505.22618)
    values={
        "mask_token_id": 126336,
        "block_length": 32,
        "context": "full",
        "has_qk_norm": False,
        "has_qkv_bias": False,
    },
)
DIFFUSION = {
    "SDARForCausalLM": replace(_QWEN, values={"mask_token_id": 151669, "block_length": 4}),
    "Fast_dLLM_QwenForCausalLM": replace(
        _QWEN,
        keys={**_QWEN.keys, "block_length": ("bd_size",)},
        values={
            "mask_token_id": 151665,
            "block_length": 32,
            "is_shifted": True,
            "has_qk_norm": False,
            "has_qkv_bias": True,
        },
    ),
    "LLaDAModelLM": _LLADA,
    ARCHITECTURE: OURS,
}
"""Families that write by diffusion. Where a folder does not say it, the mask token and the block are those that the
authors' own decoders use."""

BEGINNINGS = {"Qwen3ForCausalLM": replace(_QWEN, values={"mask_token_id": 0, "block_length": 1}), ARCHITECTURE: OURS}
"""Families whose weights a diffusion model of ours can be trained from."""


def read_layout(folder: Path, layouts: Mapping[str, Layout]) -> tuple[ModelShape, Layout]:
    """What `config.json` and the files beside it say of the model in `folder`, and how its weights are called.

    The tokens that can be written end where those of the tokenizer do, if there is one. What ends a text is said by
    `generation_config.json`, else by `config.json`.

    Args:
        layouts: those that will do, by architecture.

    Raises:
        ConfigError: a file cannot be read, or is of a model that cannot be run; the message names it and its key.
    """
    file = folder / "config.json"
    config = read_json(file)
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else named
    if not isinstance(architecture, str) or architecture not in layouts:
        raise ConfigError(f"{file}: architecture must be one of {', '.join(layouts)}, got {shown(architecture)}")
    layout = layouts[architecture]
    for key, allowed in layout.options.items():
        value = _value_of(config, key)
        if any(each not in allowed for each in (value if isinstance(value, list) else [value])):
            ways = " or ".join("absent" if way is None else json.dumps(way) for way in allowed)
            raise ConfigError(f"{file}: {key} is {shown(value)}; only models where it is {ways} can be run")
    values = dict(layout.values)
    for name, keys in layout.keys.items():
        found = [value for key in keys if (value := _value_of(config, key)) is not None]
        if found:
            values[name] = found[0]
        elif name not in values and name != "head_dim":
            raise ConfigError(f"{file} has no {keys[0]}; give the model's folder as it was published")
    hidden, heads = values["hidden"], values["heads"]
    are_sizes = isinstance(hidden, int) and isinstance(heads, int) and heads > 0
    values.setdefault("head_dim", hidden // heads if are_sizes else 0)
    shape = _validate(
        values, {name: name for name in values} | {name: keys[0] for name, keys in layout.keys.items()}, file
    )
    tokens = min(shape.tokens, _num_tokens(folder) or shape.tokens)
    return replace(shape, tokens=tokens, end_token_ids=_end_token_ids(folder, config)), layout


def _value_of(config: Mapping[str, Any], key: str) -> Any:
    """What stands under `key`, whose parts lead into each other; None where nothing does."""
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _end_token_ids(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    file = folder / "generation_config.json"
    ends = read_json(file).get("eos_token_id") if file.exists() else None
    if ends is None:
        file, ends = folder / "config.json", config.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(type(end) is int for end in listed):
        raise ConfigError(f"{file}: eos_token_id must be one or more whole numbers, got {shown(ends)}")
    return tuple(listed)


def _validate(values: Mapping[str, Any], keys: Mapping[str, str], file: Path) -> ModelShape:
    kinds = get_type_hints(ModelShape)
    for name, value in values.items():
        kind = kinds[name]
        if value is None and type(None) in get_args(kind):
            continue
        kind = next((part for part in get_args(kind) if part is not type(None)), kind)
        if type(value) is not kind and (type(value), kind) != (int, float):
            raise ConfigError(f"{file}: {keys[name]} must be {_KINDS[kind]}, got {shown(value)}")
        if kind in (int, float) and not value > 0 and name != "mask_token_id":
            raise ConfigError(f"{file}: {keys[name]} must be above 0, got {value}")
    shape = ModelShape(**values)
    rules = (
        (shape.context in CONTEXTS, f"context must be one of {', '.join(CONTEXTS)}, got {shown(shape.context)}"),
        (
            shape.residual_weight is None or shape.residual_weight <= 1,
            f"residual_weight must be at most 1, got {shape.residual_weight}",
        ),
        (shape.head_dim % 2 == 0, f"the dimensions of a head must be even in number, got {shape.head_dim}"),
        (
            shape.heads % shape.kv_heads == 0,
            f"{keys['heads']} {shape.heads} must be a multiple of {keys['kv_heads']} {shape.kv_heads}",
        ),
        (
            max(shape.tokens - 1, shape.mask_token_id) < shape.vocab_size and shape.mask_token_id >= 0,
            f"the embedding table has {shape.vocab_size} rows, too few for {shape.tokens} tokens "
            f"and the mask token {shape.mask_token_id}",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise ConfigError(f"{file}: {message}")
    return shape


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


def _num_tokens(folder: Path) -> int:
    """One more than the highest id that the tokenizer in `folder` knows, 0 without a tokenizer."""
    ids = [-1]
    for name, find in _TOKEN_IDS.items():
        file = folder / name
        if file.exists():
            try:
                ids += [int(token_id) for token_id in find(read_json(file))]
            except (AttributeError, KeyError, TypeError, ValueError):
                raise ConfigError(f"{file} is no file of a tokenizer; fetch it again") from None
    return max(ids) + 1


def _vocabulary(tokenizer: dict[str, Any]) -> Iterable[int]:
    vocabulary = tokenizer["model"]["vocab"]
    yield from vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))  # Unigram has a list
    yield from (token["id"] for token in tokenizer.get("added_tokens", ()))


_TOKEN_IDS: dict[str, Callable[[dict[str, Any]], Iterable[Any]]] = {
    "tokenizer.json": _vocabulary,
    "vocab.json": dict.values,
    "added_tokens.json": dict.values,
    "tokenizer_config.json": lambda config: config.get("added_tokens_decoder", {}),
}
"""Where a tokenizer keeps the ids of its tokens: added ones may stand in any of these."""


def read_json(file: Path) -> dict[str, Any]:
    """The object in `file`.

    Raises:
        ConfigError: it cannot be read or holds something else.
    """
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no JSON"
        raise ConfigError(f"{file}: {reason}; give a folder with a model as published on Hugging Face") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file} must hold keys and values, it holds {shown(found)}")
    return found
