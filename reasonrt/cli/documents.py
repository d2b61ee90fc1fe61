"""Files, folders, globs and standard input as documents."""

import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from reasonrt.errors import ConfigError
from reasonrt.types import Document

_MOST_BYTES = 1 << 28
_SNIFFED_BYTES = 8192


def read_documents(places: Sequence[str], stdin: TextIO = sys.stdin) -> list[Document]:
    """The texts at `places`, in order; of a folder all that it holds but hidden and binary files.

    Args:
        places: files, folders, patterns such as `logs/**/*.txt`, and `-` for standard input.

    Raises:
        ConfigError: a place holds nothing, or a file that was named cannot be read as text; names it.
    """
    documents: list[Document] = []
    for place in places:
        found = [Document(stdin.read(), "standard input")] if place == "-" else list(_read_place(place))
        if not found:
            raise ConfigError(f"{place} holds no text; name a file, a folder, a pattern, or - for standard input")
        documents += found
    size = sum(len(document.text) for document in documents)
    if size > _MOST_BYTES:
        raise ConfigError(f"the documents have {size:,} characters together, more than {_MOST_BYTES:,}; name fewer")
    if not any(document.text.strip() for document in documents):
        raise ConfigError(f"{places[0]} is empty; name a file that holds a text")
    return documents


def _read_place(place: str) -> Iterator[Document]:
    path = Path(place).expanduser()
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts):
                yield from _read_text(file)
    elif path.is_file():
        yield _named(path)
    elif any(mark in place for mark in "*?["):
        for name in sorted(glob.glob(str(path), recursive=True)):
            if Path(name).is_file():
                yield from _read_text(Path(name))
    else:
        raise ConfigError(f"there is no file {place[:200]}; name a file, a folder, a pattern, or - for standard input")


def _read_text(file: Path) -> Iterator[Document]:
    """The text of a file that nobody has named; nothing for one that holds none."""
    try:
        with file.open("rb") as opened:
            if b"\0" in opened.read(_SNIFFED_BYTES):
                return
        yield Document(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError):
        return


def _named(file: Path) -> Document:
    try:
        return Document(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text (byte {error.start}); convert it") from None
