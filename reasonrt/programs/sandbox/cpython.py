"""Full Python: a CPython worker of its own for each session, under the wrapper, its seccomp filter and its limits."""

import asyncio
import fcntl
import hashlib
import json
import os
import signal
import sys
import sysconfig
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

from reasonrt.errors import ConfigError, EngineError
from reasonrt.programs.sandbox import plain, wire, worker
from reasonrt.programs.sandbox.base import (
    Cell,
    CellLimits,
    CellStopped,
    Ending,
    Host,
    HostCall,
    ProgramError,
    check_reply,
)
from reasonrt.programs.sandbox.launch import Confinement, Launcher, libraries, what_is_missing
from reasonrt.programs.sandbox.places import Places
from reasonrt.programs.sandbox.plain import MAX_DEPTH, NotPlain, check_plain
from reasonrt.programs.sandbox.selftest import self_test
from reasonrt.programs.sandbox.settings import SandboxSettings
from reasonrt.programs.sandbox.state import pack, unpack
from reasonrt.programs.sandbox.turn import TimeUp, Turn
from reasonrt.programs.sandbox.wire import (
    LENGTH_BYTES,
    Garbled,
    decode,
    encode,
    frame_length,
    pack_for_worker,
    unpack_frame,
)

BACKEND = "cpython"
START_S = 30.0
INTERPRETER_BYTES = 64 << 20  # address space of Python itself, beside a session's memory
PIPE_BYTES = 1 << 20
MAX_ERROR_CHARACTERS = 8000
MOST_CUT = 1 << 62  # characters that a cell has printed; a number of thousands of digits cannot even be shown
NOT_READ = frozenset({"site-packages", "dist-packages", "test", "idlelib", "ensurepip", "turtledemo"})
ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}  # a fork repeats the order of sets


class CPythonSandbox:
    """Sessions in confined CPython processes, each started for one session; the standard library, and nothing else.

    `min_workers` has no meaning here: a worker's limits are those of its session.
    """

    backend = BACKEND

    def __init__(self, settings: SandboxSettings | None = None) -> None:
        self._settings = settings or SandboxSettings()
        self._places = Places(self._settings)
        self._launcher: Launcher | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> Self:
        async with self._starting:
            if self._launcher is None:
                await self._start()
        return self

    async def aclose(self) -> None:
        launcher, self._launcher = self._launcher, None
        if launcher:
            launcher.close()

    async def open(
        self, values: Mapping[str, Any], functions: Sequence[str] = (), limits: CellLimits | None = None
    ) -> "CPythonSession":
        if self._launcher is None:
            await self.start()
        return await self._open(values, functions, limits or CellLimits())

    async def load(
        self, state: bytes, functions: Sequence[str] = (), limits: CellLimits | None = None
    ) -> "CPythonSession":
        """As the port says: a fresh worker runs the cells again, and gets the answers of then.

        Raises:
            EngineError: the cells ask something else now; time and chance are not part of a state.
        """
        _, payload = unpack(BACKEND, "session", state)
        journal = json.loads(payload)
        session = await self.open(_values(journal), functions, limits)
        await session.repeat(journal["cells"])
        return session

    async def resume(
        self, state: bytes, reply: Any, host: Host, functions: Sequence[str] = (), limits: CellLimits | None = None
    ) -> tuple["CPythonSession", Cell]:
        """As the port says; a `ProgramError` as the reply is raised in the program. Raises as `load`."""
        _, payload = unpack(BACKEND, "call", state)
        journal = json.loads(payload)
        session = await self.open(_values(journal), functions, limits)
        await session.repeat(journal["cells"])
        calls = [*journal["calls"], {"question": journal["question"], "reply": _saved(_as_reply(reply))}]
        return session, await session.run(journal["code"], host, calls)

    async def _start(self) -> None:
        if self._settings.unconfined:
            raise ConfigError("the sandbox `cpython` is nothing without its wrapper; leave out `unconfined`")
        if missing := what_is_missing():
            raise ConfigError(f"programs cannot be confined here: {missing}; the sandbox `monty` can do without")
        launcher = Launcher(_confinement(self._settings.worker_bytes))
        launcher.add_to_library(plain, wire, worker)
        self._launcher = launcher
        try:
            await self_test(BACKEND, "worker", lambda limits: self._open({}, (), limits), launcher)
        except BaseException:
            await self.aclose()
            raise

    async def _open(self, values: Mapping[str, Any], functions: Sequence[str], limits: CellLimits) -> "CPythonSession":
        settings, launcher = self._settings, self._launcher
        if launcher is None:
            raise EngineError("the sandbox is closed; start it")
        if limits.memory_bytes > settings.worker_bytes:
            raise ConfigError(
                f"memory_bytes {limits.memory_bytes} is more than a worker has; raise worker_bytes"
                f" {settings.worker_bytes} of the sandbox"
            )
        command = launcher.command(
            "worker",
            launcher.library,
            worker.__name__,
            memory_bytes=limits.memory_bytes + INTERPRETER_BYTES,
        )
        await self._places.take()
        try:
            process = await asyncio.create_subprocess_exec(
                *command, env=ENVIRONMENT, cwd="/", stdin=PIPE, stdout=PIPE, stderr=DEVNULL
            )
            handle = os.pidfd_open(process.pid)
        except ProcessLookupError:
            self._places.give_back()
            raise EngineError("a worker of the sandbox did not start: it ended at once") from None
        except BaseException:
            self._places.give_back()
            raise
        _widen(process)
        session = CPythonSession(process, handle, self._places, values, frozenset(functions), limits)
        try:
            await session.begin()
        except BaseException:
            await session.aclose()
            raise
        return session


