"""Files, folders, globs and standard input as documents."""

import glob
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from reasonrt.errors import ConfigError
from reasonrt.types import Document

_MOST_BYTES = 1 << 28
_SNIFFED_BYTES = 8192
_PLACES = "name a file, a folder, a pattern, or - for standard input"


def read_documents(places: Sequence[str], stdin: BinaryIO | None = None) -> list[Document]:
    """The texts at `places`, in order; of a folder all that it holds but hidden and binary files.

    A byte order mark is left out, and every line ends with a line feed.

    Args:
        places: files, folders, patterns such as `logs/**/*.txt`, and `-` for standard input.
        stdin: None is that of this process.

    Raises:
        ConfigError: a place holds nothing, or a file that was named cannot be read as text; names it.
    """
    documents: list[Document] = []
    size = 0
    for place in places:
        num_before = len(documents)
        for document in _read_place(place, stdin):
            size += len(document.text)
            if size > _MOST_BYTES:
                raise ConfigError(f"the documents have more than {_MOST_BYTES:,} characters together; name fewer")
            documents.append(document)
        if len(documents) == num_before:
            raise ConfigError(f"{_shown(place)} holds no text; {_PLACES}")
    if not any(document.text.strip() for document in documents):
        raise ConfigError(f"{_shown(places[0])} is empty; name a file that holds a text")
    return documents


def _read_place(place: str, stdin: BinaryIO | None) -> Iterator[Document]:
    try:
        path = Path(place).expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, a folder that is closed, nobody's home
        raise ConfigError(f"cannot read {_shown(place)}: {getattr(error, 'strerror', error)}; {_PLACES}") from None
    if place == "-":
        yield _read(stdin or sys.stdin.buffer, "standard input")
    elif is_folder and place:
        for file in sorted(path.rglob("*")):
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts):
                yield from _read_found(file)
    elif is_there and place:  # pipes too: `<(zcat log.gz)`
        yield _read_named(path)
    elif any(mark in place for mark in "*?["):
        for name in sorted(glob.glob(str(path), recursive=True)):
            if Path(name).is_file():
                yield from _read_found(Path(name))
    else:
        raise ConfigError(f"there is no file {_shown(place)}; {_PLACES}")


def _read_found(file: Path) -> Iterator[Document]:
    """The text of a file that nobody has named; nothing for one that holds none."""
    try:
        with file.open("rb") as opened:
            if b"\0" in opened.read(_SNIFFED_BYTES):
                return
            opened.seek(0)
            text = _text(opened, str(file))
    except (OSError, UnicodeDecodeError):
        return
    yield Document(text, str(file))


def _read_named(file: Path) -> Document:
    try:
        with file.open("rb") as opened:
            return _read(opened, str(file))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}; {_PLACES}") from None


def _read(opened: BinaryIO, name: str) -> Document:
    try:
        return Document(_text(opened, name), name)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text (byte {error.start}); convert it") from None


def _text(opened: BinaryIO, name: str) -> str:
    content = opened.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{name} has more than {_MOST_BYTES:,} bytes; name a smaller file")
    content.decode("utf-8")  # which knows where in the file a byte is wrong
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()


def _shown(place: str) -> str:
    """A name as one short line."""
    return (place if place.isprintable() and place else repr(place))[:200]
