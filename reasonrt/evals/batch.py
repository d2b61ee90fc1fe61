"""Many requests, solved once each: the results stand in a journal, and the same call continues after a kill."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from reasonrt.config import load_config
from reasonrt.errors import CapabilityError, EngineError, EvalError, ReasonRTError
from reasonrt.evals.journal import Journal
from reasonrt.evals.lines import ID, QUESTION, first_of, read_lines
from reasonrt.evals.run import PolicySpec, effective_settings
from reasonrt.policies.options import parse_policy
from reasonrt.runtime import Runtime
from reasonrt.sync import SyncRuntime, progress_bar
from reasonrt.types import Completion, Message, Request

ASKS_NOTHING = "needs a question, or messages with role and content"


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One request that was solved, or that cannot be.

    Attributes:
        id: of the line that it came from; of a request that came from no file, its place among them.
        key: of what was asked, by which policy and how; a batch does not ask it again.
        answer: as `Completion.answer`; empty where there is none.
        error: why it cannot be solved as it stands.
        details: what the policy found out.
        warnings: what was asked of it and did not take place, and why.
    """

    id: str
    key: str
    policy: str
    answer: str = ""
    content: str = ""
    reasoning: str = ""
    finish_reason: str = "error"
    seconds: float = 0.0
    usage: dict[str, dict[str, int]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    error: str = ""


def batch(
    requests: str | Path | Iterable[Request | str],
    policy: str = "target",
    *,
    out: str | Path,
    config: str | Path | None = None,
    runtime: SyncRuntime[Runtime] | None = None,
    concurrency: int = 16,
    has_bar: bool | None = None,
) -> list[BatchResult]:
    """Solve many requests; what the journal in `out` holds already is not asked again.

    Args:
        requests: a JSONL file, each line an object with `question` or `messages` and, if it has one, an `id`; or
            questions, or requests.
        policy: NAME or NAME@key=value,key=value, for what does not name a policy itself: lines and questions.
        out: the folder of the journal, `journal.jsonl`, a line for each result.
        config: as in `Runtime.from_config`; only the engines that the policies ask are started, if anything is left.
        runtime: one that runs, in place of `config`.
        concurrency: requests that are solved concurrently.
        has_bar: show a progress bar; None shows one in a terminal and in a notebook.

    Returns:
        The results in the order of the requests and with their ids, also where an earlier call has asked them; one
        whose `error` is set could not be solved as it stands.

    Raises:
        EvalError: a line is no request, the journal is of another run, or an engine is gone for good; what was
            finished is kept.
        ConfigError, RequestError: as `Runtime.prepare`.
    """
    name, options = parse_policy(policy)
    asked = _keyed(_read(requests, name, options))
    specs = {spec.label: spec for spec in (PolicySpec(each.policy, each.options) for _, _, each in asked)}
    used = runtime or SyncRuntime(
        Runtime.of(load_config(config), policies=[(spec.name, spec.options) for spec in specs.values()])
    )
    arms = {label: effective_settings(used.runtime, spec) for label, spec in specs.items()}
    bound = {"kind": "batch", "limits": asdict(used.runtime.limits)}
    with Journal(Path(out), bound, BatchResult, arms) as journal:
        known = {result.key for result in journal.records}
        left = [each for each in asked if each[1] not in known]
        if left:
            with used if runtime is None else nullcontext(), progress_bar("requests", len(asked), has_bar) as advance:
                advance(len(asked) - len(left))
                used.run(_solve(used.runtime, left, concurrency, journal, partial(advance, 1)))
        by_key = {result.key: result for result in journal.records}
    return [replace(by_key[key], id=name) for name, key, _ in asked]  # the line has that of the call that asked it


Keyed = tuple[str, str, Request]
"""An id, a key and what it stands for."""


async def _solve(
    runtime: Runtime,
    asked: Sequence[Keyed],
    concurrency: int,
    journal: Journal[BatchResult],
    advance: Callable[[], None],
) -> None:
    """What an engine's death ended is asked once more."""
    for attempt in (1, 2):
        lost: list[Keyed] = []
        requests = [request for _, _, request in asked]
        async with aclosing(runtime.solve_all(requests, concurrency)) as results:
            async for index, result in results:
                if isinstance(result, EngineError) and not isinstance(result, CapabilityError):
                    if attempt == 2:
                        raise EvalError(f"{result}; what was finished is kept, run it again") from None
                    lost.append(asked[index])
                    continue
                journal.add(result_of(*asked[index], result))
                advance()
        asked = lost


def result_of(name: str, key: str, request: Request, result: Completion | ReasonRTError) -> BatchResult:
    """What became of a request; `name` is its id."""
    label = PolicySpec(request.policy, request.options).label
    if isinstance(result, ReasonRTError):
        return BatchResult(name, key, label, error=str(result))
    return BatchResult(
        name,
        key,
        label,
        result.answer or "",
        result.content,
        result.reasoning,
        str(result.finish_reason),
        result.seconds,
        {engine: asdict(usage) for engine, usage in result.usage.items()},
        dict(result.details),
        dict(result.warnings),
    )


def _read(
    requests: str | Path | Iterable[Request | str], policy: str, options: Mapping[str, Any]
) -> list[tuple[str, Request]]:
    if isinstance(requests, str | Path):
        return list(_read_file(Path(requests), policy, options))
    return [
        (str(place), each if isinstance(each, Request) else Request.ask(each, policy, options=options))
        for place, each in enumerate(requests)
    ]


def _read_file(file: Path, policy: str, options: Mapping[str, Any]) -> Iterator[tuple[str, Request]]:
    for number, line in read_lines(file):
        request = request_of(line, policy, options)
        if request is None:
            raise EvalError(f"{file}, line {number} {ASKS_NOTHING}")
        yield first_of(line, ID) or f"{file.name}/{number}", request


def request_of(line: Mapping[str, Any], policy: str, options: Mapping[str, Any]) -> Request | None:
    """What a line asks; None for one that asks nothing."""
    body = line["body"] if isinstance(line.get("body"), dict) else line  # as a batch of OpenAI has it
    messages, question = body.get("messages"), first_of(body, QUESTION)
    if isinstance(messages, list) and messages and all(map(_is_message, messages)):
        said = tuple(Message(each["role"], each["content"]) for each in messages)
        return Request(said, policy, options)
    return Request.ask(question, policy, options=options) if question else None


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _keyed(asked: Iterable[tuple[str, Request]]) -> list[Keyed]:
    """Each with a key of what it asks; what is asked again has a number in it."""
    times = Counter[str]()
    keyed = []
    for name, request in asked:
        digest = key_of(request)
        times[digest] += 1
        keyed.append((name, f"{digest}-{times[digest]}", request))
    return keyed


def key_of(request: Request) -> str:
    """A digest of what a request asks, by which policy and how."""
    parts = [getattr(request, each.name) for each in fields(request) if each.compare]
    return hashlib.sha256(json.dumps(parts, default=_as_json).encode()).hexdigest()[:16]


def _as_json(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else dict(value)
