"""Problems as JSON lines, so that other programs can be asked the same questions."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from reasonrt.errors import EvalError
from reasonrt.evals.contexts.problem import ContextProblem
from reasonrt.types import Document


def write_problems(file: Path, problems: Iterable[ContextProblem]) -> None:
    """One problem a line, with all of its fields; each document is its name and its text.

    Raises:
        EvalError: the file cannot be written.
    """
    try:
        with file.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(asdict(problem)) + "\n" for problem in problems)
    except OSError as error:
        raise EvalError(f"cannot write {file}: {error.strerror}") from None


def read_problems(file: Path) -> list[ContextProblem]:
    """What `write_problems` has written.

    Raises:
        EvalError: the file cannot be read, or a line of it is no problem.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise EvalError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise EvalError(f"{file} is not UTF-8 text (byte {error.start}); convert it") from None
    return [_problem(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _problem(file: Path, number: int, line: str) -> ContextProblem:
    try:
        fields = json.loads(line)
        documents = tuple(Document(**document) for document in fields.pop("documents"))
        return ContextProblem(documents=documents, **fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EvalError(
            f"{file}, line {number} is no problem ({str(error)[:60]}); write it by write_problems"
        ) from None
