"""The port to a sandbox: sessions that run cells of Python, and ask the host by named calls.

Limits are held outside the sandbox. What a cell may reach is what the host hands in: values by name, and host
functions by name. Backends: `monty` (the default) and `cpython`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from reasonrt.programs.sandbox.plain import NotPlain, OtherType, check_plain


@dataclass(frozen=True, slots=True)
class CellLimits:
    """What one cell may use.

    Attributes:
        cell_s: seconds of execution; the clock stops while the cell waits for the host.
        memory_bytes: of the session's heap.
        max_recursion: depth of calls.
        max_calls: host calls of one cell.
        output_characters: of what it prints; the rest is cut, and the cell goes on.
    """

    cell_s: float = 10.0
    memory_bytes: int = 1 << 29
    max_recursion: int = 500
    max_calls: int = 100_000
    output_characters: int = 1 << 16


class Ending(StrEnum):
    """How a cell ended."""

    DONE = "done"
    RAISED = "raised"  # an exception that it did not catch; what it had assigned before is kept
    REFUSED = "refused"  # it was not run: syntax, types, or what the language lacks
    LOST = "lost"  # killed by a limit, or the worker died: the session is gone, the cell is never run again


@dataclass(frozen=True, slots=True)
class Cell:
    """What became of one cell.

    Attributes:
        output: what it printed, cut at `output_characters`.
        error: the traceback, the diagnostics, or the reason for the loss; empty for `DONE`.
        seconds: of execution, without the waiting for host calls.
        num_calls: host calls.
    """

    ending: Ending
    output: str = ""
    error: str = ""
    seconds: float = 0.0
    num_calls: int = 0


class ProgramError(Exception):
    """Raised by a host function: the program gets it as an exception of its own language, which it may catch.

    Args:
        message: for the model that wrote the program.
        kind: the name of a built-in exception class.
    """

    def __init__(self, message: str, kind: str = "RuntimeError") -> None:
        super().__init__(message)
        self.kind = kind


class CellStopped(Exception):  # noqa: N818 (a limit is a result, not an error)
    """Raised by a host function: the cell ends, and cannot catch it; it counts as lost."""


@dataclass(frozen=True, slots=True)
class HostCall:
    """A cell's call of a host function; the cell waits for its result.

    Attributes:
        fork: the state of the session in the middle of this call, for `Sandbox.resume`.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    fork: Callable[[], Awaitable[bytes]] | None = None


Host = Callable[[HostCall], Awaitable[Any]]
"""Answers host calls with plain data (None, bool, int, float, str, list, tuple, dict)."""


class Session(Protocol):
    """One interpreter with its variables. Cells run one after the other."""

    async def run(self, code: str, host: Host) -> Cell:
        """Run a cell; never raises for what the cell does. Cancelling it kills the worker."""

    async def value(self, name: str) -> Any:
        """The variable `name` as plain data; None where there is none, or it is no plain data."""

    async def dump(self) -> bytes:
        """The state between two cells, for `Sandbox.load`: as often as wanted, in any worker."""

    async def aclose(self) -> None:
        """Give the worker back. Idempotent."""


class Sandbox(Protocol):
    """Makes sessions. A `Tool`: a runtime starts and closes it."""

    @property
    def backend(self) -> str:
        """Its name, by which `reasonrt.programs.language` knows what its Python lacks."""

    async def open(
        self, values: Mapping[str, Any], functions: Sequence[str] = (), limits: CellLimits | None = None
    ) -> Session:
        """A new session.

        Args:
            values: variables that it starts with.
            functions: names of host functions that its cells may call.

        Raises:
            ConfigError: programs cannot be confined on this machine; names what is missing.
        """

    async def load(self, state: bytes, functions: Sequence[str] = (), limits: CellLimits | None = None) -> Session:
        """A session that continues from `Session.dump`."""

    async def resume(
        self, state: bytes, reply: Any, host: Host, functions: Sequence[str] = (), limits: CellLimits | None = None
    ) -> tuple[Session, Cell]:
        """Continue from `HostCall.fork`: that call gets `reply`, and the cell runs to its end."""


def check_reply(name: str, reply: object) -> None:
    """Refuse what a host function may not answer.

    Raises:
        ProgramError: it is too much, or holds text that is none; for the program, which may ask for less.
        TypeError: it is no plain data, which is a bug of the host.
    """
    try:
        check_plain(reply)
    except OtherType as error:
        raise TypeError(f"the host function {name} answered what no program can have: {error}") from None
    except NotPlain as error:
        raise ProgramError(f"{name}: {error}; ask for less at a time") from None
