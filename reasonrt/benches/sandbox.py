"""What the sandboxes hold, and what they cost: the attempts to escape, and many sessions with large contexts."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import Any

from reasonrt.benches.progress import Advance, tell_nobody
from reasonrt.programs.sandbox.base import Ending, HostCall
from reasonrt.programs.sandbox.build import build_sandbox
from reasonrt.programs.sandbox.escapes import attempts, run_attempt

CONTEXT_MEGABYTES = 10
GIGABYTE = 1e9


async def measure_escapes(backend: str, advance: Advance = tell_nobody) -> dict[str, Any]:
    """How many attempts there are, how many held, and by name why the others did not."""
    sandbox = build_sandbox(backend, check=False)  # the check before a cell is no wall
    await sandbox.start()
    failed, tried = {}, attempts(backend)
    try:
        for place, attempt in enumerate(tried, 1):
            if reason := await run_attempt(sandbox, attempt):
                failed[attempt.name] = reason
            advance(f"{backend}: attempts to escape", place, len(tried))
    finally:
        await sandbox.aclose()
    return {"backend": backend, "attempts": len(tried), "held": len(tried) - len(failed), "failed": failed}


async def measure_cost(
    backend: str, num_sandboxes: int = 50, context_megabytes: int = CONTEXT_MEGABYTES, advance: Advance = tell_nobody
) -> dict[str, Any]:
    """Memory and start of many sessions that are open at the same time, each with a context of its own.

    They are opened one after the other; a start is from the call to the session that has its context. The memory is
    that of the workers, by resident pages (`rss`, in which a shared page counts once for each) and by a fair part of
    them (`pss`). The processor time of a start, in the host and in the worker, is what is left of its time on a machine
    that does nothing else.
    """
    sandbox = build_sandbox(backend, max_workers=num_sandboxes)
    await sandbox.start()
    sessions, starts_ms, processor_ms = [], [], []
    try:
        for number in range(num_sandboxes):
            context = f"{number:09d}\n" * (context_megabytes * 100_000)
            began, host_began = perf_counter(), process_time()
            session = await sandbox.open({"context": context})
            starts_ms.append(1000 * (perf_counter() - began))
            processor_ms.append(1000 * (process_time() - host_began) + _processor_ms(getattr(session, "worker_pid", 0)))
            sessions.append(session)
            advance(f"{backend}: sessions", number + 1, num_sandboxes)
        for session in sessions:
            cell = await session.run("print(len(context), context.count('\\n'))", _nobody)
            if cell.ending is not Ending.DONE:
                raise RuntimeError(f"a session did not answer: {cell.error}")
        pids = [getattr(session, "worker_pid", 0) for session in sessions]
        memory = {name: sum(_memory_bytes(pid, name) for pid in pids) / GIGABYTE for name in ("Rss", "Pss")}
    finally:
        for session in sessions:
            await session.aclose()
        await sandbox.aclose()
    return {
        "backend": backend,
        "sandboxes": num_sandboxes,
        "context_megabytes": context_megabytes,
        "rss_gigabytes": round(memory["Rss"], 3),
        "pss_gigabytes": round(memory["Pss"], 3),
        "start_ms_median": round(median(starts_ms), 1),
        "start_ms_p95": round(quantiles(starts_ms, n=20)[-1], 1),
        "start_processor_ms_median": round(median(processor_ms), 1),
    }


async def measure_sandboxes(
    backends: Sequence[str], num_sandboxes: int = 50, advance: Advance = tell_nobody
) -> dict[str, Any]:
    """Both of each backend, as rows."""
    rows: list[dict[str, Any]] = []
    for backend in backends:
        rows.append(await measure_cost(backend, num_sandboxes, advance=advance))
        rows.append(await measure_escapes(backend, advance))
    return {"rows": rows}


def _memory_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the system does not say the memory of process {pid}")


def _processor_ms(pid: int) -> float:
    """What a process has used so far, its threads included."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


async def _nobody(call: HostCall) -> Any:
    raise RuntimeError(f"{call.name} was called")
