"""Interpreting kernels in a test leaves Triton as it was, and the kernels compile."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from reasonrt.kernels.row_stats import row_stats

_BLOCKER = "import sys; sys.modules['triton'] = None\n"  # as where it is not installed


def test_interpreting_leaves_triton_as_it_was(interpreting: Callable[[], Any]) -> None:
    import triton.language as tl
    from triton import knobs
    from triton.runtime.interpreter import InterpreterBuilder
    from triton.runtime.jit import JITFunction

    def state() -> list[dict[str, Any]]:
        """What each name leads to; names that Python makes itself are left out but for those that are replaced."""
        owners = (tl, tl.core, tl.math, tl.tensor, tl.dtype, JITFunction, InterpreterBuilder)
        replaced = {"__index__", "__bool__", "__repr__", "__str__", "__call__"}
        return [
            {name: getattr(owner, name, None) for name in replaced | {n for n in dir(owner) if not n.startswith("__")}}
            for owner in owners
        ]

    before = state()
    with interpreting():
        assert state() != before
        row_stats(torch.randn(2, 300), top_k=2)
        assert knobs.runtime.interpret

    assert state() == before
    assert not knobs.runtime.interpret


def test_without_the_interpreter_cpu_tensors_are_computed_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasonrt.kernels.triton.row_stats", None)

    assert row_stats(torch.randn(2, 300)).lse.shape == (2,)


def test_ops_work_where_triton_is_not_installed() -> None:
    code = _BLOCKER + (
        "import torch\n"
        "from reasonrt.kernels.row_stats import row_stats\n"
        "from reasonrt.kernels.vocab_stats import vocab_stats\n"
        "print(*row_stats(torch.zeros(2, 4)).argmax.tolist(), *vocab_stats(torch.ones(2, 4), torch.ones(9, 4)).argmax)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "0", "tensor(0)", "tensor(0)"]


def test_ops_do_not_import_triton() -> None:
    ops = ("row_stats", "vocab_stats", "expected_embedding", "denoise_update", "speculative_verify")
    code = f"import sys, {', '.join(f'reasonrt.kernels.{op}' for op in ops)}; print('triton' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)

    assert done.stdout.strip() == "False"
