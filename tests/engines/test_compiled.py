"""A compiler that is killed leaves nothing that a later start cannot load."""

import fcntl
import sysconfig
from pathlib import Path

import pytest

from reasonrt.engines.compiled import remove_cut_off


@pytest.fixture(scope="module")
def library() -> bytes:
    """A small shared library of this system."""
    extensions = Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("*.so")
    return min((path.read_bytes() for path in extensions), key=len)


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.5, 0.99, 1 - 1e-9])
def test_a_library_that_was_cut_off_is_removed(tmp_path: Path, library: bytes, share: float) -> None:
    torn = _put(tmp_path, library[: int(len(library) * share)])
    assert remove_cut_off(tmp_path) == [torn]
    assert not torn.exists()


def test_one_whose_header_was_to_be_written_last_is_removed(tmp_path: Path, library: bytes) -> None:
    torn = _put(tmp_path, bytes(64) + library[64:])
    assert remove_cut_off(tmp_path) == [torn]


def test_whole_ones_and_other_files_stay(tmp_path: Path, library: bytes) -> None:
    kept = [
        _put(tmp_path, library),
        _put(tmp_path, b"int main", "b.main.cpp"),
        _put(tmp_path, b"\xcf\xfa\xed\xfe", "c.so"),
    ]
    assert remove_cut_off(tmp_path) == []
    assert all(path.exists() for path in kept)


def test_one_that_is_being_compiled_is_left_to_its_compiler(tmp_path: Path, library: bytes) -> None:
    torn = _put(tmp_path, library[:1000])
    lock = tmp_path / "locks" / "key.lock"
    lock.parent.mkdir()
    with lock.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert remove_cut_off(tmp_path) == []
        assert torn.exists()
    assert remove_cut_off(tmp_path) == [torn]


def test_a_folder_that_is_not_there_has_none(tmp_path: Path) -> None:
    assert remove_cut_off(tmp_path / "none") == []


def _put(folder: Path, content: bytes, name: str = "key.main.so") -> Path:
    path = folder / "ab" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path
