"""Problems as JSON lines, so that other programs can be asked the same questions."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from reasonrt.errors import EvalError
from reasonrt.evals.contexts.problem import ContextProblem
from reasonrt.files import FileKind

_FILE: Final = FileKind(EvalError, "write problems by write_problems", most_bytes=1 << 30)
_PROBLEM: TypeAdapter[ContextProblem] = TypeAdapter(ContextProblem)


def write_problems(file: Path, problems: Iterable[ContextProblem]) -> None:
    """One problem a line, with all of its fields; each document is its name and its text.

    Raises:
        EvalError: the file cannot be written.
    """
    _FILE.write(file, "".join(json.dumps(asdict(problem)) + "\n" for problem in problems))


def read_problems(file: Path) -> list[ContextProblem]:
    """What `write_problems` has written.

    Raises:
        EvalError: the file cannot be read, or a line of it is no problem.
    """
    return [_FILE.validate(_PROBLEM, value, f"{file}, line {number}") for number, value in _FILE.read_lines(file)]
