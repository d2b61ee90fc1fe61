"""What the kernels become on devices that need not be there: registers, spills, shared memory, tensor cores."""

import re
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from reasonrt.benches.progress import Advance, tell_nobody
from reasonrt.errors import CapabilityError, ConfigError

if TYPE_CHECKING:
    from reasonrt.kernels.triton.builds import Build, Target

_NVIDIA_REGISTERS, _NVIDIA_WARPS, _NVIDIA_REGISTER_STEP = 65_536, 64, 256
_NVIDIA_SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
_NVIDIA_SHARED_RESERVED = 1024
_AMD_REGISTERS, _AMD_WAVES, _AMD_SIMDS, _AMD_REGISTER_STEP = 512, 8, 4, 8
_TENSOR_CORE = {"cuda": r"\b(HMMA|HGMMA|IMMA|QGMMA|UTCHMMA|UTCQMMA)\b", "hip": r"\bv_mfma_"}


def compile_kernels(
    advance: Advance = tell_nobody,
    targets: Collection[str] | None = None,
    is_sample: bool = False,
) -> dict[str, Any]:
    """Compile every kernel as it is launched on each target, without a device; one row for each binary.

    Args:
        advance: is told the target, and how many of how many binaries are compiled for it.
        targets: only these, by name; None is all.
        is_sample: only the first build of each kernel, the one that takes most.

    Raises:
        CapabilityError: Triton is not installed.
        ConfigError: TRITON_INTERPRET is set, so that kernels are interpreted and not compiled.
    """
    if find_spec("triton") is None:
        raise CapabilityError("kernels are compiled by triton, which is not installed; pip install 'reasonrt[kernels]'")
    from triton import knobs

    if knobs.runtime.interpret:
        raise ConfigError("TRITON_INTERPRET is set, so that nothing is compiled; unset it")
    return {"rows": list(_rows(advance, targets, is_sample))}


def failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each binary that spills, exceeds the target's shared memory, or is a GEMM without tensor cores."""
    found = []
    for row in rows:
        name = f"{row['kernel']} on {row['target']}, {row['shape']}"
        if row["spilled_bytes"]:
            found.append(f"{name}: {row['spilled_bytes']} bytes are spilled")
        if row["shared_bytes"] > row["shared_limit_bytes"]:
            found.append(f"{name}: {row['shared_bytes']} of {row['shared_limit_bytes']} bytes of shared memory")
        if row["is_gemm"] and not row["tensor_core"]:
            found.append(f"{name}: no tensor-core instructions")
    return found


def _rows(advance: Advance, targets: Collection[str] | None, is_sample: bool) -> Iterator[dict[str, Any]]:
    from reasonrt.kernels.triton.builds import TARGETS, all_builds

    for target in TARGETS:
        builds = list(all_builds(target)) if targets is None or target.name in targets else []
        if is_sample:
            builds = list({build.name: build for build in reversed(builds)}.values())
        for place, build in enumerate(builds):
            advance(target.name, place, len(builds))
            yield _measure(build, target)
        if builds:
            advance(target.name, len(builds), len(builds))


def _measure(build: "Build", target: "Target") -> dict[str, Any]:
    compiled = _compile(build, target)
    registers, spilled_bytes, assembly = _resources(compiled, target)
    shared_bytes = compiled.metadata.shared
    return {
        "kernel": build.name,
        "target": target.name,
        "config": build.config,
        "shape": build.shape,
        "registers": registers,
        "spilled_bytes": spilled_bytes,
        "shared_bytes": shared_bytes,
        "shared_limit_bytes": target.shared_bytes,
        "occupancy": round(_occupancy(build.num_warps, registers, shared_bytes, target), 3),
        "is_gemm": build.is_gemm,
        "tensor_core": len(re.findall(_TENSOR_CORE[target.backend], assembly)),
        "bytes": build.bytes_moved,
        "flops": build.flops,
        "roofline_us": round(build.roofline_us(target), 2),
    }


def _compile(build: "Build", target: "Target") -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, dict(build.constants), {}
    for position, name in enumerate(build.kernel.arg_names):
        is_aligned = name in build.pointers or build.sizes.get(name, 1) % 16 == 0
        if build.pointers.get(name) is not None:
            signature[name] = f"*{build.pointers[name]}"
        elif name in build.floats:
            signature[name] = "fp32"
        elif name in build.sizes and build.sizes[name] != 1:
            signature[name] = "i32"
        else:
            signature[name] = "constexpr"
            constants.setdefault(name, build.sizes.get(name))  # None where no pointer is passed
        if is_aligned and signature[name] not in ("constexpr", "fp32"):
            attributes[(position,)] = [["tt.divisibility", 16]]  # as a launch finds it out
    return triton.compile(
        ASTSource(build.kernel, signature, constants, attributes),
        target=GPUTarget(target.backend, target.arch, target.warp_size),
        options={"num_warps": build.num_warps, "num_stages": build.num_stages, "enable_fp_fusion": True},
    )


def _resources(compiled: Any, target: "Target") -> tuple[int, int, str]:
    """(registers of a thread, bytes of it that are spilled, assembly)."""
    if target.backend == "hip":
        assembly = compiled.asm["amdgcn"]
        found = {name: int(value) for name, value in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s*(\d+)", assembly)}
        return found["vgpr_count"], 4 * found["vgpr_spill_count"], assembly
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack = (int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))  # type: ignore[index]
    return registers, stack, compiled.asm["sass"]  # no kernel has arrays: what is on the stack is spilled


def _occupancy(num_warps: int, registers: int, shared_bytes: int, target: "Target") -> float:
    """The share of a processor's warps that can be resident, by registers and shared memory."""
    if target.backend == "hip":
        step = -(-registers // _AMD_REGISTER_STEP) * _AMD_REGISTER_STEP
        warps = _AMD_SIMDS * min(_AMD_WAVES, _AMD_REGISTERS // max(1, step))
        blocks = min(warps // num_warps, target.shared_bytes // max(1, shared_bytes))
        return blocks * num_warps / (_AMD_SIMDS * _AMD_WAVES)
    step = -(-registers * target.warp_size // _NVIDIA_REGISTER_STEP) * _NVIDIA_REGISTER_STEP
    by_registers = _NVIDIA_REGISTERS // step // num_warps
    by_shared = _NVIDIA_SHARED_BYTES[int(target.arch)] // (shared_bytes + _NVIDIA_SHARED_RESERVED)
    return min(by_registers, by_shared, _NVIDIA_WARPS // num_warps) * num_warps / _NVIDIA_WARPS
