"""From a folder of published weights to a `DiffusionModel`, and back.

Read are SDAR, Fast-dLLM v2, LLaDA (see `layouts`) and what `save_model` writes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reasonrt.diffusion.layouts import ARCHITECTURE, BEGINNINGS, DIFFUSION, OURS, Layout, read_json, read_layout
from reasonrt.diffusion.model import DiffusionModel
from reasonrt.diffusion.shape import ModelShape
from reasonrt.errors import ConfigError


def read_shape(folder: Path) -> ModelShape:
    """The shape of the diffusion model in `folder`; no weight is read.

    Raises:
        ConfigError: `config.json`, or what stands beside it, cannot be read or is of a model that cannot be run.
    """
    return read_layout(folder, DIFFUSION)[0]


def load_model(folder: Path, dtype: torch.dtype) -> DiffusionModel:
    """The diffusion model in `folder`, as published on Hugging Face or written by `save_model`, in main memory.

    Weights are read one by one into the model, which has type `dtype` from the start.

    Raises:
        ConfigError: as `read_shape`; or a weight is missing, left over, of another size, or cannot be read.
    """
    return _load(folder, dtype, *read_layout(folder, DIFFUSION))


def load_for_training(folder: Path, **trained_for: Any) -> DiffusionModel:
    """The weights in `folder`, in float32, as what a diffusion model with causal context begins with.

    They are an autoregressive Qwen3 model's or those of one that `save_model` wrote.

    Args:
        trained_for: fields of `ModelShape` that training decides, such as `mask_token_id` and `block_length`.

    Raises:
        ConfigError: as `load_model`.
    """
    shape, layout = read_layout(folder, BEGINNINGS)
    return _load(folder, torch.float32, replace(shape, context="causal", **trained_for), layout)


def save_model(model: DiffusionModel, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write weights and configuration; the tokenizer's files are added by who has them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = OURS.names
    weights = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in _named_weights(model, names)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shape = asdict(model.shape)
    config = {
        "architectures": [ARCHITECTURE],
        "model_type": "block_diffusion",
        **{keys[0]: shape[name] for name, keys in OURS.keys.items()},
        "eos_token_id": list(model.shape.end_token_ids),
        "dtype": str(dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class _Stored:
    """A weight in a file."""

    file: Path
    size: tuple[int, ...]
    dtype: str

    def read(self, name: str) -> Tensor:
        with safe_open(self.file, framework="pt") as weights:  # opened for each: what has been read leaves memory
            return weights.get_tensor(name)


def _load(folder: Path, dtype: torch.dtype, shape: ModelShape, layout: Layout) -> DiffusionModel:
    with torch.device("meta"):  # sizes alone: memory is taken once it is known that the weights fit
        model = DiffusionModel(shape)
    stored = _list_weights(folder)
    head = layout.names["head"] + ".weight"
    _check_weights(folder, stored, dict(_named_weights(model, layout.names)), head)
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty_like(weight, dtype=dtype, device="cpu")))
    model.to(dtype)  # what is no weight: the tables of rotary embeddings
    with torch.no_grad():
        for name, weight in _named_weights(model, layout.names):
            weight.copy_(stored[name].read(name))
    if shape.is_tied and head in stored and not torch.equal(stored[head].read(head).to(dtype), model.head.weight):
        raise ConfigError(
            f"{stored[head].file}: {head} is not the embedding table; say in config.json that it is untied"
        )
    return model


def _list_weights(folder: Path) -> dict[str, _Stored]:
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
        if not names or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{index} has no weight_map from weights to files; fetch it again")
    stored = {}
    for file in sorted(folder / name for name in names):
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118
                    part = weights.get_slice(name)
                    stored[name] = _Stored(file, tuple(part.get_shape()), part.get_dtype())
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{file}: {error}; weights must be in safetensors: fetch or convert them again") from None
    return stored


def _check_weights(folder: Path, stored: Mapping[str, _Stored], expected: Mapping[str, Tensor], head: str) -> None:
    missing = [name for name in expected if name not in stored]
    unexpected = [name for name in stored if name not in expected and name != head]
    if missing or unexpected:
        kind, names = ("lacks", missing) if missing else ("also has", unexpected)
        rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ConfigError(f"{folder} {kind} the weight {names[0]}{rest}, by config.json; fetch all its files again")
    for name, weight in expected.items():
        found = stored[name]
        if found.size != tuple(weight.shape):
            raise ConfigError(
                f"{found.file}: {name} has size {list(found.size)}, by config.json it has {list(weight.shape)}; "
                "both must be of the same model"
            )
        if found.dtype not in _DTYPES:
            raise ConfigError(f"{found.file}: {name} is {found.dtype}; give weights in one of {', '.join(_DTYPES)}")


_DTYPES = ("BF16", "F16", "F32", "F64")


def _named_weights(model: DiffusionModel, names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The weights of `model` as they are published; of what is one matrix here, the parts."""
    yield names["embedding"] + ".weight", model.embedding.weight
    yield names["norm"] + ".weight", model.norm
    if not model.shape.is_tied:
        yield names["head"] + ".weight", model.head.weight
    for index, layer in enumerate(model.layers):
        for part, weight in _layer_parts(layer, model.shape):
            name, ending = part.split(".")
            yield f"{names[name].format(index)}.{ending}", weight


def _layer_parts(layer: Any, shape: ModelShape) -> Iterator[tuple[str, Tensor]]:
    sizes = [shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.kv_heads * shape.head_dim]
    yield "attention_norm.weight", layer.attention_norm
    for part, weight in zip(("query", "key", "value"), layer.qkv.weight.split(sizes), strict=True):
        yield f"{part}.weight", weight
    if shape.has_qkv_bias:
        for part, bias in zip(("query", "key", "value"), layer.qkv.bias.split(sizes), strict=True):
            yield f"{part}.bias", bias
    if shape.has_qk_norm:
        yield "query_norm.weight", layer.query_norm
        yield "key_norm.weight", layer.key_norm
    yield "out.weight", layer.out.weight
    yield "mlp_norm.weight", layer.mlp_norm
    for part, weight in zip(("gate", "up"), layer.gate_up.weight.chunk(2), strict=True):
        yield f"{part}.weight", weight
    yield "down.weight", layer.down.weight
