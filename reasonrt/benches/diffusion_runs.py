"""The measurements of the diffusion bench: which engines run, on which problems, and in which order."""

import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonrt.benches.diffusion import (
    CONTROL,
    BenchModel,
    arm_rows,
    arms_of,
    compare,
    merging_row,
    summarize,
)
from reasonrt.benches.progress import Advance, tell_nobody
from reasonrt.config import DiffusionConfig, VllmConfig, model_folder
from reasonrt.engines.build import build_engine
from reasonrt.evals.journal import Record
from reasonrt.evals.report import Report
from reasonrt.evals.run import EvalProgress, PolicySpec, RunSettings, evaluate
from reasonrt.evals.tasks import TaskProblem, load_task
from reasonrt.ports import Engine
from reasonrt.runtime import Runtime
from reasonrt.types import Limits, Message

_ACCURATE = 0.9  # the threshold that speed is measured at, beside self-speculation
_BLOCK = 100  # problems, at least, that one arm solves before the next one has its turn
_REFERENCE = 8  # problems: the reference takes one at a time, as slowly as it is plain
_FAST: dict[str, dict[str, Any]] = {
    "threshold": {"threshold": _ACCURATE},
    "self-speculation": {"strategy": "self_speculation"},
}
_TARGETS = {"nano-target in vLLM": None, "nano-target in vLLM, one core": "0"}
"""Small models can be faster without threads: what diffusion is compared with is the best of these."""
_WARMED_UP_AT_ONCE = 4
_ROUNDS = 2
_PER_PLACE = 4  # problems in one turn for each that is solved concurrently: the places are full most of the time


