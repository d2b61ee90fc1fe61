"""Where an op runs, and the checks of what it is given."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from reasonrt.errors import KernelError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32)
MAX_TOP_K = 64
PIECE = 2**19
"""Elements that a torch path computes together: 2 MiB of float32, which stay in a CPU's cache."""
_MIN_COLUMNS = 256
_COLUMNS_STEP = 64


def runs_on_triton(tensor: Tensor, *others: Tensor | None) -> bool:
    """Whether an op on these tensors launches its Triton kernel: on CUDA and HIP devices, and where TRITON_INTERPRET=1.

    Everything else, CPU tensors above all, and float64, stays on torch's path. Triton is not imported to find out.
    """
    is_double = any(each is not None and each.dtype == torch.float64 for each in (tensor, *others))
    return not is_double and (bool(tensor.is_cuda) or os.environ.get("TRITON_INTERPRET") == "1")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What statistics of this type are computed in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def piece_columns(width: int) -> int:
    """How many columns of so many rows each are a piece."""
    return max(_MIN_COLUMNS, PIECE // max(1, width) // _COLUMNS_STEP * _COLUMNS_STEP)


def check_matrix(name: str, tensor: Tensor) -> None:
    """Raises: KernelError: not a matrix of floats with adjacent columns."""
    if tensor.dim() != 2 or tensor.shape[1] == 0:
        raise KernelError(f"{name} must be a matrix with at least one column, got shape {tuple(tensor.shape)}")
    check_dtype(name, tensor, FLOATS)
    if tensor.stride(1) != 1 and tensor.shape[1] > 1:
        raise KernelError(f"{name} must have adjacent columns, got strides {tensor.stride()}; call .contiguous()")


def check_same(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises: KernelError: they differ in dtype or device."""
    if tensor.dtype != other.dtype:
        raise KernelError(
            f"{name} and {other_name} must have one dtype, got {_short(tensor.dtype)} and {_short(other.dtype)}; "
            "convert one with .to()"
        )
    check_device(name, tensor, other_name, other)


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises: KernelError: they are on different devices."""
    if tensor.device != other.device:
        raise KernelError(
            f"{name} and {other_name} must be on one device, got {tensor.device} and {other.device}; use .to()"
        )


def check_targets(targets: Tensor | None, name: str, rows: Tensor) -> None:
    """Raises: KernelError: not one integer for each row of `rows`, on its device."""
    if targets is None:
        return
    if targets.shape != rows.shape[:1]:
        raise KernelError(
            f"targets must have one id for each of the {rows.shape[0]} rows of {name}, got shape {tuple(targets.shape)}"
        )
    check_dtype("targets", targets, INTEGERS)
    check_device("targets", targets, name, rows)


def check_dtype(name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """Raises: KernelError: of another dtype."""
    if tensor.dtype not in allowed:
        raise KernelError(f"{name} must be {_one_of(allowed)}, got {_short(tensor.dtype)}; convert with .to()")


def check_shape(name: str, tensor: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """Raises: KernelError: of another shape, or on another device than `like`."""
    if tuple(tensor.shape) != tuple(shape):
        raise KernelError(f"{name} must have the shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.device != like.device:
        raise KernelError(f"{name} must be on {like.device} as the others, got {tensor.device}; use .to()")


def check_contiguous(name: str, tensor: Tensor) -> None:
    """Raises: KernelError: what is written to has gaps."""
    if not tensor.is_contiguous():
        raise KernelError(f"{name} must be contiguous, as it is written to, got strides {tensor.stride()}")


def check_distribution(temperature: float, excluded: int | None, vocab_size: int) -> None:
    """Raises: KernelError: a temperature that no softmax has, or an excluded column that there is not."""
    if not 0.0 < temperature < float("inf"):
        raise KernelError(f"temperature must be positive and finite, got {temperature}; greedy needs only argmax")
    if excluded is not None and not 0 <= excluded < vocab_size:
        raise KernelError(f"excluded must be an id below {vocab_size}, got {excluded}; None excludes nothing")


def check_top_k(top_k: int, vocab_size: int) -> None:
    """Raises: KernelError: more of the highest than are kept, or than there are."""
    if not 0 <= top_k <= min(MAX_TOP_K, vocab_size):
        raise KernelError(f"top_k must be in [0, {min(MAX_TOP_K, vocab_size)}], got {top_k}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _one_of(dtypes: Sequence[torch.dtype]) -> str:
    *names, last = [_short(dtype) for dtype in dtypes]
    return f"{', '.join(names)} or {last}" if names else last
