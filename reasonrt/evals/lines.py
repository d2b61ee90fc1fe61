"""JSONL files of problems and questions, as people have them: one object a line, under the usual names of fields."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reasonrt.errors import EvalError

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
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    is_empty = False
                    yield number, _object(file, number, line)
    except OSError as error:
        raise EvalError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise EvalError(f"{file} is not UTF-8 text (byte {error.start}); convert it") from None
    if is_empty:
        raise EvalError(f"{file} holds no problem; each line is a JSON object with question and answer")


def first_of(line: Mapping[str, Any], names: Sequence[str]) -> str:
    """The text under the first of `names` that the line has, in small letters or not; empty without one."""
    values = {name.lower(): value for name, value in line.items()}
    found = (values[name] for name in names if name in values)
    return next((str(value) for value in found if value is not None and str(value).strip()), "")


def short(value: Any) -> str:
    """A line or an object as a message shows it."""
    text = " ".join((value if isinstance(value, str) else json.dumps(value)).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _object(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep, or a number too long"
        raise EvalError(f"{file}, line {number} is not JSON ({reason}): {short(line)}; correct or remove it") from None
    if not isinstance(value, dict):
        raise EvalError(f"{file}, line {number} must be a JSON object, it is {short(value)}")
    return value
