"""What the runtime itself costs: CPU time that it adds to each committed step, over draining the engine alone."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np

from reasonrt.benches.progress import Advance, tell_nobody
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.runtime import Runtime
from reasonrt.types import Limits, Message, Request, Sampling

_STEP = "Then 12 * 7 = 84, and 84 + 9 = 93.\n\n"
_STEPS = 20
_LIMITS = Limits(max_tokens=4096)


async def measure_overhead(
    concurrencies: tuple[int, ...] = (1, 8, 64),
    rounds: int = 200,
    advance: Advance = tell_nobody,
) -> list[dict[str, float]]:
    """Measure rows with `concurrency`, `overhead_ms_per_step_p50`, `_p99`, `steps` and `rounds`.

    A round solves `concurrency` requests of 20 steps concurrently with policy `target` on a scripted engine without
    latency, and drains as many plain generations right after; the difference in process CPU time, per step, is one
    sample. Percentiles are over rounds. `advance` is told of each round, by the concurrency.
    """
    engine = ScriptedEngine("target", _STEP * (_STEPS - 1) + r"\boxed{93}")
    runtime = Runtime({"target": engine})
    prompt = engine.tokenizer.chat((Message("user", "12 * 7 + 9"),))
    request = Request.ask("12 * 7 + 9", limits=_LIMITS)

    async def solve() -> None:
        completion = await runtime.complete(request)
        if len(completion.steps) != _STEPS:
            raise AssertionError(f"expected {_STEPS} steps, got {len(completion.steps)}")

    async def drain() -> None:
        async for _ in engine.generate(prompt, Sampling(_LIMITS.max_tokens)):
            pass

    rows = []
    for concurrency in concurrencies:
        for _ in range(3):
            await _cpu_s(solve, concurrency)
        samples = []
        for number in range(1, rounds + 1):
            added_s = await _cpu_s(solve, concurrency) - await _cpu_s(drain, concurrency)
            samples.append(1000 * added_s / (concurrency * _STEPS))
            advance(f"{concurrency} concurrently", number, rounds)
        rows.append(
            {
                "concurrency": concurrency,
                "overhead_ms_per_step_p50": float(np.percentile(samples, 50)),
                "overhead_ms_per_step_p99": float(np.percentile(samples, 99)),
                "steps": _STEPS,
                "rounds": rounds,
            }
        )
    return rows


async def _cpu_s(work: Callable[[], Awaitable[None]], concurrency: int) -> float:
    started = time.process_time()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return time.process_time() - started
