"""The kernels against what one would write in torch: time, rates, the share of the roofline, and memory.

    python benchmarks/kernels.py --device cuda --json kernels.json
    python benchmarks/kernels.py --device cpu --rows 64 --hidden 512 --vocab 151936 --dtype float32

On a GPU the ops are the Triton kernels, on a CPU their torch path. The roofline is that of this run: a copy and a
matrix product are timed first. On a CPU rivals are timed in turn, a round of each after the other, and `torch.compile`
only with --compile: with OMP_NUM_THREADS=1 by the seconds that this process computed, which other work disturbs little;
with more threads, which compute while they wait for each other, by the clock.
cut-cross-entropy and Liger give the log-probability of the target and nothing else; FlashInfer draws with noise of its
own.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor

from reasonrt.kernels.denoise_update import denoise_update
from reasonrt.kernels.denoising import Predicted, Residual
from reasonrt.kernels.expected_embedding import expected_embedding, expected_embedding_top
from reasonrt.kernels.noise import noise_keys
from reasonrt.kernels.row_stats import row_stats
from reasonrt.kernels.speculative_verify import speculative_verify
from reasonrt.kernels.vocab_stats import vocab_stats

Run = Callable[[], Any]
Case = tuple[dict[str, Any], dict[str, Run]]
"""The shape with its bytes and FLOPs, and what is timed there by name."""
OPS = ["row_stats", "vocab_stats", "expected_embedding", "expected_embedding_top"]
OPS += ["denoise_update", "speculative_verify"]
_BLOCK = 32  # positions that are denoised together, and tokens of a draft


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


def eager_expected(logits: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """As residual context is written down: probabilities, their entropy, and their product with the embeddings."""
    probs = logits.float().softmax(1)
    entropy = -(probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log()).sum(1)
    return probs.to(embedding.dtype) @ embedding, entropy


def expected(logits: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
    stats = row_stats(logits)
    return expected_embedding(logits, stats.lse, embedding), stats.entropy


def eager_expected_top(logits: Tensor, embedding: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    probs = logits.float().softmax(1)
    entropy = -(probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log()).sum(1)
    top = probs.topk(top_k)
    shares = (top.values / top.values.sum(1, keepdim=True)).to(embedding.dtype)
    return torch.einsum("rk,rkd->rd", shares, embedding[top.indices]), entropy


def expected_top(logits: Tensor, embedding: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    stats = row_stats(logits, top_k=top_k)
    return expected_embedding_top(stats.top_logprobs, stats.top_ids, embedding), stats.entropy


def eager_denoise(predicted: Predicted, thresholds: Tensor, end_ids: Tensor, canvas: Tensor, residual: Residual) -> Any:
    """For blocks of one length, whose rows are in the order of their slots."""
    is_open, confidences = (each.view(len(thresholds), -1) for each in (predicted.is_open, predicted.confidences))
    confidences = confidences.where(is_open, -1.0)
    is_chosen = confidences > thresholds[:, None].float()
    is_best = torch.zeros_like(is_chosen).scatter(1, confidences.argmax(1, keepdim=True), True)
    is_committed = (is_chosen | is_best) & is_open
    canvas.copy_(predicted.tokens.where(is_committed.flatten(), canvas))
    is_end = is_committed & torch.isin(predicted.tokens, end_ids).view_as(is_committed)
    stays = is_open & ~is_committed
    alpha = (residual.entropies / math.log(residual.num_tokens)).clamp(0, 1)[:, None]
    blend = (alpha * residual.expected + (1 - alpha) * residual.mask).to(residual.embeds.dtype)
    residual.embeds.copy_(torch.where(stays.view(-1, 1), blend, residual.embeds))
    is_open = stays & (is_end.cumsum(1) == 0)
    return is_committed, is_open, ~is_open.any(1)


def eager_verify(logits: Tensor, drafted: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """For drafts of one length, with noise that no seed repeats."""
    probs, order = (logits.float() / temperature).softmax(1).sort(dim=1, descending=True)
    probs = probs.masked_fill(probs.cumsum(1) - probs >= top_p, 0.0)
    own = order.gather(1, (probs / torch.empty_like(probs).exponential_()).argmax(1, keepdim=True)).view(-1, _BLOCK)
    accepted = (own == drafted.view_as(own)).long().cumprod(1).sum(1)
    return accepted, own.gather(1, accepted.clamp(max=_BLOCK - 1)[:, None])


def cases(options: argparse.Namespace) -> Iterator[Case]:
    dtype, device = getattr(torch, options.dtype), options.device
    compiled = torch.compile if options.compile else None
    for vocab_size, num_rows in product(options.vocab, options.rows):
        logits = torch.randn(num_rows, vocab_size, device=device).to(dtype)
        targets = torch.randint(vocab_size, (num_rows,), device=device)
        shape = {"R": num_rows, "V": vocab_size, "D": 0, "top_k": options.top_k, "flops": 0}
        if "row_stats" in options.ops:
            runs = _runs(_with_top_k(row_stats), eager_rows, (logits, targets, options.top_k), compiled)
            yield shape | {"op": "row_stats", "bytes": logits.nbytes}, runs
        if "speculative_verify" in options.ops and num_rows % _BLOCK == 0:
            yield shape | {"op": "speculative_verify", "bytes": logits.nbytes}, _verifying(logits, targets, compiled)
        for hidden_size in options.hidden:
            shape = shape | {"D": hidden_size, "flops": 2 * num_rows * vocab_size * hidden_size}
            weight = (torch.randn(vocab_size, hidden_size, device=device) / hidden_size**0.5).to(dtype)
            if "vocab_stats" in options.ops:
                hidden = torch.randn(num_rows, hidden_size, device=device).to(dtype)
                arguments = (hidden, weight, targets, options.top_k)
                runs = _runs(_with_top_k(vocab_stats), eager_vocab, arguments, compiled)
                if device == "cuda":
                    runs |= _libraries(hidden, weight, targets)
                yield shape | {"op": "vocab_stats", "bytes": hidden.nbytes + weight.nbytes}, runs
            if "expected_embedding" in options.ops:
                runs = _runs(expected, eager_expected, (logits, weight), compiled)
                yield shape | {"op": "expected_embedding", "bytes": logits.nbytes + weight.nbytes}, runs
            if "expected_embedding_top" in options.ops:
                gathered = num_rows * options.top_k * hidden_size * weight.itemsize
                runs = _runs(expected_top, eager_expected_top, (logits, weight, options.top_k), compiled)
                yield shape | {"op": "expected_embedding_top", "bytes": logits.nbytes + gathered, "flops": 0}, runs
            del weight
    if "denoise_update" in options.ops:
        for num_rows, hidden_size in product((rows for rows in options.rows if rows % _BLOCK == 0), options.hidden):
            shape = {"op": "denoise_update", "R": num_rows, "V": 0, "D": hidden_size, "top_k": 0, "flops": 0}
            arguments = _canvas(num_rows, hidden_size, dtype, device)
            runs = _runs(denoise_update, eager_denoise, arguments, compiled)
            yield shape | {"bytes": 2 * arguments[-1].embeds.nbytes}, runs


def _with_top_k(op: Any) -> Any:
    return lambda *arguments: op(*arguments[:-1], top_k=arguments[-1])


def _runs(op: Any, eager: Any, arguments: tuple[Any, ...], compiled: Any) -> dict[str, Run]:
    runs: dict[str, Run] = {"reasonrt": lambda: op(*arguments), "eager": lambda: eager(*arguments)}
    if compiled is not None:
        function = compiled(eager)
        runs["torch.compile"] = lambda: function(*arguments)
    return runs


def _verifying(logits: Tensor, drafted: Tensor, compiled: Any) -> dict[str, Run]:
    """Drafts of `_BLOCK` tokens at temperature 0.7 and top_p 0.95."""
    num_requests = len(drafted) // _BLOCK
    lengths = drafted.new_full((num_requests,), _BLOCK)
    keys = drafted.new_tensor(noise_keys(0, range(len(drafted))))
    temperature, top_p = (
        torch.full((num_requests,), value, dtype=torch.float64, device=logits.device) for value in (0.7, 0.95)
    )
    runs = _runs(
        lambda *arguments: speculative_verify(logits, drafted, lengths, keys, temperature, top_p),
        eager_verify,
        (logits, drafted, 0.7, 0.95),
        compiled,
    )
    if logits.is_cuda and find_spec("flashinfer"):
        from flashinfer.sampling import top_p_sampling_from_probs

        runs["flashinfer"] = lambda: top_p_sampling_from_probs((logits.float() / 0.7).softmax(1), 0.95) == drafted
    return runs


def _canvas(num_rows: int, hidden_size: int, dtype: torch.dtype, device: str) -> Any:
    """Blocks of `_BLOCK` positions, half of them open: the arguments of `denoise_update`."""
    predicted = Predicted(
        torch.randint(1000, (num_rows,), device=device),
        torch.rand(num_rows, device=device),
        torch.rand(num_rows, device=device) < 0.5,
        torch.arange(num_rows, device=device),
        torch.arange(0, num_rows + 1, _BLOCK, device=device),
    )
    means, embeds = torch.randn(2, num_rows, hidden_size, device=device).to(dtype)
    entropies = 9 * torch.rand(num_rows, device=device)
    residual = Residual(means, entropies, 151_936, torch.randn(hidden_size, device=device).to(dtype), embeds)
    thresholds = torch.full((num_rows // _BLOCK,), 0.9, dtype=torch.float64, device=device)
    return predicted, thresholds, torch.tensor([1, 2], device=device), torch.zeros_like(predicted.tokens), residual


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
    seconds = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            began = seconds()
            run()
            samples[name].append(1e6 * (seconds() - began))
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
    parser.add_argument("--ops", nargs="+", choices=OPS, default=OPS)
    parser.add_argument("--rounds", type=int, default=3, help="of each on a CPU")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="time torch.compile; default: on a GPU"
    )
    parser.add_argument("--json", help="write the rows into this file")
    options = parser.parse_args()
    options.compile = options.device == "cuda" if options.compile is None else options.compile
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