class _Settled(NamedTuple):
    """A cell that needs nothing more of its worker."""

    ending: Ending
    error: str


class CPythonSession:
    """One interpreter; see `Session`."""

    def __init__(
        self,
        process: Process,
        handle: int,
        places: Places,
        values: Mapping[str, Any],
        functions: frozenset[str],
        limits: CellLimits,
    ) -> None:
        self._process = process
        self._handle = handle
        self._places = places
        self._values = values
        self._functions = functions
        self._limits = limits
        self._cells: list[dict[str, Any]] = []
        self._lost = ""

    @property
    def worker_pid(self) -> int:
        return self._process.pid

    async def begin(self) -> None:
        """Hand over the values, before the first cell."""
        opening = {
            "kind": "open",
            "values": dict(self._values),
            "functions": sorted(self._functions),
            "output_characters": self._limits.output_characters,
            "max_recursion": self._limits.max_recursion,
        }
        try:
            async with asyncio.timeout(START_S):
                await self._exchange(opening)
        except (TimeoutError, Garbled, EOFError) as error:
            await self._lose("it did not start")
            raise EngineError(f"a worker of the sandbox did not start: {_one_line(error)}") from error

    async def run(self, code: str, host: Host, recorded: Sequence[Mapping[str, Any]] = ()) -> Cell:
        """As the port says; the first calls get the replies that `recorded` has for them."""
        if self._lost:
            return Cell(Ending.LOST, error=f"this session is gone: {self._lost}")
        turn = Turn(self._limits)
        calls: list[dict[str, Any]] = []
        try:
            settled = await self._drive(turn, code, host, recorded, calls)
        except BaseException:  # cancelled, or the host failed: nobody will answer this worker any more
            await self._lose("it was cancelled, or its host failed")
            raise
        if settled.ending is Ending.LOST:
            await self._lose(settled.error)
        elif settled.ending is not Ending.REFUSED:
            self._cells.append({"code": code, "calls": calls})
        return Cell(settled.ending, turn.output.text, settled.error, turn.seconds, turn.num_calls)

    async def repeat(self, cells: Sequence[Mapping[str, Any]]) -> None:
        """Run cells again with the answers that they got."""
        for number, cell in enumerate(cells, 1):
            ended = await self.run(cell["code"], _no_host, cell["calls"])
            if ended.ending not in (Ending.DONE, Ending.RAISED):
                await self.aclose()
                raise EngineError(f"cell {number} of a saved session could not be repeated: {ended.error[:200]}")

    async def value(self, name: str) -> Any:
        if self._lost:
            return None
        try:
            message = await Turn(self._limits).clocked(self._exchange({"kind": "value", "name": name}))
            if message["kind"] != "value":
                raise Garbled("another answer than it was asked for")
            value = decode(message.get("value"))
            check_plain(value)
        except NotPlain:
            return None
        except (TimeUp, Garbled, EOFError) as error:
            await self._lose(f"the worker died: {_one_line(error)}")
            return None
        return value

    async def dump(self) -> bytes:
        if self._lost:
            raise EngineError(f"this session is gone: {self._lost}")
        return pack(BACKEND, "session", self._journal())

    async def aclose(self) -> None:
        await self._lose("it was closed")

    async def _drive(
        self,
        turn: Turn,
        code: str,
        host: Host,
        recorded: Sequence[Mapping[str, Any]],
        calls: list[dict[str, Any]],
    ) -> _Settled:
        message: dict[str, Any] = {"kind": "run", "code": code}
        try:
            answer = await turn.clocked(self._exchange(message))
            while answer["kind"] == "call":
                message = await self._call(turn, answer, code, host, recorded, calls)
                answer = await turn.clocked(self._exchange(message))
            return _end(turn, answer)
        except CellStopped as stopped:
            return _Settled(Ending.LOST, str(stopped) or "the host stopped it")
        except TimeUp:
            return _Settled(Ending.LOST, turn.time_up)
        except Garbled as error:
            return _Settled(Ending.LOST, f"the worker sent {error}")
        except EOFError:
            return _Settled(Ending.LOST, "the worker died: it ended without a result")

    async def _call(
        self,
        turn: Turn,
        answer: Mapping[str, Any],
        code: str,
        host: Host,
        recorded: Sequence[Mapping[str, Any]],
        calls: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """The reply to a call, from the record or from the host."""
        turn.count_call()
        with turn.clock():
            try:
                name, args, kwargs = _question(answer)
            except NotPlain as error:
                return _as_reply(ProgramError(str(error), "TypeError"))
        if name not in self._functions:
            return _as_reply(ProgramError(f"name {name!r} is not defined", "NameError"))
        number = len(calls)
        question = answer["digest"]
        if number < len(recorded):
            if recorded[number]["question"] != question:
                raise EngineError("a saved session asks something else when it is repeated: it used time or chance")
            reply = _recalled(recorded[number]["reply"])
        else:

            async def fork() -> bytes:
                return pack(BACKEND, "call", self._journal(code=code, calls=calls[:number], question=question))

            try:
                replied = await host(HostCall(name, args, kwargs, fork))
                check_reply(name, replied)
                reply = _as_reply(replied)
            except ProgramError as error:
                reply = _as_reply(error)
        calls.append({"question": question, "reply": _saved(reply)})
        return reply

    def _journal(self, **cell: Any) -> bytes:
        return json.dumps({"values": encode(dict(self._values)), "cells": self._cells, **cell}).encode()

    async def _exchange(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send a frame, and wait for the worker's next one. It runs in between, and at no other time.

        Raises:
            EOFError: it ended.
            Garbled: what came is no frame.
        """
        reader, writer = self._process.stdout, self._process.stdin
        if reader is None or writer is None:
            raise EOFError("it has no pipes")
        self._signal(signal.SIGCONT)
        try:
            writer.write(pack_for_worker(dict(message)))
            await writer.drain()
            length = frame_length(await reader.readexactly(LENGTH_BYTES))
            body = await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            raise EOFError("it ended without a result") from None
        self._signal(signal.SIGSTOP)  # whatever it pretends, it computes nothing while the host does
        message = unpack_frame(body)
        return message | {"digest": hashlib.sha256(body).hexdigest()} if message["kind"] == "call" else message

    def _signal(self, which: signal.Signals) -> None:
        """To this process and to no later one of its number, whoever has waited for it."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, which)

    async def _lose(self, reason: str) -> None:
        if not self._lost:
            self._lost = reason
            self._signal(signal.SIGKILL)
            await asyncio.shield(self._reap())

    async def _reap(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        await self._process.communicate()
        os.close(self._handle)
        self._places.give_back()


def _widen(process: Process) -> None:
    """Let more of a large value wait in the pipe, where the system allows that."""
    pipe = process.stdin.get_extra_info("pipe") if process.stdin else None
    if pipe:
        with suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _end(turn: Turn, answer: Mapping[str, Any]) -> _Settled:
    """What a worker says of the end of a cell, as far as it can be read."""
    output, error, ending, num_cut = (answer.get(key) for key in ("output", "error", "ending", "num_cut"))
    if not isinstance(output, str) or not isinstance(error, str):
        raise Garbled("an end that cannot be read")
    if not isinstance(num_cut, int) or not 0 <= num_cut <= MOST_CUT:
        raise Garbled("an end that cannot be read")
    turn.output.write("stdout", _encodable(output))
    turn.output.num_cut += num_cut
    if ending == "memory":
        return _Settled(Ending.LOST, turn.out_of_memory)
    if ending not in ("done", "raised", "refused"):
        raise Garbled("an end of no known kind")
    return _Settled(Ending(ending), _encodable(error[:MAX_ERROR_CHARACTERS]))


def _question(answer: Mapping[str, Any]) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Raises: NotPlain, or Garbled where no stub of a worker would have sent it."""
    check_plain([answer], max_depth=4 * MAX_DEPTH)  # before more is made of it
    name, args, kwargs = answer.get("name"), decode(answer.get("args")), decode(answer.get("kwargs"))
    if not isinstance(name, str) or not isinstance(args, list) or not isinstance(kwargs, dict):
        raise Garbled("a call that cannot be read")
    if not all(isinstance(key, str) for key in kwargs):
        raise Garbled("a call that cannot be read")
    check_plain([name, args, kwargs])
    return name, tuple(args), kwargs


def _as_reply(reply: Any) -> dict[str, Any]:
    if isinstance(reply, ProgramError):
        return {"kind": "raise", "error": reply.kind, "message": str(reply)}
    return {"kind": "return", "value": reply}


def _saved(reply: Mapping[str, Any]) -> dict[str, Any]:
    """A reply as JSON, for the journal; a copy, whatever becomes of its parts."""
    return {**reply, "value": encode(reply["value"])} if reply["kind"] == "return" else dict(reply)


def _recalled(saved: Mapping[str, Any]) -> dict[str, Any]:
    return {**saved, "value": decode(saved["value"])} if saved["kind"] == "return" else dict(saved)


def _values(journal: Mapping[str, Any]) -> dict[str, Any]:
    values = decode(journal["values"])
    assert isinstance(values, dict)  # noqa: S101 (from `_journal`)
    return values


@cache
def _confinement(memory_bytes: int) -> Confinement:
    """The interpreter's standard library without what was installed beside it, and the system's own libraries."""
    read, _ = libraries(os.path.realpath(sys.executable))
    standard = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    entries = [str(path) for folder in standard for path in Path(folder).iterdir() if path.name not in NOT_READ]
    # extension modules load more of the libraries that lie beside the C library
    system = {
        os.path.dirname(path) for path in read if os.path.basename(path).startswith(("libc.", "libc-", "ld-musl"))
    }
    return Confinement(memory_bytes, (*read, *sorted(system), *sorted(entries)), names=tuple(sorted(standard)))


async def _no_host(call: HostCall) -> Any:
    raise EngineError("a saved session asks more when it is repeated: it used time or chance")


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
