"""The one door for files: what is read is regular, bounded and of the right shape; what is written is whole or absent.

Text is UTF-8, in which no object has a key twice, nothing is nested without end, and YAML refers to nothing else.
"""

import errno
import json
import os
import re
import stat
import tempfile
from collections.abc import Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from reasonrt.errors import ConfigError, ReasonRTError, in_one_line

MAX_DEPTH = 64
_MOST_ERRORS = 1000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileKind:
    """How files of one kind are read and written; whatever is wrong is one line.

    Attributes:
        error: what is raised.
        way_out: how a message ends.
        most_bytes: of a file that is read.
    """

    error: type[ReasonRTError]
    way_out: str
    most_bytes: int = 1 << 27

    def read_bytes(self, path: Path) -> bytes:
        """Raises: `error`: it cannot be read, is too large, or is a device, a pipe or a folder."""
        try:
            # a pipe is not waited for
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(number, "rb") as file:
                state = os.fstat(number)
                if not stat.S_ISREG(state.st_mode):
                    raise self.error(f"cannot read {path}: it is no regular file; {self.way_out}")
                is_small = state.st_size <= self.most_bytes
                content = file.read(self.most_bytes + 1) if is_small else b""
        except (OSError, ValueError) as error:  # the second: a name with a zero byte
            raise self.error(f"cannot read {path}: {_reason(error)}; {self.way_out}") from None
        if not is_small or len(content) > self.most_bytes:
            raise self.error(f"{path} has more than {self.most_bytes:,} bytes; {self.way_out}")
        return content

    def read_text(self, path: Path) -> str:
        try:
            return self.read_bytes(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.error(f"{path} is not UTF-8 text (byte {error.start}); {self.way_out}") from None

    def read_json(self, path: Path) -> Any:
        return self.parse_json(self.read_text(path), str(path))

    def read_yaml(self, path: Path) -> Any:
        """The value of a YAML file; a message quotes nothing of it, since it may hold keys."""
        try:
            return parse_yaml(self.read_text(path))
        except ValueError as error:
            raise self.error(f"{path} is not YAML: {error}; {self.way_out}") from None

    def read_lines(self, path: Path) -> Iterator[tuple[int, Any]]:
        """Number and value of each line of a JSON Lines file that is not blank."""
        for number, line in enumerate(self.read_text(path).split("\n"), 1):
            if line.strip():
                yield number, self.parse_json(line, f"{path}, line {number}")

    def parse_json(self, text: str | bytes, where: str) -> Any:
        try:
            return parse_json(text)
        except ValueError as error:
            raise self.error(f"{where} is no JSON: {error}; {self.way_out}") from None

    def validate(self, adapter: TypeAdapter[T], value: Any, where: str) -> T:
        """A value of the adapter's type from the JSON value of one."""
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            if (num_errors := error.error_count()) > _MOST_ERRORS:  # to list millions of them takes seconds
                raise self.error(f"{where}: {num_errors:,} values in it are wrong; {self.way_out}") from None
            first = error.errors(include_url=False, include_input=False)[0]
            path = in_one_line(".".join(map(str, first["loc"]))) or "value"
            message = in_one_line(first["msg"].removeprefix("Value error, "), 200)
            raise self.error(f"{where}: {path}: {message}; {self.way_out}") from None
        except ReasonRTError as error:
            raise self.error(f"{where}: {error}") from None

    def write(self, path: Path, content: str | bytes) -> None:
        """Raises: `error`: it cannot be written; what was there before is there still."""
        try:
            write_whole(path, content)
        except (OSError, ValueError) as error:
            raise self.error(f"cannot write {path}: {_reason(error)}; {self.way_out}") from None


class Figure(Protocol):
    """What is used of matplotlib's."""

    def savefig(self, target: BytesIO, /, **settings: Any) -> None: ...


def parse_json(text: str | bytes) -> Any:
    """The JSON value of a text.

    Raises:
        ValueError: it is none, is nested deeper than `MAX_DEPTH`, or an object in it has a key twice.
    """
    try:
        value = json.loads(text if isinstance(text, str) else text.decode(), object_pairs_hook=_without_twins)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from None
    except ValueError as error:
        raise ValueError(_in_our_words(error)) from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _parts(outer)]
        if not level:
            return value
    raise ValueError(f"it is nested deeper than {MAX_DEPTH}")


def parse_yaml(text: str) -> Any:
    """The value of one YAML document without aliases and dates.

    Raises:
        ValueError: it is none; says where, and quotes nothing of it.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_YamlLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"an alias, which is not taken{_place(event.start_mark)}")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested deeper than {MAX_DEPTH}{_place(event.start_mark)}")
        return yaml.load(text, Loader=_YamlLoader)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{_UNQUOTED.sub('…', error.problem or 'it')}{_place(error.problem_mark)}") from None
    except yaml.YAMLError:
        raise ValueError("it holds characters that no text has") from None
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise ValueError(_in_our_words(error)) from None


def write_whole(path: Path, content: str | bytes) -> None:
    """Others who read or write the same file meet all of it or what was there before.

    Raises:
        OSError: it cannot be written.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():  # a pipe or a terminal
        path.write_bytes(data)
        return
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".unfinished-", delete=False, buffering=0) as aside:
        try:
            os.fchmod(aside.fileno(), _mode(path))
            append_whole(aside.fileno(), data)
            Path(aside.name).replace(path)
        except OSError:
            Path(aside.name).unlink(missing_ok=True)
            raise


def write_figure(path: Path, figure: Figure, **settings: Any) -> None:
    """A figure of matplotlib in the format that the suffix names.

    Raises:
        ConfigError: there is no such format, or it cannot be written.
    """
    content = BytesIO()
    try:
        figure.savefig(content, format=path.suffix[1:] or "none", **settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
    except (OSError, ValueError) as error:
        reason = _reason(error) if isinstance(error, OSError) else f"{path.suffix or 'no suffix'} is no format"
        raise ConfigError(f"cannot write {path}: {reason}; give a PNG file that can be written") from None


def is_file(name: str) -> bool:
    """Whether a text, of whatever length, is the name of a regular file."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a text that is too long for a name, or holds a zero byte
        return False


def open_log(path: Path) -> int:
    """The descriptor of a file that lines are added to; it is made where there is none.

    Raises:
        OSError: it cannot be opened, or is a device or a pipe.
    """
    number = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "it is no regular file")
    return number


def append_whole(number: int, content: bytes) -> None:
    """Add `content` to an open file, on the disk when this returns; the file is as it was if it cannot be.

    Raises:
        OSError: it cannot be written.
    """
    end = os.lseek(number, 0, os.SEEK_END)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(number, left) :]
        os.fsync(number)
    except BaseException:
        with suppress(OSError):
            os.ftruncate(number, end)
        raise


class _YamlLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Without dates, which nothing of ours is, and without keys that stand twice."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(names)) < len(names):
                raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_UNQUOTED = re.compile(r"'(?!<)[^']{2,}'|\"[^\"]{2,}\"")  # what a message quotes of the text; '<block end>' is none


def _place(mark: Any) -> str:
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {in_one_line(twin)!r} stands twice")
    return found


def _parts(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _mode(path: Path) -> int:
    """Of a file that is written anew: as it was, or as others are made here."""
    if path.exists():
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _in_our_words(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte {error.start})"
    return "a number in it has thousands of digits" if "set_int_max_str_digits" in str(error) else str(error)


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
