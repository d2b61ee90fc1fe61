"""What tests of kernels share: Triton's interpreter, poisoned memory, and an oracle."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reasonrt.kernels.online import RowStats

Interpreting = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="session")
def interpreting() -> Interpreting:
    """Within it, ops on CPU tensors launch their Triton kernels, and these are interpreted.

    TRITON_INTERPRET=1 before the first import of triton does so for a whole process; here it is for a block of a test,
    and what else uses triton in this process is as before.
    """
    pytest.importorskip("triton", reason="triton is not installed")
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    from reasonrt.kernels.triton.builds import modules

    list(modules())  # before the variable is set: they are compiled elsewhere

    function_of = cache(interpreter.InterpretedFunction)

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        function_of(self.fn).run(*args, grid=grid, warmup=warmup, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function_of(self.fn).rewrite()(*args, **kwargs)

    def dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        """Numpy has no bfloat16: the interpreter would multiply the bits as integers."""
        if a.dtype == tl.bfloat16:
            a, b = (
                interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32) for x in (a, b)
            )
        return multiply(self, a, b, *others)

    def cast(self: Any, source: Any, target: Any) -> Any:
        """To bfloat16 a GPU rounds to the nearest, where the interpreter cuts off."""
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.int16)
            return interpreter.TensorHandle(rounded.numpy().view(np.uint16).reshape(source.data.shape), tl.bfloat16)
        return convert(self, source, target)

    multiply, convert = interpreter.InterpreterBuilder.create_dot, interpreter.InterpreterBuilder.cast_impl

    @contextmanager
    def interpreted() -> Iterator[None]:
        language = interpreter._patch_lang(tl.standard.max.fn)  # of the functions that kernels call
        try:
            with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):  # a GPU does not warn
                patch.setenv("TRITON_INTERPRET", "1")
                patch.setattr(JITFunction, "run", run)
                patch.setattr(JITFunction, "__call__", call)
                patch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
                patch.setattr(interpreter.InterpreterBuilder, "cast_impl", cast)
                yield
        finally:
            language.restore()

    return interpreted


@pytest.fixture(params=["torch", "triton"])
def computing(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways to compute an op on CPU tensors: by torch, and by the interpreted kernel."""
    if request.param == "torch":
        yield "torch"
    else:
        with request.getfixturevalue("interpreting")():
            yield "triton"


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is not written is NaN, or a number that no result can be."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        original = getattr(owner, name)

        def allocate(*args: Any, original: Any = original, **kwargs: Any) -> Tensor:
            tensor = original(*args, **kwargs)
            if tensor.dtype == torch.bool:
                return tensor.random_(2)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)

        monkeypatch.setattr(owner, name, allocate)


@pytest.fixture(scope="session")
def assert_never_worse() -> Callable[[RowStats, RowStats, RowStats, float], None]:
    """Every number is as near to the truth as plain torch in the same dtype comes, but for a tolerance of its size."""

    def check(found: RowStats, plain: RowStats, truth: RowStats, tolerance: float) -> None:
        for field in fields(RowStats):
            name = field.name
            if (wanted := getattr(truth, name)) is None or not wanted.is_floating_point():
                continue
            value, rival = getattr(found, name).double(), getattr(plain, name).double()
            is_none = wanted.isnan() | wanted.isinf()
            torch.testing.assert_close(value[is_none], wanted[is_none], equal_nan=True, msg=name)
            error, allowed = (value - wanted)[~is_none].abs(), (rival - wanted)[~is_none].abs().nan_to_num(nan=0.0)
            allowed = allowed + tolerance * (1 + wanted[~is_none].abs())
            assert (error <= allowed).all(), f"{name}: {error.max():.2e} where {allowed[error.argmax()]:.2e} is allowed"

    return check


@pytest.fixture(scope="session")
def plainly() -> Callable[..., RowStats]:
    """The composition that users write, in the logits' own dtype."""

    def stats(logits: Tensor, targets: Tensor, temperature: float, top_k: int) -> RowStats:
        scaled = logits / temperature
        logprobs = torch.log_softmax(scaled, 1)
        probs = logprobs.exp()
        highest, argmax = probs.max(1)
        first_two = probs.topk(min(2, logits.shape[1])).values
        top = logprobs.topk(top_k)
        return RowStats(
            lse=torch.logsumexp(scaled, 1),
            logprob=logprobs.gather(1, targets[:, None])[:, 0],
            entropy=-(probs * logprobs).nan_to_num(nan=0.0).sum(1),
            max_prob=highest,
            argmax=argmax,
            margin=first_two[:, 0] - first_two[:, 1:].sum(1),
            top_logprobs=top.values,
            top_ids=top.indices,
        )

    return stats


@pytest.fixture(scope="session")
def largest_allocation() -> Callable[..., int]:
    """`largest_allocation(run)`: bytes of the largest tensor that torch allocates in it."""

    def measure(run: Callable[..., Any]) -> int:
        with torch.profiler.profile(profile_memory=True) as profile:
            run()
        events = profile.profiler.kineto_results.events()
        return max(int(event.nbytes()) for event in events if event.name() == "[memory]")

    return measure
