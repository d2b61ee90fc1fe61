"""How good a model of the zoo is, by family and level, on problems that no training has seen."""

from collections import defaultdict
from pathlib import Path

from reasonrt.config import ZOO_FOLDER, ZOO_PREFIX, DiffusionConfig, VllmConfig
from reasonrt.diffusion.layouts import ARCHITECTURE
from reasonrt.engines.build import build_engine
from reasonrt.evals.run import PolicySpec, RunSettings, evaluate
from reasonrt.evals.tasks import load_task
from reasonrt.runtime import Runtime
from reasonrt.types import Limits


async def measure_model(name: str, limit: int, out: Path) -> dict[str, list[bool]]:
    """Solve `limit` problems of the task `zoo` greedily; return whether each was right, by group such as `gcd/3`."""
    problems = load_task("zoo", limit)
    config: VllmConfig | DiffusionConfig = VllmConfig(model=f"{ZOO_PREFIX}{name}")
    policy = "target"
    if ARCHITECTURE in (ZOO_FOLDER / name / "config.json").read_text():
        config, policy = DiffusionConfig(kind="diffusion", model=f"{ZOO_PREFIX}{name}"), "block_diffusion"
    async with Runtime({"writer": build_engine("writer", config)}) as runtime:
        settings = RunSettings("zoo", Limits(max_tokens=768), concurrency=32)
        report = await evaluate(runtime, problems, [PolicySpec(policy, {"engine": "writer"})], settings, out)
    correct = defaultdict(list)
    for record in report.records:
        correct[record.group].append(record.correct)
    return dict(correct)
