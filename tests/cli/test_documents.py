"""What is read where somebody names files, folders, patterns or standard input, and what is said of the rest."""

import io
import os
import threading
from pathlib import Path

import pytest

from reasonrt.cli import documents
from reasonrt.cli.documents import read_documents
from reasonrt.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small repository: text, a hidden file, a hidden folder, an image, and text that is not UTF-8."""
    files = {
        "b.txt": "béta\n".encode(),
        "a.md": b"alpha\n",
        "deep/er/c.log": b"gamma\n",
        "deep/er/.secret": b"hidden\n",
        ".git/config": b"hidden\n",
        "image.png": b"\x89PNG\0\0\1",
        "latin.txt": "café".encode("latin-1"),
        "empty.txt": b"",
    }
    for name, content in files.items():
        file = tmp_path / "repository" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path / "repository"


def read(*places: object, stdin: bytes = b"") -> dict[str, str]:
    """Name to text."""
    return {each.name: each.text for each in read_documents([str(place) for place in places], io.BytesIO(stdin))}


def refused(*places: object, stdin: bytes = b"") -> str:
    with pytest.raises(ConfigError) as raised:
        read(*places, stdin=stdin)
    told = str(raised.value)
    assert "\n" not in told
    assert len(told) < 400
    return told


def test_folder_is_all_its_text_but_what_is_hidden_or_binary(folder: Path) -> None:
    found = read(folder)

    assert list(found) == [str(folder / name) for name in ("a.md", "b.txt", "deep/er/c.log", "empty.txt")]
    assert list(found.values()) == ["alpha\n", "béta\n", "gamma\n", ""]


def test_hidden_file_is_read_where_it_is_named(folder: Path) -> None:
    assert list(read(folder / ".git").values()) == ["hidden\n"]
    assert list(read(folder / "deep/er/.secret").values()) == ["hidden\n"]


def test_pattern_is_the_files_that_it_matches(folder: Path) -> None:
    assert list(read(folder / "**/*.log").values()) == ["gamma\n"]
    assert list(read(f"{folder}/?.*").values()) == ["alpha\n", "béta\n"]
    assert "holds no text" in refused(folder / "*.rs")
    assert "holds no text" in refused(folder / "*.png")


def test_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1]*.txt").write_text("one")
    (tmp_path / "a1.txt").write_text("another")

    assert list(read(tmp_path / "a[1]*.txt").values()) == ["one"]


def test_places_are_read_in_the_order_in_which_they_are_named(folder: Path) -> None:
    found = read(folder / "b.txt", "-", folder / "a.md", stdin=b"from a pipe")

    assert list(found.values()) == ["béta\n", "from a pipe", "alpha\n"]
    assert list(found)[1] == "standard input"


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfone\r\ntwo\rthree\n", b"one\ntwo\nthree\n"])
def test_every_line_ends_with_a_line_feed_and_no_mark_is_left(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "windows.txt").write_bytes(content)

    assert list(read(tmp_path / "windows.txt", "-", stdin=content).values()) == ["one\ntwo\nthree\n"] * 2


def test_file_that_is_named_may_hold_anything_that_is_text(tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_bytes("\0\u202e\U0001f600\u2028".encode())

    assert list(read(tmp_path / "odd.txt").values()) == ["\0\u202e\U0001f600\u2028"]


def test_named_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    """As a shell hands over `<(zcat log.gz)`."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("from a pipe",))
    writer.start()

    assert list(read(tmp_path / "pipe").values()) == ["from a pipe"]
    writer.join()


@pytest.mark.parametrize("place", ["no/such/file", "", "x" * 5000, "~nobody-of-this-name/x", "x\ny"])
def test_what_is_not_there_is_named(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert "or - for standard input" in refused(place)


def test_what_is_no_text_is_named_where_it_was_asked_for(folder: Path) -> None:
    assert refused(folder / "latin.txt") == f"{folder}/latin.txt is not UTF-8 text (byte 3); convert it"
    assert refused("-", stdin=b"ab\xff") == "standard input is not UTF-8 text (byte 2); convert it"
    assert refused("-", stdin="\ud800".encode("utf-8", "surrogatepass")).startswith("standard input is not UTF-8")


@pytest.mark.parametrize("content", [b"", b" \n\t\r\n", "\ufeff".encode()])
def test_nothing_to_read_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_bytes(content)

    assert "empty.txt is empty" in refused(tmp_path / "empty.txt")
    assert "- is empty" in refused("-", stdin=content)


def test_folder_without_any_text_is_named(tmp_path: Path) -> None:
    assert "holds no text" in refused(tmp_path)


def test_file_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed.txt").write_text("x")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)

    assert "closed.txt: Permission denied" in refused(tmp_path / "closed.txt")
    assert "holds no text" in refused(tmp_path)


def test_more_than_can_be_held_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "sparse.log").open("wb") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr(documents, "_SNIFFED_BYTES", 0)  # it is no binary file
    monkeypatch.setattr(documents, "_MOST_BYTES", 1000)

    assert "sparse.log has more than 1,000 bytes" in refused(tmp_path / "sparse.log")
    assert "sparse.log has more than 1,000 bytes" in refused(tmp_path)
    assert "standard input has more than 1,000 bytes" in refused("-", stdin=b"x" * 1001)
    assert "/dev/zero has more than 1,000 bytes" in refused("/dev/zero")


def test_files_together_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        (tmp_path / f"{index}.txt").write_text("x" * 400)
    monkeypatch.setattr(documents, "_MOST_BYTES", 1000)

    assert len(read(tmp_path / "0.txt", tmp_path / "1.txt")) == 2
    assert refused(tmp_path) == "the documents have more than 1,000 characters together; name fewer"
