"""The wrapper by itself: what a process under it cannot do, and what a start does where it does not hold."""

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reasonrt.errors import ConfigError
from reasonrt.programs.sandbox import confine, selftest
from reasonrt.programs.sandbox.base import Cell, CellLimits, Ending, HostCall
from reasonrt.programs.sandbox.build import BACKENDS, build_sandbox
from reasonrt.programs.sandbox.launch import Confinement, Kind, Launcher, libraries
from reasonrt.programs.sandbox.turn import Turn

PYTHON = os.path.realpath(sys.executable)


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    made = Launcher(Confinement(1 << 30))
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["exec", "worker"])
def test_everything_that_must_fail_fails(launcher: Launcher, kind: Kind) -> None:
    assert launcher.probe(kind) == []


@pytest.mark.parametrize("kind", ["exec", "worker"])
def test_the_probe_finds_what_is_open(launcher: Launcher, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under rules that allow one file, that file is found to be readable, and nothing else."""
    open_launcher = Launcher(Confinement(1 << 30, read=("/etc/passwd",)))

    (found,) = open_launcher.probe(kind)

    assert found.startswith("reading a file: read ")
    open_launcher.close()


def test_without_a_wrapper_everything_is_open(tmp_path: Path) -> None:
    """The attempts are real: a process that is not confined gets through nearly all of them."""
    code = (
        "import sys, runpy\nm = runpy.run_path(sys.argv[1], run_name='probe')\n"
        "for name in ('signalling the parent', 'tracing', 'running a program'):\n    m['ATTEMPTS'].pop(name)\n"
        "m['probe'](sys.argv[2])"
    )
    done = subprocess.run(
        [PYTHON, "-c", code, str(confine.__file__), str(tmp_path)], capture_output=True, text=True, check=True
    )
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)

    got_through = {name for name, outcome in lines.items() if outcome != "held"}
    assert {"reading a file", "listing a folder", "writing a file", "reading the environment"} <= got_through
    assert {"opening a socket", "starting a process", "taking memory"} <= got_through


def test_a_probe_that_ends_early_does_not_pass(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Launcher(Confinement(1 << 30, read=("/nowhere/at/all",)))

    (found,) = broken.probe("exec")

    assert found.startswith("the probe ended early: ")
    broken.close()


def test_the_confined_process_has_no_capability_and_no_new_privileges(launcher: Launcher) -> None:
    """Read from outside, while it waits."""
    read, execute = libraries("/bin/cat")
    confined = Launcher(Confinement(1 << 30, read, execute))
    process = subprocess.Popen(confined.command("exec", "/bin/cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"x")
    process.stdin.flush()
    assert process.stdout.read(1) == b"x"

    status = Path(f"/proc/{process.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    session = os.getsid(process.pid)
    process.stdin.close()
    process.stdout.close()
    process.wait()
    confined.close()

    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert all(set(fields[name]) == {"0"} for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
    assert session == process.pid


def test_the_filter_of_each_machine_is_well_formed() -> None:
    numbers = [[row[column] for row in confine.CALLS.values() if row[column] is not None] for column in (0, 1)]

    assert all(len(set(column)) == len(column) for column in numbers)
    program = confine._filter("worker")
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096
    assert program[-8:-4] == b"\x06\x00\x00\x00"  # it ends in a return


@pytest.mark.parametrize("backend", sorted(BACKENDS))
async def test_a_wrapper_that_does_not_hold_starts_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_passed", set())
    monkeypatch.setattr(Launcher, "probe", lambda self, kind: ["reading a file: read 100 bytes"])
    sandbox = build_sandbox(backend)

    with pytest.raises(ConfigError, match="does not hold and was not started: reading a file") as raised:
        await sandbox.start()

    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError):
        await sandbox.open({})
    await sandbox.aclose()


@dataclass
class Ended:
    """A session in which each cell comes to the same."""

    cell: Cell

    async def run(self, code: str, host: object) -> Cell:
        return self.cell

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize(
    ("cell", "failed"),
    [
        (Cell(Ending.LOST, error=Turn(CellLimits()).time_up), "reading a file: lost, timed out"),
        (
            Cell(Ending.LOST, error="the worker died: it ended without a result"),
            "reading a file: lost, the worker died",
        ),
        (Cell(Ending.DONE), "reading a file: done"),
        (Cell(Ending.REFUSED, error="SyntaxError"), "reading a file: refused, SyntaxError"),
        (Cell(Ending.RAISED, output=selftest.ESCAPED), f"reading a file: raised, {selftest.ESCAPED}"),
        (Cell(Ending.RAISED, error="PermissionError"), "started: an endless loop: raised, PermissionError"),
    ],
)
async def test_what_was_not_tried_has_not_held(cell: Cell, failed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_passed", set())
    launcher: Any = SimpleNamespace(is_confined=False, probe=lambda kind: [])

    async def open_session(limits: CellLimits) -> Any:
        return Ended(cell)

    for _ in range(2):
        with pytest.raises(ConfigError, match=f"does not hold and was not .*{failed}"):
            await selftest.self_test("monty", "exec", open_session, launcher)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("worker_bytes", [1 << 30, 3 << 30])
async def test_workers_may_have_more_than_1_gb(
    backend: str, worker_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, "_passed", set())
    sandbox = build_sandbox(backend, worker_bytes=worker_bytes, check=False)

    await sandbox.start()

    await sandbox.aclose()


@pytest.mark.parametrize("backend", sorted(BACKENDS))
async def test_the_test_at_the_start_is_quick_and_once(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    probe = Launcher.probe
    monkeypatch.setattr(selftest, "_passed", set())
    monkeypatch.setattr(Launcher, "probe", lambda self, kind: calls.append(kind) or probe(self, kind))  # type: ignore[func-returns-value]

    for _ in range(2):
        sandbox = build_sandbox(backend)
        await asyncio.gather(sandbox.start(), sandbox.start(), sandbox.open({}, limits=CellLimits()))
        await sandbox.aclose()

    assert len(calls) == 1


@pytest.mark.parametrize("backend", sorted(BACKENDS))
async def test_a_machine_without_landlock_is_refused(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "CREATE_RULESET", 9999)

    with pytest.raises(ConfigError, match=r"programs cannot be confined here: this kernel .* Landlock"):
        await build_sandbox(backend).start()


async def test_unconfined_is_a_choice_and_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(confine, "CREATE_RULESET", 9999)
    monkeypatch.setattr("reasonrt.programs.sandbox.monty._warned", set())

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            sandbox = build_sandbox("monty", unconfined=True)
            session = await sandbox.open({})
            assert (await session.run("print(1)", _nobody)).output == "1\n"
            await sandbox.aclose()

    assert len([record for record in caplog.records if "unconfined" in record.message]) == 1


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_a_killed_parent_leaves_no_worker(backend: str) -> None:
    """Also where the worker is in an endless loop, and reads no pipe."""
    code = (
        "import asyncio, sys\n"
        "from reasonrt.programs.sandbox.base import CellLimits\n"
        "from reasonrt.programs.sandbox.build import build_sandbox\n"
        "async def main():\n"
        f"    session = await build_sandbox({backend!r}).open({{}}, limits=CellLimits(cell_s=2))\n"
        "    print(session.worker_pid, flush=True)\n"
        "    await session.run('while True: pass', None)\n"
        "asyncio.run(main())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    parent.stdout.close()

    for _ in range(60):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.1)
    raise AssertionError(f"the worker {pid} still runs")


async def _nobody(call: HostCall) -> object:
    raise AssertionError(f"{call.name} was called")
