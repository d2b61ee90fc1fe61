"""What is compiled to see that a kernel fits: the targets, and a kernel with all that makes one binary of it.

A module of this folder joins by a function `builds(target)` that returns its kernels as they are launched there.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """A device that need not be there. Rates are those of dense bfloat16, without sparsity.

    Attributes:
        shared_bytes: shared memory that one block may have.
        memory_bytes_per_s, flops_per_s: of sm_90 as seen on an H200, of the others as published by their makers.
    """

    name: str
    backend: str
    arch: int | str
    warp_size: int
    shared_bytes: int
    memory_bytes_per_s: float
    flops_per_s: float


TARGETS = (
    Target("sm_80", "cuda", 80, 32, 163 * 1024, 2.0e12, 312e12),
    Target("sm_90", "cuda", 90, 32, 227 * 1024, 4.3e12, 790e12),
    Target("sm_100", "cuda", 100, 32, 227 * 1024, 8.0e12, 2250e12),
    Target("gfx942", "hip", "gfx942", 64, 64 * 1024, 5.3e12, 1307e12),
)


@dataclass(frozen=True, slots=True)
class Build:
    """A kernel with everything that makes one binary of it, and what that binary does at one shape.

    Attributes:
        kernel: the `triton.jit` function.
        pointers: by argument, the type of what is pointed to; None where nothing is passed.
        sizes: by argument, the integers at this shape; as in a launch, divisibility by 16 is made use of.
        floats: arguments that are float32.
        constants: by argument, the compile-time values.
        bytes_moved: between memory and chip, each byte once.
        is_gemm: whether its work is meant for tensor cores.
    """

    kernel: Any
    pointers: Mapping[str, str | None]
    sizes: Mapping[str, int]
    constants: Mapping[str, Any]
    num_warps: int
    shape: str
    bytes_moved: int
    floats: tuple[str, ...] = ()
    num_stages: int = 1
    flops: int = 0
    is_gemm: bool = False

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__).strip("_").removesuffix("_kernel")

    @property
    def config(self) -> str:
        blocks = [f"{name.removeprefix('BLOCK_')}{value}" for name, value in self.constants.items() if "BLOCK" in name]
        return " ".join([*blocks, f"warps{self.num_warps}", f"stages{self.num_stages}"])

    def roofline_us(self, target: Target) -> float:
        """Microseconds at least, by the memory's and the cores' rates."""
        return 1e6 * max(self.bytes_moved / target.memory_bytes_per_s, self.flops / target.flops_per_s)


def all_builds(target: Target) -> Iterator[Build]:
    """Of every module beside this one."""
    for module in modules():
        yield from getattr(module, "builds", lambda target: ())(target)


def modules() -> Iterator[ModuleType]:
    """Those beside this one, imported."""
    for found in pkgutil.iter_modules([str(Path(__file__).parent)]):
        yield importlib.import_module(f"{__name__.rpartition('.')[0]}.{found.name}")
