"""The test before a sandbox runs anything: what must fail is tried, in the wrapper and in the interpreter.

It runs once per process and backend. A wrapper that does not hold is no wrapper: nothing starts then. What was not
tried has not held: each attempt ends in an exception, and only the endless loop by the clock.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from reasonrt.errors import ConfigError
from reasonrt.programs.sandbox.base import CellLimits, Ending, HostCall, ProgramError, Session
from reasonrt.programs.sandbox.launch import Kind, Launcher
from reasonrt.programs.sandbox.turn import Turn

LOOP = "an endless loop"
LOOP_S = 0.05
ESCAPED = "reached the outside"
ATTEMPTS = {
    "reading a file": f"open('/etc/passwd').read()\nprint({ESCAPED!r})",
    "reading the environment": f"import os\nnext(iter(os.environ))\nprint({ESCAPED!r})",
    "opening a socket": f"import socket\nsocket.socket().connect(('127.0.0.1', 9))\nprint({ESCAPED!r})",
    "starting a process": f"import os\nos.fork()\nprint({ESCAPED!r})",
    "taking 1 GB": f"x = 'x' * (1 << 30)\nprint({ESCAPED!r})",
    LOOP: f"while True:\n    pass\nprint({ESCAPED!r})",
}

OpenSession = Callable[[CellLimits], Awaitable[Session]]

_passed: set[tuple[str, bool]] = set()


async def self_test(backend: str, kind: Kind, open_session: OpenSession, launcher: Launcher) -> None:
    """Prove a backend, the first time that this process starts it.

    Args:
        open_session: a session without values and functions, with these limits.
        launcher: its wrapper, which is proven by a process under the same rules.

    Raises:
        ConfigError: something that must fail did not.
    """
    if (backend, launcher.is_confined) in _passed:
        return
    probe = asyncio.to_thread(launcher.probe, kind)
    results = await asyncio.gather(probe, *(_try(open_session, name, code) for name, code in ATTEMPTS.items()))
    if failed := [line for result in results for line in result]:
        raise ConfigError(f"the sandbox `{backend}` does not hold and was not started: {'; '.join(failed)[:300]}")
    _passed.add((backend, launcher.is_confined))


async def _try(open_session: OpenSession, name: str, code: str) -> list[str]:
    """What did not fail as it must, in words; empty where it held."""
    limits = CellLimits(cell_s=LOOP_S) if name == LOOP else CellLimits()
    session = await open_session(limits)
    try:
        cell = await session.run(code, _no_host)
    finally:
        await session.aclose()
    limit = Turn(limits)
    by_itself = cell.ending is Ending.RAISED or cell.error == limit.out_of_memory
    held = ESCAPED not in cell.output and (cell.error == limit.time_up if name == LOOP else by_itself)
    return [] if held else [f"{name}: {cell.ending}, {cell.output[:80]}{cell.error[:80]}"]


async def _no_host(call: HostCall) -> Any:
    raise ProgramError(f"{call.name} cannot be called here")
