"""What vLLM is told: by default eager on CPUs and compiled on GPUs, and forked only where CUDA survives it."""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest

from reasonrt.engines.vllm_settings import VllmSettings, engine_arguments, start_environment


@pytest.mark.parametrize(
    ("chosen", "on_cpu", "is_eager"),
    [(None, True, True), (None, False, False), (True, True, False), (False, False, True)],
)
def test_compiled_as_chosen_else_on_gpus(nano_draft: Path, chosen: bool | None, on_cpu: bool, is_eager: bool) -> None:
    arguments = engine_arguments(nano_draft, VllmSettings(compile=chosen), on_cpu)

    assert arguments["enforce_eager"] is is_eager


def test_cores_are_told_on_cpus_alone(nano_draft: Path) -> None:
    settings = VllmSettings(cores="1")

    assert start_environment(settings, on_cpu=True) == {"VLLM_CPU_OMP_THREADS_BIND": "1"}
    assert "VLLM_CPU_OMP_THREADS_BIND" not in start_environment(settings, on_cpu=False)


@pytest.mark.parametrize(
    ("result", "expected"),
    [(3, {}), (0, {"VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn"})],  # 3: CUDA_ERROR_NOT_INITIALIZED
)
def test_forked_unless_cuda_is_in_use(monkeypatch: pytest.MonkeyPatch, result: int, expected: dict[str, str]) -> None:
    driver = SimpleNamespace(cuDeviceGetCount=lambda count: result)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)

    assert start_environment(VllmSettings(), on_cpu=False) == expected


def test_forked_where_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)

    assert start_environment(VllmSettings(), on_cpu=False) == {}
