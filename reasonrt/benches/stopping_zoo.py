"""What stopping saves with the zoo's models, from recording to fresh problems, by one command and under one promise.

The families are compared with all that were there before them, and with one that sees nothing but the length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reasonrt.benches.stopping_live import ALL, CERTIFIED, LiveSettings, certify_families, measure_live
from reasonrt.calibration.stopping.candidates import Splits, splits
from reasonrt.evals.tasks import load_task
from reasonrt.evals.trace_recording import TraceSettings, record_traces
from reasonrt.policies.stopping.schedule import Schedule
from reasonrt.policies.stopping.traces import TraceSet, write_traces
from reasonrt.runtime import Runtime

MODELS = ("nano-thinker", "nano-target")
"""One that continues after it has its answer, and one that ends when it is done."""

COMPARED = ("learned_looks", ALL, "learned_length")
DRAW = 2
"""Of each split: the first one was looked at while families were made."""

_SCHEDULE = Schedule(answer_tokens=40)  # some answers are lists


@dataclass(frozen=True, slots=True)
class ZooSettings:
    """What is recorded, and measured.

    Attributes:
        live: the run's folder, and how many fresh problems.
        recorded: problems to learn from, and as many others to certify on.
        concurrency: of these, at once.
        families: to measure, each under its own certificate.
    """

    live: LiveSettings
    alpha: float
    delta: float
    recorded: int = 1500
    concurrency: int = 32
    families: Sequence[str] = COMPARED


async def measure_model(
    model: str, runtime: Runtime, settings: ZooSettings, on_progress: Callable[[str, int, int], None]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row for each family on fresh problems, and why others have none.

    Args:
        model: the runtime's target, by its name in the zoo.
    """
    parts = await _recorded(model, runtime, settings, on_progress)
    certificates = certify_families(parts, settings.alpha, settings.delta, families=settings.families)
    arms = [name + CERTIFIED for name, found in certificates.items() if not isinstance(found, str)]
    live = replace(settings.live, out=settings.live.out / model / "live", arms=arms, replayed=0)
    fresh = load_task("zoo", max(live.problems, live.timed), f"test-{DRAW}")
    found = await measure_live(
        model, runtime, fresh, parts.certify, certificates, live,
        lambda name, progress: on_progress(f"{model}, {name}", progress.done, progress.total),
    )  # fmt: skip
    rows = [row for row in found["rows"] if row["family"]]
    return rows, {name: why for name, why in certificates.items() if isinstance(why, str)}


async def _recorded(
    model: str, runtime: Runtime, settings: ZooSettings, on_progress: Callable[[str, int, int], None]
) -> Splits:
    async def record(split: str) -> TraceSet:
        out = settings.live.out / model / split
        how = TraceSettings(schedule=_SCHEDULE, limits=settings.live.limits, concurrency=settings.concurrency)
        problems = load_task("zoo", settings.recorded, f"{split}-{DRAW}")
        traces = await record_traces(
            runtime, problems, how, out, lambda done, total: on_progress(f"{model}, recording", done, total)
        )
        write_traces(out / "traces.jsonl", traces)
        return traces

    learn = await record("router")
    return splits(await record("certify"), learn)
