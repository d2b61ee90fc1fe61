"""What works for a process ends with it, however it ends; what works for one that lives is left alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil
import pytest

from reasonrt.engines import orphans
from reasonrt.programs.sandbox.launch import Launcher
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="nothing is watched here")
OWNER = f"""
import os, signal, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(orphans.__file__).parent)!r})
import orphans

SHARES = "import time; from multiprocessing.shared_memory import SharedMemory as Memory; "
SHARES += "memory = Memory(create=True, size=9); print(memory.name, flush=True); time.sleep(99)"
environment = os.environ | orphans.owned_environment()
two = ["sh", "-c", "sleep 99 & echo $!; sleep 99"]
apart = subprocess.Popen(two, env=environment, start_new_session=True, stdout=-1)
stopped = subprocess.Popen(["sleep", "99"], env=environment)
os.kill(stopped.pid, signal.SIGSTOP)
shares = subprocess.Popen([sys.executable, "-S", "-c", SHARES], env=environment, stdout=-1)
(orphans.owned_folder() / "socket").touch()
removed = Path(orphans.owned_folder().parent) / f"removed-{{os.getpid()}}"
removed.mkdir()
orphans.remove_at_end(removed)
orphans.remove_at_end(removed.with_name(f"later-*-{{os.getpid()}}"))
later = removed.with_name(f"later-1-{{os.getpid()}}")
later.mkdir()
shared = Path("/dev/shm") / shares.stdout.readline().decode().strip()
orphans.remove_shared_memory_at_end(os.getpid())
print(apart.pid, int(apart.stdout.readline()), stopped.pid, shares.pid)
print(orphans.owned_folder(), removed, later, shared, flush=True)
sys.stdin.readline()
"""


class Owner:
    """A process that others work for, in a group of its own; one of them is stopped."""

    def __init__(self, process: "subprocess.Popen[str]", output: IO[str]) -> None:
        self.process = process
        self.workers = [psutil.Process(int(pid)) for pid in output.readline().split()]
        self.left = [Path(name) for name in output.readline().split()]

    @property
    def is_gone(self) -> bool:
        return not any(is_alive(worker) for worker in self.workers) and not any(file.exists() for file in self.left)

    def watcher(self) -> psutil.Process:
        found: list[psutil.Process] = []

        def is_found() -> bool:
            found.extend(filter(self._is_watched_by, psutil.process_iter()))
            return bool(found)

        wait_until(is_found)
        return found[0]

    def _is_watched_by(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):  # it has ended meanwhile
            return is_alive(process) and any(f".{self.process.pid}." in part for part in process.cmdline())
        return False


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def an_owner() -> Iterator[Owner]:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            owner = Owner(process, process.stdout)
            assert not owner.is_gone
            yield owner
        finally:
            process.kill()


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "SIGHUP", "SIGINT to the group", "SIGKILL to the group", "exit"])
def test_nothing_outlives_its_owner(end: str) -> None:
    name, _, to_whom = end.partition(" ")
    with an_owner() as owner, an_owner() as other:
        if end == "exit":
            owner.process.communicate("\n")
        else:
            (os.killpg if to_whom else os.kill)(owner.process.pid, signal.Signals[name])

        wait_until(lambda: owner.is_gone)

        assert all(map(is_alive, other.workers))
        assert all(file.exists() for file in other.left)
        watcher = other.watcher()
    wait_until(lambda: other.is_gone)
    wait_until(lambda: not is_alive(watcher))


def test_the_server_of_a_bench_ends_with_it() -> None:
    """Also where the bench has no time to end it; in the place of the server is one that only waits."""
    bench = (
        "import sys; from reasonrt.benches import streams; "
        "streams._CHILD = 'import time; print(1, flush=True); time.sleep(99)'; "
        "running = streams._server(None, 1); print(running.__enter__()[0].pid, flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen([sys.executable, "-c", bench], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        server = psutil.Process(int(process.stdout.readline()))
        assert is_alive(server)

        process.kill()

        wait_until(lambda: not is_alive(server))


def test_what_an_earlier_owner_has_left_is_ended_and_no_more() -> None:
    """Its watcher was killed first. Owners in another namespace of process ids cannot be judged from here."""
    elsewhere = {"REASONRT_OWNERS": "1.1.1,nonsense,"}
    with ExitStack() as stack:
        dead, alive = stack.enter_context(an_owner()), stack.enter_context(an_owner())
        foreign = stack.enter_context(subprocess.Popen(["sleep", "99"], env=os.environ | elsewhere))
        stack.callback(foreign.kill)
        dead.watcher().kill()
        dead.process.kill()
        dead.process.wait()
        assert not dead.is_gone

        with ThreadPoolExecutor(4) as watchers:  # several may find it
            for found in [watchers.submit(orphans.end_orphans) for _ in range(4)]:
                found.result()

        wait_until(lambda: dead.is_gone)
        assert all(map(is_alive, alive.workers))
        assert all(file.exists() for file in alive.left)
        assert foreign.poll() is None


def test_owners_add_up() -> None:
    """An owner may work for another one: what works for it ends with either of them."""
    show = f"import sys; sys.path.insert(0, {str(Path(orphans.__file__).parent)!r}); import orphans; "
    show += "print(orphans.owned_environment()['REASONRT_OWNERS'])"
    own = orphans.owned_environment()

    told = subprocess.run([sys.executable, "-c", show], env=os.environ | own, stdout=-1, text=True, check=True).stdout

    first, second = told.strip().split(",")
    assert first == own["REASONRT_OWNERS"].split(",")[-1]
    assert second.split(".")[1] != str(os.getpid())


def test_a_family_is_killed_though_it_is_stopped() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 99 & echo $!; sleep 99"], stdout=-1, start_new_session=True) as process:
        assert process.stdout is not None
        below = psutil.Process(int(process.stdout.readline()))
        os.killpg(process.pid, signal.SIGSTOP)

        orphans.kill_family(process.pid)

        wait_until(lambda: not is_alive(below))
        assert process.wait(60) == -signal.SIGKILL
        orphans.kill_family(process.pid)  # nothing is there any more


def test_folders_of_sandboxes_are_removed_too() -> None:
    """As they are at an exit, which a SIGKILL is not."""
    orphans.owned_environment()
    launcher = Launcher(None)

    folder = Path(launcher.library).parent
    assert folder in [link.readlink() for link in orphans.owned_folder().glob("*.link")]
