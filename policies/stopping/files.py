"""JSON in and out. What cannot be read is a `CalibrationError` of one line that names the place."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from reasonrt.errors import CalibrationError

T = TypeVar("T")


def canonical(value: Any) -> str:
    """One text for equal values, on one line; what a hash is taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_of_numpy)


def parse(adapter: TypeAdapter[T], value: Any, where: str) -> T:
    """A value of the adapter's type from the JSON value of one."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"])) or "value"
        raise CalibrationError(f"{where}: {path}: {first['msg']}; mend it or leave it out") from None
    except CalibrationError as error:
        raise CalibrationError(f"{where}: {error}") from None


def parse_text(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # the second: brackets without end
        raise CalibrationError(f"{where} is no JSON: {error}; mend it or leave it out") from None


def read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise CalibrationError(f"cannot read {path}: {error.strerror}; name another file") from None
    except UnicodeDecodeError:
        raise CalibrationError(f"cannot read {path}: it is no text; name another file") from None


def read_lines(path: Path) -> list[Any]:
    """The values of a JSON Lines file, at least one."""
    lines = enumerate(read_text(path).split("\n"), 1)
    values = [parse_text(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    if not values:
        raise CalibrationError(f"{path} is empty; record traces first")
    return values


def write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise CalibrationError(f"cannot write {path}: {error.strerror}; name another file") from None


def _of_numpy(value: Any) -> Any:
    return value.item()
