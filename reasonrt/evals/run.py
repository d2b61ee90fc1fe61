"""The evaluation loop: policies on the same problems, in alternation, with a journal that survives a kill."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from reasonrt.answers import find_answer, same_answer
from reasonrt.engines.fingerprint import file_digest
from reasonrt.errors import CapabilityError, EngineError, EvalError, ReasonRTError
from reasonrt.evals.journal import Confirm, Journal, Record, pack, refuse
from reasonrt.evals.report import Report
from reasonrt.evals.tasks import TaskProblem, content_hash
from reasonrt.files import is_file
from reasonrt.policies.options import format_policy
from reasonrt.runtime import Runtime
from reasonrt.tasks import ahead
from reasonrt.types import Completion, Limits, Request
from reasonrt.writing import seed_of


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy with its options, as one arm of a comparison."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return format_policy(self.name, self.options)

    def request(self, question: str, **fields: Any) -> Request:
        """A question to this policy; `fields` are those of `Request`."""
        return Request.ask(question, self.name, options=self.options, **fields)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What binds a journal to its run; `concurrency` is part of it because times are.

    Attributes:
        block: None: policies alternate problem by problem, and every place is filled again when it becomes free. To
            measure time, a policy has the engines for itself: so many problems before the next one has its turn, so
            that all policies share a drift of the machine; at the end of each block, places are empty.
        keeps_texts: whether records hold whole texts; nothing else hangs on it, so that it binds no journal.
    """

    task: str
    limits: Limits = field(default_factory=Limits)
    concurrency: int = 16
    temperature: float = 0.0
    seed: int = 0
    prompt_suffix: str = ""
    block: int | None = None
    keeps_texts: bool = False


@dataclass(frozen=True, slots=True)
class EvalProgress:
    """How far a run is, in (policy, problem) pairs; `label` is the policy that just ran."""

    done: int
    total: int
    label: str


async def evaluate(
    runtime: Runtime,
    problems: Sequence[TaskProblem],
    policies: Sequence[PolicySpec],
    settings: RunSettings,
    out: Path,
    on_progress: Callable[[EvalProgress], None] = lambda progress: None,
    on_record: Callable[[Record], None] = lambda record: None,
    confirm: Confirm = refuse,
) -> Report:
    """Solve every problem by every policy, grade, journal, and report.

    What the journal in `out` already holds is not done again. A policy may join the run later; one that is in it
    continues only with the options, defaults and engines that it began with.

    Args:
        confirm: asked whether records of a journal that has lost its first line are of this run.

    Raises:
        EvalError: the journal belongs to another run or cannot be written; an engine is gone for good.
    """
    labels = [policy.label for policy in policies]
    with _open_journal(runtime, problems, policies, settings, out, confirm) as journal:
        done = {(record.label, record.problem) for record in journal.records}
        total = len(problems) * len(policies)
        for block in _blocks(problems, policies, settings.block):
            left = [(policy, problem) for policy, problem in block if (policy.label, problem.id) not in done]
            async with aclosing(_solve_block(runtime, left, settings)) as solved:
                async for record in solved:
                    await asyncio.to_thread(journal.add, record)
                    done.add((record.label, record.problem))
                    on_record(record)
                    on_progress(EvalProgress(len(done), total, record.label))
    records = [record for record in journal.records if record.label in labels]
    return Report(settings.task, labels, records)


def check_run(
    runtime: Runtime,
    problems: Sequence[TaskProblem],
    policies: Sequence[PolicySpec],
    settings: RunSettings,
    out: Path,
    confirm: Confirm = refuse,
) -> None:
    """Refuse what `evaluate` would refuse; `runtime` need not have been started.

    Raises:
        EvalError, RequestError, ConfigError: as `evaluate`.
    """
    with _open_journal(runtime, problems, policies, settings, out, confirm):
        pass


def _open_journal(
    runtime: Runtime,
    problems: Sequence[TaskProblem],
    policies: Sequence[PolicySpec],
    settings: RunSettings,
    out: Path,
    confirm: Confirm,
) -> Journal[Record]:
    labels = [policy.label for policy in policies]
    if len(set(labels)) < len(labels) or not labels:
        raise EvalError(f"name each policy once, got {', '.join(labels) or 'none'}")
    _check_reports()
    bound = asdict(settings) | {"problems": content_hash(problems)}
    del bound["keeps_texts"]
    arms = {policy.label: effective_settings(runtime, policy) for policy in policies}
    return Journal(out, bound, Record, arms, confirm)


def effective_settings(runtime: Runtime, policy: PolicySpec) -> dict[str, Any]:
    """What decides the answers of a policy besides the request: its options, files that they name, and its engines.

    Raises:
        RequestError, ConfigError: as `Runtime.prepare`.
    """
    prepared = runtime.prepare(policy.request("?"))
    options = prepared.policy.settings
    return {
        "options": dict(options),
        "files": {name: file_digest(Path(name)) for name in _texts(options) if is_file(name)},
        "engines": {role: engine.fingerprint for role, engine in prepared.engines.items()},
    }


