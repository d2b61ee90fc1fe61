"""How good a model of the zoo is, by family and level, on problems that no training has seen."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from reasonrt.config import ZOO_FOLDER, ZOO_PREFIX, DiffusionConfig, VllmConfig
from reasonrt.diffusion.layouts import ARCHITECTURE
from reasonrt.engines.build import build_engine
from reasonrt.evals.run import EvalProgress, PolicySpec, RunSettings, evaluate
from reasonrt.evals.tasks import load_task
from reasonrt.runtime import Runtime
from reasonrt.types import Limits
from reasonrt.zoo.catalog import read_card


async def measure_model(
    name: str, limit: int, out: Path, on_progress: Callable[[EvalProgress], None] = lambda progress: None
) -> dict[str, list[bool]]:
    """Solve `limit` problems of the task `zoo` greedily; return whether each was right, by group such as `gcd/3`.

    Raises:
        ConfigError: the zoo has no such model.
    """
    read_card(name)  # where its accuracy goes; else the problems would be solved in vain
    problems = load_task("zoo", limit)
    config: VllmConfig | DiffusionConfig = VllmConfig(model=f"{ZOO_PREFIX}{name}")
    policy = "target"
    if ARCHITECTURE in (ZOO_FOLDER / name / "config.json").read_text():
        config, policy = DiffusionConfig(kind="diffusion", model=f"{ZOO_PREFIX}{name}"), "block_diffusion"
    async with Runtime({"writer": build_engine("writer", config)}) as runtime:
        settings = RunSettings("zoo", Limits(max_tokens=768), concurrency=32)
        specs = [PolicySpec(policy, {"engine": "writer"})]
        report = await evaluate(runtime, problems, specs, settings, out, on_progress)
    correct = defaultdict(list)
    for record in report.records:
        correct[record.group].append(record.correct)
    return dict(correct)
