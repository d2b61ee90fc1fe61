"""How a worker is started through the wrapper `confine.py`, and whether this machine can confine at all."""

import ctypes
import os
import platform
import py_compile
import shlex
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from reasonrt.engines.orphans import remove_at_end
from reasonrt.errors import ConfigError
from reasonrt.programs.sandbox import confine

Kind = Literal["exec", "worker"]
PROBE_S = 10.0
UNCONFINED_HINT = "set `unconfined: true` to run programs without it, on a machine where nothing can be lost"


def what_is_missing() -> str | None:
    """What this machine lacks to confine a program, in one line; None where it lacks nothing."""
    if sys.platform != "linux":
        return f"programs are confined by Landlock and seccomp, which {sys.platform} does not have"
    if (machine := platform.machine()) not in confine.MACHINES:
        return f"the seccomp filter is written for {' and '.join(confine.MACHINES)}, not for {machine}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(confine.CREATE_RULESET), None, ctypes.c_long(0), ctypes.c_long(1)) < 1:
        return f"this kernel ({platform.release()}) does not offer Landlock, or a container forbids it"
    return None


@dataclass(frozen=True, slots=True)
class Confinement:
    """What the wrapper lets a worker keep.

    Attributes:
        memory_bytes: address space, which counts what is mapped and not what is used.
        read: files that it may open, and folders of such files.
        execute: programs that it may start.
        names: folders whose names it may list.
        max_files: descriptors.
    """

    memory_bytes: int
    read: tuple[str, ...] = ()
    execute: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    max_files: int = 32

    def flags(self, memory_bytes: int | None = None) -> list[str]:
        flags = ["--memory", str(memory_bytes or self.memory_bytes), "--files", str(self.max_files)]
        for name, paths in (("--read", self.read), ("--exec", self.execute), ("--list", self.names)):
            for path in paths:
                flags += [name, path]
        return flags


class Launcher:
    """The wrapper, compiled into a private folder, with what it is to keep.

    Args:
        confinement: None starts workers without any wrapper.
    """

    def __init__(self, confinement: Confinement | None) -> None:
        self._confinement = confinement
        self._folder = Path(tempfile.mkdtemp(prefix="reasonrt-sandbox-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)  # at exit, at the latest
        remove_at_end(self._folder)  # or after a SIGKILL
        self._wrapper = self._compile(confine.__file__, "confine.pyc")

    @property
    def is_confined(self) -> bool:
        return self._confinement is not None

    def command(
        self, mode: Literal["exec", "worker", "probe"], *arguments: str, memory_bytes: int | None = None
    ) -> list[str]:
        """The command line that confines itself, to less memory if given, and then does what the mode says."""
        if self._confinement is None:
            raise ValueError("an unconfined worker has no wrapper")
        own = ["--read", self.library, "--list", self.library] if os.path.exists(self.library) else []
        return [*self._python(), *self._confinement.flags(memory_bytes), *own, mode, *arguments]

    @property
    def library(self) -> str:
        """The folder from which a worker imports the modules that `add_to_library` put there."""
        return str(self._folder / "library")

    def add_to_library(self, *modules: ModuleType) -> None:
        """Compile modules for a worker, which imports them by their own names and no others of ours."""
        for module in modules:
            self._compile(str(module.__file__), f"library/{module.__name__.replace('.', '/')}.pyc")

    def script(self, binary: str) -> str:
        """An executable file that behaves as `binary`, confined."""
        if self._confinement is None:
            return binary
        path = self._folder / "worker"
        path.write_text(f'#!/bin/sh\nexec {shlex.join(self.command("exec", binary))} "$@"\n')
        path.chmod(0o700)
        return str(path)

    def probe(self, kind: Kind) -> list[str]:
        """Try what must fail, in a process under the same wrapper; what did not fail, in words, or an empty list."""
        if self._confinement is None:
            return []
        try:
            process = subprocess.run(
                self.command("probe", kind, str(self._folder)),
                env={},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PROBE_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return [f"the probe did not run: {error}"]
        lines = process.stdout.splitlines()
        missing = len(confine.ATTEMPTS) - len(lines)
        open_lines = [line for line in lines if not line.endswith(": held")]
        return open_lines + ([f"the probe ended early: {_last_line(process.stderr)}"] if missing else [])

    def close(self) -> None:
        """Remove the folder. Idempotent."""
        self._remove()

    def _compile(self, source: str, name: str) -> str:
        path = str(self._folder / name)
        py_compile.compile(source, path, doraise=True)
        return path

    def _python(self) -> Sequence[str]:
        return (os.path.realpath(sys.executable), "-s", "-S", "-P", self._wrapper)


def libraries(binary: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files that the dynamic loader opens for `binary`: those that are read, and those that are also executed."""
    traced = subprocess.run(
        [binary],
        env={"LD_TRACE_LOADED_OBJECTS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PROBE_S,
        check=False,
    )
    read: list[str] = []
    execute = [binary]
    for line in traced.stdout.splitlines():
        name, _, path = (part.strip() for part in line.partition("=>"))
        file = (path or name).split(" (")[0]
        if file.startswith("/"):
            (read if path else execute).append(file)
    return tuple(existing(["/etc/ld.so.cache", *read])), tuple(execute)


def existing(paths: Iterable[str]) -> list[str]:
    """Those of `paths` that are there."""
    return [path for path in paths if os.path.exists(path)]


def refuse_unconfined(reason: str) -> ConfigError:
    return ConfigError(f"programs cannot be confined here: {reason}; {UNCONFINED_HINT}")


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2][:200] or "no reason given"
