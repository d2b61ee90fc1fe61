"""The GPUs and the models that a roofline can be drawn for, by name."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonrt.errors import ConfigError, shown

VALUE_BYTES = 2
"""Of a weight, a key or a value: everything is bf16."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """Peak figures of one GPU.

    Attributes:
        bandwidth: of its memory, bytes/s.
        flops: dense bf16 operations/s, accumulated in fp32.
        memory_bytes: of its memory.
    """

    name: str
    bandwidth: float
    flops: float
    memory_bytes: float

    @property
    def ridge_rows(self) -> float:
        """Rows of a pass from which a matrix of bf16 weights takes longer to compute than to read."""
        return self.flops / self.bandwidth * VALUE_BYTES / 2  # each weight is 2 operations a row


# dense figures: where a data sheet gives them with sparsity, half of that
GPUS = {
    gpu.name: gpu
    for gpu in (
        # NVIDIA A100 data sheet (2021): 80GB SXM
        Gpu("A100-80G", 2.039e12, 312e12, 80e9),
        # NVIDIA H100 data sheet: H100 SXM, 1,979 TFLOPS with sparsity
        Gpu("H100-SXM", 3.35e12, 989.5e12, 80e9),
        # NVIDIA H200 data sheet: H200 SXM, 1,979 TFLOPS with sparsity
        Gpu("H200", 4.8e12, 989.5e12, 141e9),
        # NVIDIA DGX B200 data sheet, an eighth of it: 64 TB/s, 1,440 GB; Blackwell brief: HGX B200, 2.25 PFLOPS
        Gpu("B200", 8.0e12, 2250e12, 180e9),
        # NVIDIA L40S data sheet: 362.05 TFLOPS, 733 with sparsity
        Gpu("L40S", 0.864e12, 362.05e12, 48e9),
        # NVIDIA Ada architecture white paper, appendix A: bf16 with fp32 accumulation
        Gpu("RTX-4090", 1.008e12, 165.2e12, 24e9),
        # AMD Instinct MI300X data sheet: 1,307.4 TFLOPS
        Gpu("MI300X", 5.3e12, 1307.4e12, 192e9),
    )
}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What of a dense transformer decides what a pass reads and computes; three matrices an MLP."""

    name: str
    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    is_tied: bool

    @property
    def body_weights(self) -> int:
        """Those of all layers; norms and biases left out."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def head_weights(self) -> int:
        """Those of the LM head, and as many of the input embeddings."""
        return self.vocab_size * self.hidden

    @property
    def weight_bytes(self) -> int:
        return VALUE_BYTES * (self.body_weights + (1 if self.is_tied else 2) * self.head_weights)

    @property
    def kv_bytes(self) -> int:
        """Of the keys and values of one token."""
        return VALUE_BYTES * 2 * self.layers * self.kv_heads * self.head_dim


# the config.json of each model
MODELS = {
    size.name: size
    for size in (
        ModelSize("Qwen3-0.6B", 28, 1024, 3072, 16, 8, 128, 151936, is_tied=True),
        ModelSize("Qwen3-1.7B", 28, 2048, 6144, 16, 8, 128, 151936, is_tied=True),
        ModelSize("Qwen3-4B", 36, 2560, 9728, 32, 8, 128, 151936, is_tied=True),
        ModelSize("Qwen3-8B", 36, 4096, 12288, 32, 8, 128, 151936, is_tied=False),
        ModelSize("Qwen3-14B", 40, 5120, 17408, 40, 8, 128, 151936, is_tied=False),
        ModelSize("Qwen3-32B", 64, 5120, 25600, 64, 8, 128, 151936, is_tied=False),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name in `GPUS`; case, spaces and dashes do not count.

    Raises:
        ConfigError: there is none.
    """
    found = {_plain(known): gpu for known, gpu in GPUS.items()}.get(_plain(name))
    if found is None:
        raise ConfigError(f"unknown GPU {shown(name)}; there are {', '.join(GPUS)}")
    return found


def find_model(name: str) -> ModelSize:
    """The model of that name in `MODELS`, or the one whose config.json lies in the folder of that name.

    Raises:
        ConfigError: there is neither, or the file does not describe a dense transformer.
    """
    if found := {_plain(known): size for known, size in MODELS.items()}.get(_plain(name)):
        return found
    file = Path(name) / "config.json"
    if not file.is_file():
        raise ConfigError(
            f"unknown model {shown(name)}; there are {', '.join(MODELS)}, or give a folder with config.json"
        )
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError):
        raise ConfigError(f"{file} is no JSON that can be read; give a folder with a model's config.json") from None
    return _size_of(config if isinstance(config, dict) else {}, file)


def _size_of(config: dict[str, Any], file: Path) -> ModelSize:
    if config.get("num_experts") or config.get("num_local_experts"):
        raise ConfigError(f"{file} is of a mixture of experts; only dense models can be planned")

    def read(key: str, default: int | None = None) -> int:
        value = config.get(key) or default
        if type(value) is not int or value < 1:
            raise ConfigError(f"{file}: {key} must be a positive whole number, got {str(config.get(key))[:40]}")
        return value

    hidden, heads = read("hidden_size"), read("num_attention_heads")
    return ModelSize(
        name=file.parent.resolve().name,
        layers=read("num_hidden_layers"),
        hidden=hidden,
        mlp=read("intermediate_size"),
        heads=heads,
        kv_heads=read("num_key_value_heads", heads),
        head_dim=read("head_dim", math.ceil(hidden / heads)),
        vocab_size=read("vocab_size"),
        is_tied=bool(config.get("tie_word_embeddings", False)),
    )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum() or letter == ".")
