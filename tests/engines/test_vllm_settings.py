"""What vLLM is told: by default eager on CPUs and compiled on GPUs, in processes that end with this one."""

from pathlib import Path

import pytest

from reasonrt.engines.orphans import owned_environment, owned_folder
from reasonrt.engines.vllm_settings import ONE_PROCESS, VllmSettings, engine_arguments, start_environment


@pytest.mark.parametrize(
    ("chosen", "on_cpu", "is_eager"),
    [(None, True, True), (None, False, False), (True, True, False), (False, False, True)],
)
def test_compiled_as_chosen_else_on_gpus(nano_draft: Path, chosen: bool | None, on_cpu: bool, is_eager: bool) -> None:
    arguments = engine_arguments(nano_draft, VllmSettings(compile=chosen), on_cpu)

    assert arguments["enforce_eager"] is is_eager


def test_cores_are_told_on_cpus_alone(nano_draft: Path) -> None:
    settings = VllmSettings(cores="1")

    assert start_environment(settings, on_cpu=True)["VLLM_CPU_OMP_THREADS_BIND"] == "1"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in start_environment(settings, on_cpu=False)


@pytest.mark.parametrize(
    ("cores", "places"), [("1", "1"), ("0,1", "0 1"), ("0-3,8", "0 1 2 3 8"), ("4-7,0-1", "4 5 6 7 0 1")]
)
def test_an_engine_on_cpus_is_one_process_with_a_thread_for_each_core(
    nano_draft: Path, cores: str, places: str
) -> None:
    settings = VllmSettings(cores=cores)

    environment = start_environment(settings, on_cpu=True)
    assert engine_arguments(nano_draft, settings, True)["distributed_executor_backend"] == ONE_PROCESS
    assert environment["OMP_NUM_THREADS"] == str(len(places.split()))
    assert environment["GOMP_CPU_AFFINITY"] == places
    assert start_environment(settings, True, [9, 8])["GOMP_CPU_AFFINITY"] == "9 8"


@pytest.mark.parametrize(("settings", "on_cpu"), [(VllmSettings(), False), (VllmSettings(tensor_parallel=2), True)])
def test_where_it_is_not_vllm_chooses_the_processes(nano_draft: Path, settings: VllmSettings, on_cpu: bool) -> None:
    assert engine_arguments(nano_draft, settings, on_cpu)["distributed_executor_backend"] is None
    assert "GOMP_CPU_AFFINITY" not in start_environment(settings, on_cpu)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_processes_are_spawned_and_say_whom_they_work_for(on_cpu: bool) -> None:
    """What is forked has the environment that this process was started with, and would outlive it."""
    environment = start_environment(VllmSettings(), on_cpu)

    assert environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert environment.items() >= owned_environment().items()
    assert environment["VLLM_RPC_BASE_PATH"] == environment["TMPDIR"] == str(owned_folder())
    assert str(owned_folder()) not in environment["TORCHINDUCTOR_CACHE_DIR"]
