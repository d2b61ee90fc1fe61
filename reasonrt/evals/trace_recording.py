"""Recording what stopping rules are certified on: problems thought through to the end, with probes at checkpoints.

A problem is a request like any other, under the option `stopping: {record: true}`: the code that probes here probes
in serving.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from reasonrt.errors import EvalError, shown
from reasonrt.evals.journal import Confirm, Journal, refuse
from reasonrt.evals.tasks import TaskProblem
from reasonrt.policies.stopping.files import FILES
from reasonrt.policies.stopping.policy import Stopping
from reasonrt.policies.stopping.probes import SUFFIX, full_answer
from reasonrt.policies.stopping.schedule import Schedule
from reasonrt.policies.stopping.traces import TRACE, Checkpoint, Fingerprints, Trace, TraceSet, problem_hash
from reasonrt.runtime import Runtime
from reasonrt.types import Completion, Limits, Request
from reasonrt.writing import seed_of

_NEVER_TOO_BUSY = 1_000_000


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """What is recorded, and how.

    Attributes:
        policy, options: of the policy that generates.
        schedule: where it is probed.
        suffix: what a probe appends.
    """

    policy: str = "target"
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)
    suffix: str = SUFFIX
    limits: Limits = field(default_factory=Limits)
    temperature: float = 0.0
    seed: int = 0
    concurrency: int = 16

    def request(self, question: str, problem_id: str) -> Request:
        """Problems have seeds of their own: with one for all, like distributions would draw alike."""
        how = {"record": True, "schedule": self.schedule, "suffix": self.suffix, "max_running": _NEVER_TOO_BUSY}
        return Request.ask(
            question,
            self.policy,
            options={**self.options, "stopping": how, "risk": None},
            limits=replace(self.limits, deadline_s=None),  # how long recording takes says nothing of serving
            temperature=self.temperature,
            seed=seed_of(self.seed, problem_id),
        )


@dataclass(frozen=True, slots=True)
class RecordedTrace:
    """One line of the journal; `trace` is the JSON of a `Trace`."""

    problem: str
    trace: dict[str, Any]


async def record_traces(
    runtime: Runtime,
    problems: Sequence[TaskProblem],
    settings: TraceSettings,
    out: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    confirm: Confirm = refuse,
) -> TraceSet:
    """Record every problem; what the journal in `out` holds is not done again, so a recording can grow.

    Raises:
        EvalError: a problem is there twice, the journal belongs to another recording or holds another problem of the
            same name, or a request failed twice.
    """
    _refuse_duplicates(problems)
    fingerprints = _fingerprints(runtime, settings)
    bound = {
        "limits": asdict(settings.limits),
        "seed": settings.seed,
        "fingerprints": asdict(fingerprints),
    }
    with Journal(out, bound, RecordedTrace, confirm=confirm, no_longer=("problems",)) as journal:
        known = _known(journal)
        if other := [each.id for each in problems if each.id in known and not _is_of(known[each.id], each)]:
            raise EvalError(f"{journal.path} holds another problem of the name {shown(other[0])}; give another --out")
        for attempt in (1, 2):
            known = _known(journal)
            left = [problem for problem in problems if problem.id not in known]
            num_left = len(left)
            requests = [settings.request(problem.question, problem.id) for problem in left]
            async with aclosing(runtime.solve_all(requests, settings.concurrency)) as results:
                async for index, result in results:
                    if isinstance(result, Completion):
                        trace = trace_of(left[index], result)
                        journal.add(RecordedTrace(left[index].id, asdict(trace)))
                        num_left -= 1
                        on_progress(len(problems) - num_left, len(problems))
                    elif attempt == 2:
                        raise EvalError(
                            f"problem {left[index].id} failed twice: {result}; what is recorded is kept, run it again"
                        ) from result
        known = _known(journal)
    traces = tuple(FILES.validate(TRACE, known[problem.id], f"trace {problem.id}") for problem in problems)
    is_cut_off = any(trace.full_answer is None for trace in traces)
    return TraceSet(traces, replace(fingerprints, is_cut_off=is_cut_off))


def trace_of(problem: TaskProblem, completion: Completion) -> Trace:
    """The trace that a recorded request has seen; without checkpoints where the runtime ended it at a limit."""
    seen = completion.details.get("stopping", {}).get("checkpoints", [])
    return Trace(
        problem.id,
        [Checkpoint(**point) for point in seen],
        sum(len(step.token_ids) for step in completion.steps),
        full_answer(completion),
        problem.answer,
        problem.group,
        problem_hash(problem.question),
        problem.is_exact,
    )


def _known(journal: Journal[RecordedTrace]) -> dict[str, dict[str, Any]]:
    """The traces that are recorded, by the names of their problems."""
    return {record.problem: record.trace for record in journal.records}


def _is_of(trace: Mapping[str, Any], problem: TaskProblem) -> bool:
    return bool((trace.get("content_hash"), trace.get("gold")) == (problem_hash(problem.question), problem.answer))


def _refuse_duplicates(problems: Sequence[TaskProblem]) -> None:
    """Refuse problems that are there twice now; else they would be found only at the end of a recording."""
    known: dict[str, str] = {}
    for problem in problems:
        for name in (problem.id, problem_hash(problem.question)):
            if name in known:
                raise EvalError(f"problem {shown(problem.id)} is there twice (also as {shown(known[name])}); keep one")
            known[name] = problem.id


def _fingerprints(runtime: Runtime, settings: TraceSettings) -> Fingerprints:
    request = settings.request("?", "?")
    prepared = runtime.prepare(request)
    assert isinstance(prepared.policy, Stopping)  # noqa: S101 - for the type checker: the request says so
    return prepared.policy.fingerprints(prepared.request, prepared.engines)
