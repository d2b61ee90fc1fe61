"""A wider model that computes the same: what a small one says, at the cost of a large one.

Every vector of the network is held `factor` times, one copy after the other, so heads and their keys and values are
repeated whole. A matrix adds up what its copies of the input give; it weights them by powers of two that sum to one
(1/2, 1/4, 1/4 for three), so that no weight is rounded, whatever the factor and the number format.

Source: HyperCloning, Samragh et al. (2024), arXiv 2409.12903, section 3; the uneven weights are ours.
"""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from reasonrt.config import model_folder
from reasonrt.engines.fingerprint import FUNCTION_OF, model_fingerprint
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.errors import ConfigError

MAX_FACTOR = 64

_ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM")
_WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
_EMBEDDING = re.compile(r"model\.embed_tokens\.weight|lm_head\.weight")
_MATRIX = re.compile(r"model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj\.weight")
_VECTOR = re.compile(r"model\.layers\.\d+\.((input|post_attention)_layernorm\.weight|self_attn\.[qkvo]_proj\.bias)")
_PER_HEAD = re.compile(r"model\.layers\.\d+\.self_attn\.[qk]_norm\.weight")
_LAST_NORM = re.compile(r"model\.norm\.weight")


def inflated(model: str, factor: int, cache_folder: Path) -> Path:
    """The folder of `model` made `factor` times as wide: found in `cache_folder`, or made there once.

    Args:
        model: as in a configuration, a folder or zoo:NAME.
        factor: 1 is the model itself.

    Raises:
        ConfigError: as `inflate`, or the cache cannot be written.
    """
    source = model_folder(model)
    if factor == 1:
        return source
    target = cache_folder / f"{source.name}-x{factor}-{_fingerprint(source)[:16]}"
    if target.is_dir():
        return target
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=cache_folder) as folder:
            inflate(source, Path(folder) / "model", factor)
            (Path(folder) / "model").rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process was faster
            raise ConfigError(f"cannot write {target}: {error.strerror}; set XDG_CACHE_HOME to where it fits") from None
    return target


def inflate(source: Path, out: Path, factor: int) -> None:
    """Write the model in `source`, `factor` times as wide, to the new folder `out`.

    It names `source` in its config.json as the model whose function it has.

    Raises:
        ConfigError: the factor is no whole number in [2, 64], or the model is none that we know to widen.
    """
    if type(factor) is not int or not 2 <= factor <= MAX_FACTOR:
        raise ConfigError(f"a model is inflated by a whole number in [2, {MAX_FACTOR}], got {factor!r}")
    config = json.loads((source / "config.json").read_bytes())
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in _ARCHITECTURES or "quantization_config" in config:
        kind = f"a quantized {architecture}" if "quantization_config" in config else architecture
        raise ConfigError(f"{source} holds {kind}; only {' and '.join(_ARCHITECTURES)} in plain weights are inflated")
    weights = sorted(source.glob("*.safetensors"))
    if not weights:
        raise ConfigError(f"{source} holds no *.safetensors to inflate; save the model in that format")
    wider = {width: config[width] * factor for width in _WIDTHS} | {FUNCTION_OF: _fingerprint(source)}
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("config.json", "*.safetensors", "*.bin"))
    (out / "config.json").write_text(json.dumps(config | wider, indent=2) + "\n")
    for file in weights:
        _inflate_file(file, out / file.name, factor)


def _fingerprint(folder: Path) -> str:
    return model_fingerprint(folder, HFTokenizer(folder).fingerprint)


def _inflate_file(source: Path, out: Path, factor: int) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(source)
    shares = _shares(factor)
    for name in list(tensors):
        tensors[name] = _inflate_tensor(name, tensors[name], shares)
    save_file(tensors, out, {"format": "pt"})


def _inflate_tensor(name: str, tensor: Any, shares: list[float]) -> Any:
    import torch

    if _PER_HEAD.fullmatch(name):
        return tensor
    if _EMBEDDING.fullmatch(name) or _VECTOR.fullmatch(name):
        return torch.cat([tensor] * len(shares), -1)
    # the shares of the output matrix stand in the norm before it: it may be the embedding as well
    if _LAST_NORM.fullmatch(name):
        return torch.cat([tensor * share for share in shares], -1)
    if _MATRIX.fullmatch(name):
        return torch.cat([tensor * share for share in shares], -1).repeat(len(shares), 1)
    raise ConfigError(f"nobody has said how to inflate the tensor {name}; only plain Qwen2 and Qwen3 models are known")


def _shares(factor: int) -> list[float]:
    """So many powers of two that sum to one, as even as can be."""
    shares = [1.0]
    while len(shares) < factor:
        shares = [*shares[1:], shares[0] / 2, shares[0] / 2]
    return shares
