"""Recording what program search is measured and calibrated on: every candidate of each question, and a direct call.

A question is a request like any other, without early stop, so that each way of choosing can be computed from one
recording, on the same candidates.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from reasonrt.errors import EvalError, shown
from reasonrt.evals.contexts import ContextProblem
from reasonrt.evals.journal import Confirm, Journal, refuse
from reasonrt.policies.program_search import ProgramSearch
from reasonrt.programs.trials import Evidence, Status, Trial
from reasonrt.runtime import Runtime
from reasonrt.types import Completion, Limits, Request
from reasonrt.writing import seed_of

POLICY = "program_search"
_DIRECT_MARGIN_TOKENS = 64
_CHARACTERS_PER_TOKEN = 3  # of what a direct call is given of a context that does not fit: numbers take many tokens


@dataclass(frozen=True, slots=True)
class ProgramSettings:
    """What is recorded, and how.

    Attributes:
        options: of `program_search`; all of its candidates run to their end.
        has_direct: also ask directly, with as much of the context as fits: its beginning and its end.
        direct_tokens: of a direct answer.
        direct_window: of its prompt and answer, tokens; None is the engine's whole window.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    has_direct: bool = True
    direct_tokens: int = 64
    direct_window: int | None = None
    seed: int = 0
    concurrency: int = 8


@dataclass(frozen=True, slots=True)
class RecordedQuestion:
    """One line of the journal.

    Attributes:
        kind: of the answer, as `reasonrt.programs.values` reads it.
        context_tokens: of the whole context and the question, in the engine's vocabulary.
        trials: JSON of `Trial`s, all of them.
        usage: of the run, by engine: tokens generated, prefilled and cached.
        seconds: from the start of the run to its end, while others ran concurrently; `share_s`: of the wall clock.
        direct: the answer of the direct call; None where it was not asked. `direct_usage`, `direct_seconds`: of it.
        trace_hash: of the run.
    """

    problem: str
    task: str
    group: str
    num_characters: int
    context_tokens: int
    question: str
    answer: str
    kind: str
    trials: list[dict[str, Any]]
    usage: dict[str, dict[str, int]]
    seconds: float
    trace_hash: str
    direct: str | None = None
    direct_usage: dict[str, dict[str, int]] = field(default_factory=dict)
    direct_seconds: float = 0.0

    def candidates(self) -> list[Trial]:
        """The trials as they were."""
        return [_trial(value) for value in self.trials]


async def record_programs(
    runtime: Runtime,
    problems: Sequence[ContextProblem],
    settings: ProgramSettings,
    out: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    confirm: Confirm = refuse,
) -> list[RecordedQuestion]:
    """Record every question; what the journal in `out` holds is not done again.

    Raises:
        EvalError: a question is there twice, the journal belongs to another recording, or a request failed twice.
    """
    if repeated := [name for name, times in Counter(problem.id for problem in problems).items() if times > 1]:
        raise EvalError(f"question {shown(repeated[0])} is there twice; name each task and length once")
    options = {**settings.options, "weights": None, "direct": "never", "stop_early": False, "trace": True}
    policy = ProgramSearch.from_options(options)
    engine = runtime.engines[policy.engine]
    bound = {
        "options": dict(policy.settings),
        "limits": asdict(settings.limits),
        "seed": settings.seed,
        "direct": settings.direct_tokens if settings.has_direct else None,
        "direct_window": settings.direct_window,
        "engines": {role: runtime.engines[role].fingerprint for role in policy.engines},
    }
    with Journal(out, bound, RecordedQuestion, confirm=confirm) as journal:
        for attempt in (1, 2):
            known = {record.problem for record in journal.records}
            left = [problem for problem in problems if problem.id not in known]
            num_left = len(left)
            on_progress(len(problems) - num_left, len(problems))
            requests = [_request(problem, options, settings) for problem in left]
            async with aclosing(runtime.solve_all(requests, settings.concurrency)) as results:
                async for index, result in results:
                    if isinstance(result, Completion):
                        record = _record(left[index], result, engine.tokenizer)
                        if settings.has_direct:
                            record = await _with_direct(runtime, left[index], record, settings, policy.engine)
                        journal.add(record)
                        num_left -= 1
                        on_progress(len(problems) - num_left, len(problems))
                    elif attempt == 2:
                        raise EvalError(
                            f"question {left[index].id} failed twice: {result}; what is recorded is kept, run it again"
                        ) from result
        by_name = {record.problem: record for record in journal.records}
        return [by_name[problem.id] for problem in problems]


def _request(problem: ContextProblem, options: Mapping[str, Any], settings: ProgramSettings) -> Request:
    kind = "set" if problem.kind == "pairs" else problem.kind
    return Request.ask(
        problem.question,
        POLICY,
        context=problem.documents,
        options={**options, "answer": kind},
        limits=settings.limits,
        seed=seed_of(settings.seed, problem.id),
    )


def _record(problem: ContextProblem, completion: Completion, tokenizer: Any) -> RecordedQuestion:
    trace = completion.details["trace"]
    characters = min(problem.num_characters, 200_000)  # the rest is like it: tokenizing it all would take long
    sample = "".join(document.text for document in problem.documents)[:characters]
    tokens = round(len(tokenizer.encode(sample)) * problem.num_characters / max(1, characters))
    return RecordedQuestion(
        problem.id,
        problem.task,
        problem.group,
        problem.num_characters,
        tokens,
        problem.question,
        problem.answer,
        "set" if problem.kind == "pairs" else problem.kind,
        [{name: value for name, value in trial.items() if name != "turns"} for trial in trace["trials"]],
        _usage(completion),
        completion.seconds,
        str(completion.details["trace_hash"]),
    )


async def _with_direct(
    runtime: Runtime, problem: ContextProblem, record: RecordedQuestion, settings: ProgramSettings, role: str
) -> RecordedQuestion:
    whole = runtime.engines[role].max_model_len
    window = min(settings.direct_window or whole, whole) - settings.direct_tokens - _DIRECT_MARGIN_TOKENS
    text = "\n\n".join(document.text for document in problem.documents)
    most = max(0, window - len(problem.question)) * _CHARACTERS_PER_TOKEN
    asked = "Answer with the answer alone."
    while True:
        shown = text if len(text) <= most else f"{text[: most // 2]}\n...\n{text[len(text) - most // 2 :]}"
        question = f"{shown}\n\n{problem.question}\n{asked}"
        if len(runtime.engines[role].tokenizer.encode(question)) <= window:
            break
        if not most:
            raise EvalError(
                f"question {problem.id} alone does not fit engine {role!r}; take a model with a longer window"
            )
        most = most * 3 // 4
    limits = replace(settings.limits, max_tokens=settings.direct_tokens)
    completion = await runtime.complete(Request.ask(question, "target", options={"engine": role}, limits=limits))
    return replace(
        record, direct=completion.content, direct_usage=_usage(completion), direct_seconds=completion.seconds
    )


def _usage(completion: Completion) -> dict[str, dict[str, int]]:
    return {
        name: {"generated": spent.generated, "prefilled": spent.prefilled, "cached": spent.cached, "calls": spent.calls}
        for name, spent in completion.usage.items()
    }


def _trial(value: Mapping[str, Any]) -> Trial:
    known = {name: each for name, each in value.items() if name not in ("turns", "status", "evidence", "confidences")}
    return Trial(
        **known,
        status=Status(value["status"]),
        confidences=tuple(value["confidences"]),
        evidence=tuple(Evidence(**each) for each in value["evidence"]),
    )