def _texts(value: Any) -> Iterator[str]:
    """The texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | Sequence):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _check_reports() -> None:
    """Fail before the run, and not at its end, where a report cannot be made."""
    try:
        import scipy  # noqa: F401
    except ImportError:
        raise EvalError("reports need scipy: pip install 'reasonrt[eval]'") from None


def _blocks(
    problems: Sequence[TaskProblem], policies: Sequence[PolicySpec], block: int | None
) -> Iterator[list[tuple[PolicySpec, TaskProblem]]]:
    """What is solved without a pause, in its order; each policy is the first as often as the others."""
    size = block or 1
    turns = [
        [(policy, problem) for problem in problems[start : start + size]]
        for start in range(0, len(problems), size)
        for turn in [start // size % len(policies)]
        for policy in [*policies[turn:], *policies[:turn]]
    ]
    return iter(turns if block else [[pair for turn in turns for pair in turn]])


async def _solve_block(
    runtime: Runtime, pairs: list[tuple[PolicySpec, TaskProblem]], settings: RunSettings
) -> AsyncGenerator[Record, None]:
    """Yield records as problems end. Problems that an engine's death ended are tried once more, then the run ends."""
    for attempt in (1, 2):
        lost: list[tuple[PolicySpec, TaskProblem]] = []
        # neither grading nor writing records keeps a place empty
        async with aclosing(ahead(_solve_pairs(runtime, pairs, settings))) as solved:
            async for (policy, problem), result, (share_s, cpu_s) in solved:
                if isinstance(result, EngineError) and not isinstance(result, CapabilityError):
                    if attempt == 2:
                        raise EvalError(f"{result}; what was finished is kept, run it again") from None
                    lost.append((policy, problem))
                    continue
                record = await asyncio.to_thread(_record, policy.label, problem, result, share_s, cpu_s)
                if settings.keeps_texts and isinstance(result, Completion):
                    record = replace(record, packed=pack(result.text))
                yield record
        pairs = lost


async def _solve_pairs(
    runtime: Runtime, pairs: Sequence[tuple[PolicySpec, TaskProblem]], settings: RunSettings
) -> AsyncGenerator[tuple[tuple[PolicySpec, TaskProblem], Completion | ReasonRTError, tuple[float, float]], None]:
    """Each pair with its result and its shares of the wall clock and of the CPU time, in seconds, as they end.

    CPU time is told where a policy has the engines for itself: elsewhere nobody knows whose it is.
    """
    clocks = [_SharedClock(time.perf_counter), _SharedClock(_cpu_s if settings.block else float)]

    def requests() -> Iterator[Request]:
        for index, (policy, problem) in enumerate(pairs):
            for clock in clocks:
                clock.begin(index)
            yield policy.request(
                problem.question + settings.prompt_suffix,
                limits=settings.limits,
                temperature=settings.temperature,
                seed=seed_of(settings.seed, problem.id),
                cache_salt=f"{policy.label} at {settings.concurrency}",  # no arm reads what another has computed
            )

    async with aclosing(runtime.solve_all(requests(), settings.concurrency)) as results:
        async for index, result in results:
            share_s, cpu_s = (clock.end(index) for clock in clocks)
            yield pairs[index], result, (share_s, cpu_s)


class _SharedClock:
    """Divides what a clock counts, at each moment, among those that run."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._each_s, self._at = 0.0, clock()  # of one that had run all along
        self._begun: dict[int, float] = {}

    def begin(self, index: int) -> None:
        self._advance()
        self._begun[index] = self._each_s

    def end(self, index: int) -> float:
        self._advance()
        return self._each_s - self._begun.pop(index)

    def _advance(self) -> None:
        now = self._clock()
        if self._begun:
            self._each_s += (now - self._at) / len(self._begun)
        self._at = now


def _cpu_s() -> float:
    """CPU seconds that this process and all below it, in which engines compute, have used."""
    try:
        import psutil
    except ImportError:  # it comes with vLLM
        return time.process_time()
    here = psutil.Process()
    seconds = 0.0
    for process in (here, *here.children(recursive=True)):
        with suppress(psutil.Error):  # it has ended meanwhile
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def _record(
    label: str, problem: TaskProblem, result: Completion | ReasonRTError, share_s: float, cpu_s: float
) -> Record:
    known: dict[str, Any] = {
        "label": label,
        "problem": problem.id,
        "group": problem.group,
        "gold": problem.answer,
        "share_s": share_s,
        "cpu_s": cpu_s,
    }
    if isinstance(result, ReasonRTError):
        return Record(**known, error=str(result))
    text = result.content  # what stands inside the thinking is no answer
    answer = find_answer(text)
    return Record(
        **known,
        text=text,
        correct=same_answer(answer, problem.answer, problem.is_exact),
        answer=answer or "",
        seconds=result.seconds,
        engine_tokens={name: usage.generated for name, usage in result.usage.items()},
        finish_reason=str(result.finish_reason),
        usage={name: asdict(usage) for name, usage in result.usage.items()},
        details=dict(result.details),
        warnings=dict(result.warnings),
    )
