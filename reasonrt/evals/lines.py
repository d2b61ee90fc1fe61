"""JSONL files of problems and questions, as people have them: one object a line, under the usual names of fields."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reasonrt.errors import EvalError, shown
from reasonrt.files import FileKind

_FILE = FileKind(EvalError, "correct or remove it")
QUESTION = ("question", "problem", "prompt", "query", "input")
"""Names of the field with what is asked; the first one that a line has counts."""

ANSWER = ("answer", "final_answer", "expected_answer", "gold", "target", "solution", "output")
"""Names of the field with the known answer."""

ID = ("id", "custom_id", "unique_id", "problem_id")
GROUP = ("group", "subject", "category", "type")


def read_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the object of each line that is not blank.

    Raises:
        EvalError: the file cannot be read, a line is no JSON object, or there is none.
    """
    is_empty = True
    for number, value in _FILE.read_lines(file):
        is_empty = False
        if not isinstance(value, dict):
            raise EvalError(f"{file}, line {number} must be a JSON object, it is {shown(value)}; correct or remove it")
        yield number, value
    if is_empty:
        raise EvalError(f"{file} holds no problem; each line is a JSON object with question and answer")


def first_of(line: Mapping[str, Any], names: Sequence[str]) -> str:
    """The text under the first of `names` that the line has, in small letters or not; empty without one."""
    values = {name.lower(): value for name, value in line.items()}
    found = (values[name] for name in names if name in values)
    return next((str(value) for value in found if value is not None and str(value).strip()), "")
