"""Recording what routers learn from: at each step, what draft and target would write, and what comes of it.

The value of a step is measured by rollouts: the share of the target's completions after it that end right. The
recorded history is mixed, as it is when a router is at work: mostly the better step, sometimes the draft's anyway.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reasonrt.answers import find_answer, same_answer
from reasonrt.calibration.routers.step_pairs import DRAFT, TARGET, RecordedProblem
from reasonrt.engines.whole import generate_whole
from reasonrt.errors import EvalError, ReasonRTError
from reasonrt.evals.journal import Confirm, Journal, refuse
from reasonrt.evals.run import PolicySpec, effective_settings
from reasonrt.evals.tasks import TaskProblem
from reasonrt.routers.features import TOP_LOGPROBS
from reasonrt.runtime import Runtime
from reasonrt.tasks import run_bounded
from reasonrt.transcript import Transcript
from reasonrt.types import Completion, FinishReason, Limits, Request, Step
from reasonrt.writing import sampling_for, seed_of, steps_of, write_step


@dataclass(frozen=True, slots=True)
class RecordingSettings:
    """How values are measured.

    Attributes:
        rollouts: target completions per value: a greedy one, which is what a greedy request would get, and samples.
        temperature: of the samples.
        draft_share: how often the draft's step is taken although the target's is better.
    """

    rollouts: int = 1
    temperature: float = 0.6
    draft_share: float = 0.3
    max_tokens: int = 640
    concurrency: int = 32
    seed: int = 0


async def record_pairs(
    runtime: Runtime,
    problems: Sequence[TaskProblem],
    settings: RecordingSettings,
    out: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    confirm: Confirm = refuse,
) -> list[RecordedProblem]:
    """Record every problem; what the journal in `out` holds is not done again, so a recording can grow.

    Raises:
        EvalError: the journal belongs to another recording, or a problem of it asks something else now.
        EngineError: an engine died twice on one problem.
    """
    bound = {
        "rollouts": settings.rollouts,
        "temperature": settings.temperature,
        "draft_share": settings.draft_share,
        "max_tokens": settings.max_tokens,
        "seed": settings.seed,
        "draft": effective_settings(runtime, PolicySpec("draft")),
        "target": effective_settings(runtime, PolicySpec("target")),
    }
    with Journal(out, bound, RecordedProblem, confirm=confirm) as journal:
        known = {record.problem: record.question for record in journal.records}
        for problem in problems:
            if known.get(problem.id, problem.question) != problem.question:
                raise EvalError(f"{journal.path} holds another question of {problem.id}; give another --out")
        left = (problem for problem in problems if problem.id not in known)
        calls = (_Recording(runtime, problem, settings).pairs for problem in left)
        async with aclosing(run_bounded(calls, settings.concurrency)) as records:
            async for record in records:
                journal.add(record)
                on_progress(len(journal.records), len(problems))
        asked = {problem.id for problem in problems}
        return [record for record in journal.records if record.problem in asked]


class _Recording:
    """One problem that is being recorded."""

    def __init__(self, runtime: Runtime, problem: TaskProblem, settings: RecordingSettings) -> None:
        self._runtime, self._problem, self._settings = runtime, problem, settings
        self._request = Request.ask(problem.question, "target", limits=Limits(settings.max_tokens))
        self._transcript = Transcript.of(self._request, runtime.engines)

    async def pairs(self) -> RecordedProblem:
        rng = random.Random(f"{self._settings.seed}/{self._problem.id}")
        draft, transcript = self._runtime.engines["draft"], self._transcript
        pairs: list[dict[str, Any]] = []
        ahead, value = await self._completed(())  # what the target would write from here, and its value
        while ahead and transcript.room(draft):
            targeted = ahead[0]
            sampling = sampling_for(self._request, transcript, draft, logprobs=True, top_logprobs=TOP_LOGPROBS)
            drafted, end = await write_step(draft, transcript, sampling)
            if drafted is None or end is FinishReason.LENGTH:
                break  # there is no step to compare
            ahead = ahead[1:]
            if self._settings.rollouts > 1:  # a greedy one goes through the target's step anyway, samples need not
                ahead, value = await self._completed((targeted,))
            after_draft, draft_value = ahead, value
            if drafted.text != targeted.text:
                after_draft, draft_value = await self._completed((drafted,))
            takes_target = value > draft_value and rng.random() >= self._settings.draft_share
            pairs.append(_pair(drafted, targeted, (draft_value, value), TARGET if takes_target else DRAFT))
            transcript.commit(targeted if takes_target else drafted)
            if not takes_target:
                ahead, value = after_draft, draft_value
        return RecordedProblem(self._problem.id, self._problem.question, self._problem.group, pairs)

    async def _completed(self, steps: tuple[Step, ...]) -> tuple[list[Step], float]:
        """The target's greedy steps after the committed ones and `steps`; the share of completions that end right."""
        try:
            completions = await self._rollouts((*self._transcript.steps, *steps))
        except ReasonRTError as error:
            raise EvalError(
                f"a rollout of {self._problem.id} failed: {error}; run it again, what is done is kept"
            ) from error
        gold, is_exact = self._problem.answer, self._problem.is_exact
        grades = [same_answer(find_answer(done.content), gold, is_exact) for done in completions]
        return list(completions[0].steps[len(self._transcript.steps) + len(steps) :]), sum(grades) / len(grades)

    async def _rollouts(self, committed: tuple[Step, ...]) -> list[Completion]:
        """The greedy one first."""
        prepared = self._runtime.prepare(replace(self._request, committed=committed))
        is_finished, is_open = prepared.is_finished, prepared.prompt_opens_thinking
        transcript, target = Transcript.of(prepared.request, prepared.engines), prepared.engines["target"]
        if is_finished or transcript.num_tokens >= self._settings.max_tokens or not transcript.room(target):
            return [
                Completion(committed, FinishReason.STOP if is_finished else FinishReason.LENGTH, {}, 0.0, {}, is_open)
            ]
        samplings = [
            sampling_for(
                self._request,
                transcript,
                target,
                seed=seed_of(self._settings.seed, self._problem.id, transcript.num_tokens, index),
                temperature=self._settings.temperature if index else 0.0,
            )
            for index in range(self._settings.rollouts)
        ]
        async with aclosing(generate_whole(target, transcript.token_ids(target), samplings)) as ended:
            wholes = sorted([item async for item in ended], key=lambda item: item[0])
        written = [steps_of(target, transcript, whole) for _, whole in wholes]
        return [Completion((*committed, *steps), reason, {}, 0.0, {}, is_open) for steps, reason in written]


def _pair(drafted: Step, targeted: Step, values: tuple[float, float], taken: str) -> dict[str, Any]:
    return {
        "draft": drafted.text,
        "target": targeted.text,
        "draft_tokens": len(drafted.token_ids),
        "target_tokens": len(targeted.token_ids),
        "logprobs": [round(value, 4) for value in drafted.logprobs],
        "top_logprobs": [[round(value, 4) for value in top] for top in drafted.top_logprobs],
        "draft_value": values[0],
        "target_value": values[1],
        "taken": taken,
    }
