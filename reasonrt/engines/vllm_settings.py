"""How vLLM is to run, as plain values: known without importing it."""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """How one model runs.

    Attributes:
        max_model_len: prompt and generation together, tokens.
        max_num_seqs: generations that run at once; more wait.
        kv_cache_mib: memory of the key-value cache; None lets a GPU take what `gpu_share` leaves.
        gpu_share: of one GPU's memory, weights included.
        block_size: prefix-cache granularity, tokens; None is 32 on CPUs and 16 on GPUs.
        cores: CPU cores of this engine's threads, such as "0" or "0-1"; None takes all.
        niceness: 0 to 19, of this engine's threads on CPUs. Where engines share cores, the small one should give way:
            a thread that waits for its core holds up all the others of its engine.
        dtype: of weights and activations; None is bfloat16, but float32 on CPUs that have no instructions for it.
        compile: torch.compile and CUDA graphs: a slow start, a faster step.
        tensor_parallel: GPUs that the model is spread over.
        scores: the model has a scalar head; it answers `score` and generates nothing.
        speculative: vLLM's own speculation, token by token, as its `speculative_config` takes it: {"method": "ngram",
            "num_speculative_tokens": 4, "prompt_lookup_max": 4}, or {"method": "draft_model", "model": a folder,
            "num_speculative_tokens": 4}.
    """

    max_model_len: int = 1024
    max_num_seqs: int = 64
    kv_cache_mib: int | None = 256
    gpu_share: float = 0.45
    block_size: int | None = None
    cores: str | None = None
    niceness: int = 0
    dtype: str | None = None
    compile: bool = False
    tensor_parallel: int = 1
    scores: bool = False
    speculative: dict[str, Any] | None = None


@cache
def cpu_dtype() -> str:
    """The format in which this machine's CPUs multiply matrices fastest."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # no Linux: Apple's cores have it
        return "bfloat16"
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


@cache
def score_task(model: Path) -> str:
    """What vLLM calls reading the scalar of this scoring model."""
    architectures = json.loads((model / "config.json").read_text()).get("architectures") or [""]
    return "token_classify" if architectures[0].endswith("RewardModel") else "classify"


def pooling_settings(model: Path) -> dict[str, Any]:
    """vLLM's settings for a scoring model."""
    if score_task(model) == "classify":
        return {"runner": "pooling", "convert": "classify"}
    # a process reward model scores every token; by default vLLM picks those of a tag, and miscounts behind a cache
    return {"runner": "pooling", "pooler_config": {"tok_pooling_type": "ALL"}}


def quiet_vllm() -> None:
    """Keep vLLM's start-up chatter out of our output unless its level was chosen."""
    for variable, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TORCH_LOGS": "-torch._library.triton",  # its absence is meant on CPUs
        "PYTHONWARNINGS": "ignore",  # of vLLM's processes; this one has read it already
    }.items():
        os.environ.setdefault(variable, value)
