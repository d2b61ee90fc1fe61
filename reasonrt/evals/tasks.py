"""What is evaluated on: problems with a known answer.

Tasks come from installed packages, by the entry point group `reasonrt.tasks` (the zoo's among them), or from a JSONL
file, whose fields `reasonrt.evals.lines` names. An entry point is a mapping-like object: `names()` and
`load(name, split, limit)`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from reasonrt.answers import find_answer, holds_answer
from reasonrt.errors import EvalError, ReasonRTError, shown
from reasonrt.evals.lines import ANSWER, GROUP, QUESTION, first_of, read_lines
from reasonrt.files import is_file
from reasonrt.plugins import FAILURES, PluginGroup, reason_of, require_members

GSM8K = "gsm8k"
GSM8K_FILES = tuple(
    Path(folder) / f"{GSM8K}{part}.jsonl" for folder in (".", "data") for part in ("", "_test", "_train")
)
_FETCHED = f"fetch it with datasets.load_dataset('openai/{GSM8K}', 'main', split='test').to_json('{GSM8K}.jsonl')"


@dataclass(frozen=True, slots=True)
class TaskProblem:
    """One question with its known answer.

    Attributes:
        group: what per-group tables are made by, such as `gcd/3`.
        is_exact: whether only an equal value is right, not what algebra can turn into one.
    """

    id: str
    question: str
    answer: str
    group: str = ""
    is_exact: bool = False


class TaskSource(Protocol):
    """The object that an entry point in `reasonrt.tasks` names."""

    def names(self) -> Sequence[str]: ...

    def load(self, name: str, split: str, limit: int) -> list[TaskProblem]: ...


def _read_source(name: str, loaded: Any) -> TaskSource:
    require_members(loaded, TaskSource)
    source: TaskSource = loaded
    if unnamed := [task for task in source.names() if not isinstance(task, str)]:
        raise TypeError(f"it names a task {unnamed[0]!r:.60}, which is no text")
    return source


TASKS = PluginGroup("task", "reasonrt.tasks", _read_source)


def task_names() -> list[str]:
    """What `load_task` knows by name, in alphabetical order."""
    return sorted(name for plugin in TASKS.all() if plugin.value is not None for name in plugin.value.names())


def load_task(name: str, limit: int, split: str = "test") -> list[TaskProblem]:
    """The first `limit` problems of a task by its name, or of a JSONL file by its path.

    Raises:
        EvalError: no such task or file, or a line of the file that is no problem.
    """
    if limit < 1:
        raise EvalError(f"limit must be at least 1, got {limit}")
    known: list[str] = []
    for plugin in TASKS.all():
        if plugin.value is None:
            continue  # named in the log, and left out
        names = plugin.value.names()
        if name in names or name.partition(":")[0] in names:
            return _load_from(plugin.value, plugin.announced_as, name, split, limit)
        known += names
    if name == GSM8K:
        file = next((file for file in GSM8K_FILES if file.exists()), None)
        if file is None:
            raise EvalError(f"{GSM8K} is not here; {_FETCHED}, or give the path of its JSONL file as the task")
        return read_problems(file, limit)
    if name.endswith(".jsonl") or is_file(name):
        return read_problems(Path(name), limit)
    raise EvalError(f"unknown task {shown(name)}; there are {', '.join(sorted(known))}, and any JSONL file by its path")


def read_problems(file: Path, limit: int) -> list[TaskProblem]:
    r"""Problems of a JSONL file. An answer after `####` (GSM8K's way), or in a `\boxed{}`, is taken from there."""
    return [_read_problem(file, number, line) for number, line in islice(read_lines(file), limit)]


def _load_from(source: TaskSource, announced_as: str, name: str, split: str, limit: int) -> list[TaskProblem]:
    try:
        problems = list(source.load(name, split, limit))
        if strange := [problem for problem in problems if not isinstance(problem, TaskProblem)]:
            raise TypeError(f"it gives {strange[0]!r:.60}, and not a TaskProblem")
    except ReasonRTError:
        raise
    except FAILURES as error:
        raise EvalError(f"task {shown(name)} of {announced_as} cannot be loaded: {reason_of(error)}") from error
    return problems


def _read_problem(file: Path, number: int, line: Mapping[str, Any]) -> TaskProblem:
    question, answer = first_of(line, QUESTION), first_of(line, ANSWER).strip()
    if not question or not answer:
        raise EvalError(
            f"{file}, line {number} needs a question ({', '.join(QUESTION)}) and an answer ({', '.join(ANSWER)}), it "
            f"is {shown(line)}"
        )
    answer = (find_answer(answer) if holds_answer(answer) else None) or answer
    return TaskProblem(f"{file.name}/{number}", question, answer, first_of(line, GROUP))


def content_hash(problems: Sequence[TaskProblem]) -> str:
    """A hash that changes with any question, answer or order."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.id, problem.question, problem.answer]).encode())
    return digest.hexdigest()[:16]
