"""No process that an engine needs outlives the process that asked for it, however that one ends.

vLLM and Ray start processes in their own ways, and those start others. All of them inherit the environment, so each
says there whom it works for: `REASONRT_OWNERS`. Beside every owner a watcher waits, this file run as a program; when
its owner is gone, be it by SIGKILL, it kills what works for it and removes what that has left in the temporary folder
and in shared memory. The watcher begins with what earlier owners have left. Linux only; elsewhere nothing is watched.
"""

import os
import select
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

_OWNERS = "REASONRT_OWNERS"
_PREFIX = "reasonrt-"  # of folders in the temporary one
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where the kernel mounts it)
_LONGEST_S = 10.0  # in which what was killed is gone, be the machine busy
_SETTLED_S = 0.3  # in which no process of a dead owner has turned up: one between fork and exec has another environment
_lock = threading.Lock()
_watched: set[str] = set()  # those that have a watcher: this process, and none that it was forked from


def owned_environment() -> dict[str, str]:
    """What a process must find in its environment to end with this one, and with those that this one works for."""
    owner = _name(os.getpid())
    if owner is None or not hasattr(os, "pidfd_open"):
        return {}
    with _lock:
        if owner not in _watched:
            _folder(owner).mkdir(mode=0o700)
            _watch(owner)
            _watched.add(owner)
    owners = dict.fromkeys([*_owners_in(os.environb.get(_OWNERS.encode(), b"")), owner])
    # a process that gives itself a title would write it over its environment
    return {_OWNERS: ",".join(owners), "SPT_NOENV": "1"}


def owned_folder() -> Path:
    """Where processes that work for this one leave files: there from `owned_environment` on until this one ends."""
    return _folder(_name(os.getpid()) or "")


def remove_at_end(path: Path) -> None:
    """Remove a file or a folder when this process has ended; nothing happens where nobody watches.

    Args:
        path: absolute. A `*` in its name is any text, also of what is not there yet.
    """
    if owned_folder().is_dir():
        with suppress(FileExistsError):
            (owned_folder() / f"{path.name}.link").symlink_to(path)


def remove_shared_memory_at_end(pid: int) -> None:
    """As `remove_at_end`, for what a process and those below it have mapped and Python has named."""
    for process in _family(pid):
        for file in _mapped_by(process.pid):
            remove_at_end(file)


def kill_family(pid: int) -> None:
    """Kill a process and those below it, be they stopped."""
    for process in _family(pid):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def end_orphans() -> None:
    """Kill each process of this user whose owner is gone, and remove what such owners have left."""
    give_up = time.monotonic() + _LONGEST_S
    settled = time.monotonic() + _SETTLED_S
    while time.monotonic() < min(give_up, settled):
        for pid in _orphans():
            left = _mapped_by(pid)
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            for file in left:
                with suppress(OSError):
                    file.unlink()
            settled = time.monotonic() + _SETTLED_S
        time.sleep(0.05)
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if _is_ours(folder) and _is_gone(folder.name.removeprefix(_PREFIX)):
            _remove(folder)


def _family(pid: int) -> "list[psutil.Process]":
    import psutil

    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _watch(owner: str) -> None:
    """Start the watcher: in a session of its own, so that no signal to this process's group or terminal reaches it."""
    environment = {name: value for name, value in os.environ.items() if name != _OWNERS}
    command = [sys.executable, "-I", "-S", __file__, owner, tempfile.gettempdir()]
    nowhere = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in range(3)]
    os.posix_spawn(sys.executable, command, environment, file_actions=nowhere, setsid=True)


def _main(owner: str, temporary: str) -> None:
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)  # to everything that runs here: it is needed until its owner has ended
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    tempfile.tempdir = temporary
    end_orphans()
    with suppress(ProcessLookupError):
        watched = os.pidfd_open(int(owner.split(".")[1]))
        if not _is_gone(owner):
            select.select([watched], [], [])
    end_orphans()


def _name(pid: int) -> str | None:
    """A process as no other one is called: its namespace, its id there, and when it started; None if it is gone."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else f"{namespace:x}.{pid}.{int(fields[18]):x}"


def _is_gone(owner: str) -> bool:
    """Whether that process has ended; one of another namespace of process ids is not ours to judge."""
    namespace, _, rest = owner.partition(".")
    pid = rest.partition(".")[0]
    return bool(
        namespace == f"{Path('/proc/self/ns/pid').stat().st_ino:x}" and pid.isdecimal() and _name(int(pid)) != owner
    )


def _orphans() -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # gone, or another user's
            continue
        prefix = f"{_OWNERS}=".encode()
        owners = next((entry.removeprefix(prefix) for entry in environment if entry.startswith(prefix)), b"")
        if any(map(_is_gone, _owners_in(owners))) and _is_ours(folder):
            yield int(folder.name)


def _owners_in(value: bytes) -> list[str]:
    return [owner for owner in value.decode(errors="replace").split(",") if owner]


def _folder(owner: str) -> Path:
    return Path(tempfile.gettempdir()) / f"{_PREFIX}{owner}"


def _is_ours(path: Path) -> bool:
    with suppress(OSError):
        state = path.lstat()
        return state.st_uid == os.geteuid() and stat.S_ISDIR(state.st_mode)
    return False


def _mapped_by(pid: int) -> list[Path]:
    """The segments of `multiprocessing.shared_memory` that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return []
    files = {Path(line.split(maxsplit=5)[5]) for line in lines if str(_SHARED_MEMORY) in line}
    return [file for file in files if file.parent == _SHARED_MEMORY and file.name.startswith("psm_")]


def _remove(folder: Path) -> None:
    with suppress(OSError):  # another watcher may be faster
        for link in folder.glob("*.link"):
            named = link.readlink()
            for target in named.parent.glob(named.name):
                shutil.rmtree(target, ignore_errors=True)
                if not target.is_dir():
                    target.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
