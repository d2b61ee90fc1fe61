"""An engine on a CPU as one process, and with a worker beside its scheduler, as vLLM arranges it by itself (ADR 21).

    python benchmarks/engine_processes.py --json engine_processes.json

Starts both by turns, `--rounds` times each. Of each: seconds of a start and of an end, memory of its processes, tokens
per second and CPU microseconds per token of `--streams` generations at a time.
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

import psutil

import reasonrt.engines.vllm_settings as vllm_settings
import reasonrt.zoo
from reasonrt.engines.vllm import VllmEngine
from reasonrt.types import Message, Sampling

PROCESSES = {"one": vllm_settings.is_one_process, "scheduler and worker": lambda settings, on_cpu: False}
QUESTION = "Sort these numbers in ascending order: 8, 3, 5, 9, 1, 33, 21, 40"
FIGURES = {"start_s": "start (s)", "end_s": "end (s)", "mib": "memory (MiB)"}
Row = dict[str, Any]


def main() -> None:
    options = parse()
    rows = asyncio.run(measure(options))
    for name in PROCESSES:
        of_it = [row for row in rows if row["processes"] == name]
        print(f"{name}:", ", ".join(f"{FIGURES.get(key, key)} {value:.4g}" for key, value in medians(of_it).items()))
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(reasonrt.zoo.__file__).parent / "models" / "nano-target")
    parser.add_argument("--cores", default="0")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


async def measure(options: argparse.Namespace) -> list[Row]:
    await one_round(options, "one")  # reads the files of vLLM and torch for the first time
    return [await one_round(options, name) for _ in range(options.rounds) for name in PROCESSES]


async def one_round(options: argparse.Namespace, name: str) -> Row:
    vllm_settings.is_one_process = PROCESSES[name]
    engine = VllmEngine("target", options.model, vllm_settings.VllmSettings(cores=options.cores))
    row: Row = {"processes": name}
    began = time.perf_counter()
    await engine.start()
    row["start_s"] = time.perf_counter() - began
    below = psutil.Process().children(recursive=True)
    row["mib"] = sum(process.memory_info().rss for process in below) / 2**20
    for streams in options.streams:
        cpu_s, began = cpu_seconds(below), time.perf_counter()
        tokens = sum(await asyncio.gather(*(generate(engine, seed) for seed in range(streams))))
        row[f"tokens/s at {streams}"] = tokens / (time.perf_counter() - began)
        row[f"CPU us/token at {streams}"] = 1e6 * (cpu_seconds(below) - cpu_s) / tokens
    began = time.perf_counter()
    await engine.aclose()
    row["end_s"] = time.perf_counter() - began
    return row


async def generate(engine: VllmEngine, seed: int) -> int:
    prompt = engine.tokenizer.chat((Message("user", QUESTION),))
    num_tokens = 0
    async for delta in engine.generate(prompt, Sampling(256, temperature=0.7, seed=seed)):
        num_tokens += len(delta.token_ids)
    return num_tokens


def cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def medians(rows: list[Row]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0] if key != "processes"}


if __name__ == "__main__":
    main()
