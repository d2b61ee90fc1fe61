"""Every kernel fits every target, as it takes most there: compiled, without a device, in two processes.

All builds are compiled by `reasonrt bench kernels --compile`.
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from reasonrt.benches.kernels import failures

_CODE = """
import json, sys
from reasonrt.benches.kernels import compile_kernels
json.dump(compile_kernels(targets=sys.argv[1:], is_sample=True), sys.stdout)
"""
FIELDS = {"kernel", "target", "config", "registers", "spilled_bytes", "shared_bytes", "occupancy", "tensor_core"}
FIELDS |= {"bytes", "flops", "roofline_us"}
KERNELS = {"combine", "row_stats", "vocab_stats", "expected_embedding", "expected_embedding_top"}
KERNELS |= {"denoise_update", "draw", "accept"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    pytest.importorskip("triton", reason="triton is not installed")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    processes = [
        subprocess.Popen([sys.executable, "-c", _CODE, *targets], env=environment, stdout=subprocess.PIPE)
        for targets in (("sm_80", "sm_90"), ("sm_100", "gfx942"))
    ]
    return [row for process in processes for row in json.loads(process.communicate()[0])["rows"]]


@pytest.mark.slow  # about a minute
@pytest.mark.timeout(900)
def test_no_kernel_spills_and_each_fits(rows: list[dict[str, Any]]) -> None:
    assert failures(rows) == []
    assert {row["target"] for row in rows} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert {row["kernel"] for row in rows} == KERNELS
    assert len(rows) == 4 * len(KERNELS)
    assert all(row.keys() >= FIELDS and row["registers"] > 0 and 0 < row["occupancy"] <= 1 for row in rows)


@pytest.mark.slow  # by the fixture above
def test_rooflines_follow_from_the_shapes(rows: list[dict[str, Any]]) -> None:
    on_h200 = [row for row in rows if row["target"] == "sm_90"]
    for row in on_h200:
        assert row["roofline_us"] == pytest.approx(1e6 * max(row["bytes"] / 4.3e12, row["flops"] / 790e12), abs=0.01)
    (gemm,) = [row for row in on_h200 if row["kernel"] == "vocab_stats"]
    assert gemm["flops"] == 2 * 256 * 151_936 * 2048


def test_failures_are_named() -> None:
    row = {"kernel": "k", "target": "sm_90", "shape": "R=1", "is_gemm": True}
    row |= {"spilled_bytes": 8, "shared_bytes": 9, "shared_limit_bytes": 8, "tensor_core": 0}

    assert failures([row]) == [
        "k on sm_90, R=1: 8 bytes are spilled",
        "k on sm_90, R=1: 9 of 8 bytes of shared memory",
        "k on sm_90, R=1: no tensor-core instructions",
    ]
    assert failures([row | {"spilled_bytes": 0, "shared_bytes": 8, "tensor_core": 4}]) == []


def test_without_triton_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['triton'] = None\nfrom reasonrt.cli.main import main\nmain()"

    done = subprocess.run([sys.executable, "-c", code, "bench", "kernels", "--compile"], capture_output=True, text=True)

    assert done.returncode != 0
    assert "pip install" in done.stderr + done.stdout
