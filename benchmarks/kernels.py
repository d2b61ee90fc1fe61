"""The kernels against what one would write in torch: time, rates, the share of the roofline, and memory.

    python benchmarks/kernels.py --device cuda --json kernels.json
    python benchmarks/kernels.py --device cpu --rows 64 --hidden 512 --vocab 151936 --dtype float32

On a GPU the ops are the Triton kernels, on a CPU their torch path. The roofline is that of this run: a copy and a
matrix product are timed first. On a CPU rivals are timed in turn, a round of each after the other; `torch.compile` runs
on GPUs. cut-cross-entropy and Liger give the log-probability of the target and nothing else.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor

from reasonrt.kernels.row_stats import row_stats
from reasonrt.kernels.vocab_stats import vocab_stats

Run = Callable[[], Any]


def eager_rows(logits: Tensor, targets: Tensor, top_k: int) -> tuple[Tensor, ...]:
    """The composition that users write."""
    logprobs = torch.log_softmax(logits.float(), 1)
    probs = logprobs.exp()
    max_prob, argmax = probs.max(1)
    first, second = probs.topk(2).values.unbind(1)
    entropy = -(probs * logprobs).sum(1)
    top = logprobs.topk(top_k)
    return logprobs.gather(1, targets[:, None]), entropy, max_prob, argmax, first - second, top.values, top.indices


def eager_vocab(hidden: Tensor, weight: Tensor, targets: Tensor, top_k: int) -> tuple[Tensor, ...]:
    return eager_rows(hidden @ weight.T, targets, top_k)


def cases(options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], dict[str, Run]]]:
    """The shape with its bytes and FLOPs, and what is timed there by name."""
    dtype, device = getattr(torch, options.dtype), options.device
    compiled = torch.compile if device == "cuda" else None
    for vocab_size, num_rows in product(options.vocab, options.rows):
        targets = torch.randint(vocab_size, (num_rows,), device=device)
        logits = torch.randn(num_rows, vocab_size, device=device).to(dtype)
        shape = {"op": "row_stats", "R": num_rows, "V": vocab_size, "D": 0, "top_k": options.top_k}
        runs = _runs(row_stats, eager_rows, (logits, targets), options.top_k, compiled)
        yield shape | {"bytes": logits.nbytes, "flops": 0}, runs
        del logits, runs
        for hidden_size in options.hidden:
            hidden = torch.randn(num_rows, hidden_size, device=device).to(dtype)
            weight = (torch.randn(vocab_size, hidden_size, device=device) / hidden_size**0.5).to(dtype)
            shape = {"op": "vocab_stats", "R": num_rows, "V": vocab_size, "D": hidden_size, "top_k": options.top_k}
            flops = 2 * num_rows * vocab_size * hidden_size
            runs = _runs(vocab_stats, eager_vocab, (hidden, weight, targets), options.top_k, compiled)
            if device == "cuda":
                runs |= _libraries(hidden, weight, targets)
            yield shape | {"bytes": hidden.nbytes + weight.nbytes, "flops": flops}, runs
            del hidden, weight, runs


def _runs(op: Any, eager: Any, arguments: tuple[Tensor, ...], top_k: int, compiled: Any) -> dict[str, Run]:
    runs: dict[str, Run] = {
        "reasonrt": lambda: op(*arguments, top_k=top_k),
        "eager": lambda: eager(*arguments, top_k),
    }
    if compiled is not None:
        function = compiled(eager)
        runs["torch.compile"] = lambda: function(*arguments, top_k)
    return runs


def _libraries(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, Run]:
    """Those of others that are installed."""
    runs: dict[str, Run] = {}
    if find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        runs["cut-cross-entropy"] = lambda: linear_cross_entropy(hidden, weight, targets, reduction="none")
    if find_spec("liger_kernel"):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        runs["liger"] = lambda: liger_fused_linear_cross_entropy(hidden, weight, targets, reduction="none")
    return runs


def time_us(runs: dict[str, Run], device: str, rounds: int) -> dict[str, float]:
    """The median of each, microseconds."""
    if device == "cuda":
        from triton.testing import do_bench

        return {name: 1e3 * do_bench(run, return_mode="median") for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            samples[name].append(1e6 * (time.perf_counter() - began))
    return {name: median(sample[1:]) for name, sample in samples.items()}  # the first warms up


def peak_bytes(run: Run, device: str) -> int:
    """What the call holds at most beyond its arguments."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: int(event.start_ns())):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure_roofline(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """(bytes per second of a copy, FLOP per second of a matrix product), as this device does them now."""
    size, side = (2**30, 8192) if device == "cuda" else (2**26, 1024)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    sink = torch.empty_like(source)
    a = torch.randn(side, side, device=device).to(dtype)
    copied = time_us({"copy": lambda: sink.copy_(source)}, device, 5)["copy"]
    multiplied = time_us({"product": lambda: a @ a}, device, 5)["product"]
    return 2 * size / copied * 1e6, 2 * side**3 / multiplied * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 256, 1024, 4096])
    parser.add_argument("--vocab", type=int, nargs="+", default=[32_000, 151_936])
    parser.add_argument("--hidden", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="of each on a CPU")
    parser.add_argument("--json", help="write the rows into this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    bytes_per_s, flops_per_s = measure_roofline(options.device, getattr(torch, options.dtype))
    rows: list[dict[str, Any]] = []
    for shape, runs in cases(options):
        times = time_us(runs, options.device, options.rounds)
        roofline_us = 1e6 * max(shape["bytes"] / bytes_per_s, shape["flops"] / flops_per_s)
        for name, microseconds in times.items():
            rows.append(
                shape
                | {
                    "by": name,
                    "us": round(microseconds, 1),
                    "gigabytes_per_s": round(shape["bytes"] / microseconds / 1e3, 1),
                    "teraflops": round(shape["flops"] / microseconds / 1e6, 3),
                    "of_roofline": round(roofline_us / microseconds, 3),
                    "times_eager": round(times["eager"] / microseconds, 2),
                    "peak_megabytes": round(peak_bytes(runs[name], options.device) / 1e6, 2),
                }
            )
        print(f"{shape['op']} R={shape['R']} V={shape['V']} D={shape['D']}", flush=True)
    measured = {"bytes_per_s": bytes_per_s, "flops_per_s": flops_per_s}
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"device": options.device, "dtype": options.dtype} | measured | {"rows": rows}, file, indent=1)
    print(f"copy {bytes_per_s / 1e9:.1f} GB/s, product {flops_per_s / 1e12:.3f} TFLOP/s, {options.dtype}")
    columns = tuple(name for name in rows[0] if name not in ("bytes", "flops", "top_k"))
    lines = [columns, *(tuple(str(row[column]) for column in columns) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


if __name__ == "__main__":
    main()