@dataclass(frozen=True, slots=True)
class DiffusionBench:
    """One comparison; what `out` holds of it already is not measured again."""

    models: Sequence[BenchModel]
    task: str
    split: str
    max_tokens: int
    out: Path

    async def measure(
        self,
        thresholds: Sequence[float],
        problems: int,
        timed: int,
        concurrencies: Sequence[int],
        ablation: bool = True,
        advance: Advance = tell_nobody,
    ) -> dict[str, Any]:
        """Accuracy against tokens per pass, what merging saves and, for `timed` problems, tokens per second.

        Where more than `timed` are needed to keep so many places busy, more are timed.
        """
        chosen = load_task(self.task, problems, self.split)
        result = await self._accuracy(thresholds, chosen, ablation, advance)
        result["merging"] = await self._merging(chosen[: max(1, problems // 4)], advance)
        if timed:
            result["speed"] = await self._speed(timed, concurrencies, advance)
        return result

    async def _accuracy(
        self,
        thresholds: Sequence[float],
        problems: Sequence[TaskProblem],
        ablation: bool,
        advance: Advance,
    ) -> dict[str, Any]:
        arms = arms_of(self.models, thresholds, ablation)
        advance("starting engines", 0, 1)
        engines = {model.role: _diffusion(model.role, model.model) for model in self.models}
        async with Runtime(engines) as runtime:
            advance("starting engines", 1, 1)
            found = await self._run(runtime, problems, [arm.policy for arm in arms], 32, "accuracy", advance)
        rows = arm_rows(arms, found)
        return {"rows": rows, "against_control": compare(arms, found), "summary": summarize(rows)}

    async def _merging(self, problems: Sequence[TaskProblem], advance: Advance) -> dict[str, Any]:
        ours = self._ours()
        arms = [
            PolicySpec("block_diffusion", {"engine": ours.role, "threshold": _ACCURATE, "merge_commits": merge})
            for merge in (True, False)
        ]
        async with Runtime({ours.role: _diffusion(ours.role, ours.model)}) as runtime:
            found = await self._run(runtime, problems, arms, 32, "merging", advance)
        return merging_row(found, *(arm.label for arm in arms))

    async def _speed(self, timed: int, concurrencies: Sequence[int], advance: Advance) -> list[dict[str, Any]]:
        """Each engine alone on the machine, in `_ROUNDS` turns, each turn with its share of the problems."""
        ours = self._ours()
        needed = {concurrency: max(timed, concurrency * _PER_PLACE * _ROUNDS) for concurrency in concurrencies}
        problems = load_task(self.task, max(needed.values()), self.split)
        warm = load_task(self.task, _REFERENCE, "router")
        found: dict[tuple[int, str], list[Record]] = {}
        for turn in range(_ROUNDS):
            for engine, arms in _contestants(ours):
                async with Runtime({engine.name: engine}) as runtime:
                    policies = list(arms.values())
                    await self._warm_up(runtime, warm, policies, advance)
                    for concurrency in concurrencies:
                        part = f"speed-{concurrency}-{turn}-{next(iter(arms)).replace(' ', '_')}"
                        share = problems[turn : needed[concurrency] : _ROUNDS]
                        solved = await self._run(runtime, share, policies, concurrency, part, advance)
                        for name, policy in arms.items():
                            found.setdefault((concurrency, name), []).extend(solved.of(policy.label))
        rows = [_speed_row(name, concurrency, records) for (concurrency, name), records in sorted(found.items())]
        for row in rows:
            of_target = [other for other in rows if other["arm"] in _TARGETS]
            best = max(other["tokens_per_s"] for other in of_target if other["concurrency"] == row["concurrency"])
            row["times_target"] = row["tokens_per_s"] / best
        return [_reference_row(ours, problems[:_REFERENCE], self.max_tokens, advance), *rows]

    async def _warm_up(
        self, runtime: Runtime, problems: Sequence[TaskProblem], policies: Sequence[PolicySpec], advance: Advance
    ) -> None:
        """Have each policy solve these, and keep nothing of it."""
        limits = Limits(max_tokens=self.max_tokens)
        requests = [policy.request(problem.question, limits=limits) for policy in policies for problem in problems]
        done = 0
        async with aclosing(runtime.solve_all(requests, _WARMED_UP_AT_ONCE)) as solved:
            async for _ in solved:
                advance("warming up", done := done + 1, len(requests))

    def _ours(self) -> BenchModel:
        """The model whose speed is measured: one with residual context, where there is one."""
        return next((model for model in self.models if model.arm != CONTROL), self.models[0])

    async def _run(
        self,
        runtime: Runtime,
        problems: Sequence[TaskProblem],
        policies: Sequence[PolicySpec],
        concurrency: int,
        name: str,
        advance: Advance,
    ) -> Report:
        limits = Limits(max_tokens=self.max_tokens)
        block = max(_BLOCK, concurrency * _PER_PLACE)
        settings = RunSettings(f"{self.task}/{self.split}", limits, concurrency=concurrency, block=block)

        def tell(progress: EvalProgress) -> None:
            advance(name, progress.done, progress.total)

        return await evaluate(runtime, problems, policies, settings, self.out / name, tell)


def _contestants(ours: BenchModel) -> Iterator[tuple[Engine, dict[str, PolicySpec]]]:
    """The engines whose speed is compared, with what each is asked to do."""
    for name, cores in _TARGETS.items():
        config = VllmConfig(model="zoo:nano-target", own_process=True, cores=cores)
        yield build_engine("target", config), {name: PolicySpec("target")}
    yield (
        _diffusion(ours.role, ours.model),
        {
            f"diffusion, {name}": PolicySpec("block_diffusion", {"engine": ours.role, **options})
            for name, options in _FAST.items()
        },
    )


def _diffusion(role: str, model: str) -> Engine:
    return build_engine(role, DiffusionConfig(kind="diffusion", model=model))


def _tokens_per_s(records: Sequence[Record]) -> float:
    return sum(record.tokens for record in records) / sum(record.share_s for record in records)


def _speed_row(arm: str, concurrency: int, records: Sequence[Record]) -> dict[str, Any]:
    return {
        "arm": arm,
        "concurrency": concurrency,
        "n": len(records),
        "accuracy": sum(record.correct for record in records) / len(records),
        "tokens_per_s": _tokens_per_s(records),
    }


def _reference_row(
    model: BenchModel, problems: Sequence[TaskProblem], max_tokens: int, advance: Advance
) -> dict[str, Any]:
    """How fast the reference writes: one problem after the other, without a cache."""
    import torch

    from reasonrt.diffusion.checkpoints import load_model
    from reasonrt.diffusion.decoding import read_decoding
    from reasonrt.diffusion.reference import write
    from reasonrt.diffusion.sampling import Drawing
    from reasonrt.diffusion.writers import Task
    from reasonrt.engines.tokenizer import HFTokenizer

    folder = model_folder(model.model)
    network, tokenizer = load_model(folder, torch.float32), HFTokenizer(folder)
    decoding = read_decoding({"threshold": _ACCURATE}, network.shape)
    ends = frozenset(network.shape.end_token_ids)
    tokens, right, seconds = 0, 0, 0.0
    for place, problem in enumerate(problems):
        advance("reference", place, len(problems))
        prompt = tokenizer.chat([Message("user", problem.question)])
        began = time.perf_counter()
        written = write(network, Task(tuple(prompt), max_tokens, ends), decoding, Drawing())
        seconds += time.perf_counter() - began
        tokens += len(written.tokens)
        right += f"\\boxed{{{problem.answer}}}" in tokenizer.decode(written.tokens)
    advance("reference", len(problems), len(problems))
    return {
        "arm": "reference, threshold",
        "concurrency": 1,
        "n": len(problems),
        "accuracy": right / len(problems),
        "tokens_per_s": tokens / seconds,
    }
