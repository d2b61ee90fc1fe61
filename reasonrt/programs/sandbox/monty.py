"""The default backend: pydantic-monty, a Python of its own in a worker of its own, started through the wrapper."""

import asyncio
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, cast, get_args

from reasonrt.errors import ConfigError, EngineError, RequestError
from reasonrt.programs.language import names_bound
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
from reasonrt.programs.sandbox.check import Checker, CheckOut
from reasonrt.programs.sandbox.launch import Confinement, Launcher, libraries, refuse_unconfined, what_is_missing
from reasonrt.programs.sandbox.output import Output
from reasonrt.programs.sandbox.places import Places
from reasonrt.programs.sandbox.plain import NotPlain, check_plain
from reasonrt.programs.sandbox.selftest import self_test
from reasonrt.programs.sandbox.settings import SandboxSettings
from reasonrt.programs.sandbox.state import pack, unpack
from reasonrt.programs.sandbox.turn import TimeUp, Turn

if TYPE_CHECKING:
    from pydantic_monty import AsyncFunctionSnapshot, AsyncMonty, AsyncMontySession, AsyncSnapshot, ExternalResult

BACKEND = "monty"
START_S = 30.0
GRACE_S = 1.0  # the worker stops itself at its limit; the host kills it when it has not
NO_LIMIT = (1 << 31) - 1
HOST_FUNCTION = "<class 'function'>"
LIMIT_MESSAGES = (
    "feed time limit exceeded",
    "turn time limit exceeded",
    "memory limit exceeded",
    "exceeded its memory limit",
)

T = TypeVar("T")
logger = logging.getLogger(__name__)


class MontySandbox:
    """Sessions in confined workers of pydantic-monty, each in a process that no other session has used."""

    backend = BACKEND

    def __init__(self, settings: SandboxSettings | None = None) -> None:
        self._settings = settings or SandboxSettings()
        self._pool: AsyncMonty | None = None
        self._checker: Checker | None = None
        self._places = Places(self._settings)
        self._launcher: Launcher | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> Self:
        await self._started()
        return self

    async def aclose(self) -> None:
        checker, self._checker = self._checker, None
        if checker:
            await checker.aclose()
        pool, self._pool = self._pool, None
        launcher, self._launcher = self._launcher, None
        if pool:
            await pool.__aexit__(None, None, None)
        if launcher:
            launcher.close()

    async def open(
        self, values: Mapping[str, Any], functions: Sequence[str] = (), limits: CellLimits | None = None
    ) -> "MontySession":
        from pydantic_monty import MontyError

        session = await self._check_out(await self._started(), functions, limits or CellLimits())
        try:
            await session.bind(values)
        except BaseException as error:
            await session.aclose()
            if isinstance(error, MontyError):
                raise RequestError(f"the values of a session cannot be set: {_one_line(error)}") from error
            raise
        return session

    async def load(
        self, state: bytes, functions: Sequence[str] = (), limits: CellLimits | None = None
    ) -> "MontySession":
        """As the port says; what the worker limits itself stays as it was: seconds of a cell, memory, recursion."""
        header, payload = unpack(BACKEND, "session", state)
        session = await self._check_out(await self._started(), functions, limits or CellLimits())
        await session.restore(header, payload)
        return session

    async def resume(
        self, state: bytes, reply: Any, host: Host, functions: Sequence[str] = (), limits: CellLimits | None = None
    ) -> tuple["MontySession", Cell]:
        """As the port says; a `ProgramError` as the reply is raised in the program."""
        header, payload = unpack(BACKEND, "call", state)
        session = await self._check_out(await self._started(), functions, limits or CellLimits())
        return session, await session.resume(header, payload, reply, host)

    async def _started(self) -> "AsyncMonty":
        if self._pool:
            return self._pool
        async with self._starting:
            return self._pool or await self._start()

    async def _start(self) -> "AsyncMonty":
        try:
            from pydantic_monty import AsyncMonty
            from pydantic_monty._binary import find_monty_binary
        except ImportError:
            raise ConfigError("the sandbox `monty` needs pydantic-monty; pip install 'reasonrt[programs]'") from None
        settings = self._settings
        if settings.unconfined:
            _warn_once()
        elif missing := what_is_missing():
            raise refuse_unconfined(missing)
        binary = os.path.realpath(find_monty_binary())  # noqa: ASYNC240 (once)
        self._launcher = Launcher(
            None if settings.unconfined else Confinement(settings.worker_bytes, *libraries(binary))
        )
        pool = AsyncMonty(
            binary_path=self._launcher.script(binary),
            min_processes=min(settings.min_workers, settings.max_workers),
            max_processes=settings.max_workers + settings.check,
            checkout_timeout=START_S,  # a place is free by then
            max_checkouts_per_worker=1,
        )
        try:
            await _open_pool(pool)
            await self_test(BACKEND, "exec", lambda limits: self._check_out(pool, (), limits), self._launcher)
        except BaseException:
            await pool.__aexit__(None, None, None)
            await self.aclose()
            raise
        if settings.check:
            self._checker = Checker(_type_checks(pool))
        self._pool = pool
        return pool

    async def _check_out(self, pool: "AsyncMonty", functions: Sequence[str], limits: CellLimits) -> "MontySession":
        from pydantic_monty import MontyError

        if limits.memory_bytes > self._settings.worker_bytes:
            raise ConfigError(
                f"memory_bytes {limits.memory_bytes} is more than a worker has; raise worker_bytes"
                f" {self._settings.worker_bytes} of the sandbox"
            )
        checkout = pool.checkout(
            script_name="cell.py",
            limits={
                "max_feed_duration_secs": limits.cell_s,
                "max_memory": limits.memory_bytes,
                "max_recursion_depth": limits.max_recursion,
                "max_suspensions": NO_LIMIT,  # counted by the session, which says what happened
            },
            os_policy={"sleep": "zero", "timezone": "utc", "random_start": {"seed": 0}},  # a fork repeats
        )
        await self._places.take()
        try:
            session = await checkout.__aenter__()
        except BaseException as error:
            self._places.give_back()
            if isinstance(error, MontyError | TimeoutError):
                raise EngineError(f"a worker of the sandbox did not start: {_one_line(error)}") from error
            raise
        return MontySession(session, self._places, frozenset(functions), limits, self._checker)


class _Settled(NamedTuple):
    """A cell that needs nothing more of its worker."""

    ending: Ending
    error: str


class MontySession:
    """One interpreter; see `Session`."""

    def __init__(
        self,
        session: "AsyncMontySession",
        places: Places,
        functions: frozenset[str],
        limits: CellLimits,
        checker: Checker | None,
    ) -> None:
        self._session = session
        self._places = places
        self._functions = functions
        self._limits = limits
        self._checker = checker
        self._names: set[str] | None = set()  # that are bound, or may be; None: unknown
        self._lost = ""

    @property
    def worker_pid(self) -> int | None:
        """The worker's process; None while it runs a cell."""
        return self._session.worker_pid

    async def run(self, code: str, host: Host) -> Cell:
        if self._lost:
            return Cell(Ending.LOST, error=f"this session is gone: {self._lost}")
        turn = Turn(self._limits, grace_s=GRACE_S)
        try:
            code.encode()
        except UnicodeEncodeError:
            return Cell(Ending.REFUSED, error="SyntaxError: half of a surrogate pair in the program")
        if found := await self._check(code):
            return Cell(Ending.REFUSED, error=found)
        return await self._drive(turn, host, lambda: self._session.feed_start(code, print_callback=turn.output.write))

    async def value(self, name: str) -> Any:
        if self._lost or not name.isidentifier():
            return None
        found: list[Any] = []
        read = f"({name}, str(type({name})))"
        turn = Turn(self._limits, grace_s=GRACE_S)
        await self._drive(turn, _no_host, lambda: self._session.feed_start(read), found.append)
        if not found:
            return None
        value, kind = found[0]
        try:
            check_plain(value)
        except NotPlain:
            return None
        return None if kind == HOST_FUNCTION else value  # which arrives as its name

    async def dump(self) -> bytes:
        from pydantic_monty import MontyError

        if self._lost:
            raise EngineError(f"this session is gone: {self._lost}")
        try:
            return pack(BACKEND, "session", await self._session.dump(), {"names": self._saved_names()})
        except MontyError as error:
            await self._lose(_one_line(error))
            raise EngineError(f"this session is gone: {self._lost}") from error

    async def aclose(self) -> None:
        await self._lose("it was closed")

    async def bind(self, values: Mapping[str, Any]) -> None:
        """Set variables, before the first cell."""
        self._names = set(values)
        if values:
            await self._session.feed_start("None", inputs=dict(values))

    async def restore(self, header: Mapping[str, Any], payload: bytes) -> None:
        """Continue from `dump`, before the first cell."""
        self._names = _loaded_names(header)
        await self._loaded(self._session.load_session(payload))

    async def resume(self, header: Mapping[str, Any], payload: bytes, reply: Any, host: Host) -> Cell:
        """Continue from `HostCall.fork`, before the first cell."""
        self._names = _loaded_names(header)
        output = Output(self._limits.output_characters, header["output"], header["num_cut"])
        turn = Turn(self._limits, output, GRACE_S)
        turn.num_calls, turn.seconds = header["num_calls"], header["seconds"]
        snapshot = await self._loaded(self._session.load_snapshot(payload, print_callback=turn.output.write))
        call = cast("AsyncFunctionSnapshot", snapshot)
        return await self._drive(turn, host, lambda: call.resume(_as_reply(reply)))

    async def _check(self, code: str) -> str:
        """What cannot work in a cell, before it runs; what it may bind is known from then on."""
        if self._checker is None or self._names is None:
            return ""
        try:
            found = await self._checker.check(code, self._names, self._functions)
        except BaseException:
            await self._lose("it was cancelled")
            raise
        if not found:
            self._names = _both(self._names, names_bound(code))
        return found

    async def _loaded(self, loading: Awaitable[T]) -> T:
        from pydantic_monty import MontyError

        try:
            return await loading
        except (MontyError, RuntimeError, ValueError) as error:
            await self._lose("its state could not be read")
            raise EngineError(f"a saved session cannot be loaded: {_one_line(error)}") from error

    async def _drive(
        self,
        turn: Turn,
        host: Host,
        start: Callable[[], Awaitable["AsyncSnapshot"]],
        keep: Callable[[Any], None] | None = None,
    ) -> Cell:
        """Run to the end of a cell: answer what the worker asks for, and judge how it ended."""
        try:
            settled = await self._answer(turn, host, start, keep)
        except BaseException:  # cancelled, or the host failed: nobody will answer this worker any more
            await self._lose("it was cancelled, or its host failed")
            raise
        if settled.ending is Ending.LOST:
            await self._lose(settled.error)
        return Cell(settled.ending, turn.output.text, settled.error, turn.seconds, turn.num_calls)

    async def _answer(
        self,
        turn: Turn,
        host: Host,
        start: Callable[[], Awaitable["AsyncSnapshot"]],
        keep: Callable[[Any], None] | None,
    ) -> _Settled:
        from pydantic_monty import (
            MontyComplete,
            MontyCrashedError,
            MontyError,
            MontySyntaxError,
            MontyTypingError,
        )

        try:
            snapshot = await turn.clocked(start())
            while not isinstance(snapshot, MontyComplete):
                snapshot = await self._next(turn, host, snapshot)
            if keep:
                keep(snapshot.output)
        except CellStopped as stopped:
            return _Settled(Ending.LOST, str(stopped) or "the host stopped it")
        except TimeUp:
            return _Settled(Ending.LOST, turn.time_up)
        except MontyCrashedError as error:
            return _Settled(Ending.LOST, f"the worker died: {_one_line(error)}")
        except (MontySyntaxError, MontyTypingError) as error:
            return _Settled(Ending.REFUSED, error.display())
        except MontyError as error:
            settled = _judge(error, turn)
            if settled.ending is not Ending.LOST and self._session.worker_pid is None:
                return _Settled(Ending.LOST, f"the worker died: {_one_line(error)}")
            return settled
        return _Settled(Ending.DONE, "")

    async def _next(self, turn: Turn, host: Host, snapshot: "AsyncSnapshot") -> "AsyncSnapshot":
        from pydantic_monty import AsyncFunctionSnapshot, AsyncNameLookupSnapshot

        turn.count_question()
        if isinstance(snapshot, AsyncNameLookupSnapshot):
            name = snapshot.variable_name
            if name in self._functions and snapshot.object_id is None:
                return await turn.clocked(snapshot.resume(value=_named(name)))
            return await turn.clocked(snapshot.resume())
        if not isinstance(snapshot, AsyncFunctionSnapshot):
            raise CellStopped("it waits for a future, and no host function gives one")
        if snapshot.is_os_function:
            return await turn.clocked(snapshot.resume_not_handled())
        return await turn.clocked(snapshot.resume(await self._call(turn, host, snapshot)))

    async def _call(self, turn: Turn, host: Host, snapshot: Any) -> Any:
        name = snapshot.function_name
        if name not in self._functions or snapshot.object_id is not None:
            return {"exc_type": "NameError", "message": f"name {name!r} is not defined"}
        turn.count_call()
        with turn.clock():
            args, kwargs = snapshot.args, snapshot.kwargs
            try:
                check_plain([*args, kwargs])
            except NotPlain as error:
                return {"exc_type": "TypeError", "message": f"{name}: {error}"}
        try:
            reply = await host(HostCall(name, args, kwargs, lambda: self._fork(turn, snapshot)))
            check_reply(name, reply)
        except ProgramError as error:
            reply = error
        return _as_reply(reply)

    async def _fork(self, turn: Turn, snapshot: Any) -> bytes:
        header = {
            "names": self._saved_names(),
            "output": turn.output.kept,
            "num_cut": turn.output.num_cut,
            "num_calls": turn.num_calls,
            "seconds": turn.seconds,
        }
        return pack(BACKEND, "call", await asyncio.to_thread(snapshot.dump), header)

    def _saved_names(self) -> list[str] | None:
        return None if self._names is None else sorted(self._names)

    async def _lose(self, reason: str) -> None:
        if not self._lost:
            self._lost = reason
            try:
                await asyncio.shield(self._session.__aexit__(None, None, None))
            finally:
                self._places.give_back()


def _judge(error: Any, turn: Turn) -> _Settled:
    """What an exception at the top of a cell means: after a limit, the heap can be in any state."""
    message = str(error)
    kind = type(error.exception())
    if kind in (TimeoutError, MemoryError) and any(text in message for text in LIMIT_MESSAGES):
        return _Settled(Ending.LOST, turn.time_up if kind is TimeoutError else turn.out_of_memory)
    display = getattr(error, "display", None)
    return _Settled(Ending.RAISED, display() if display else message)


def _as_reply(reply: Any) -> "ExternalResult":
    if isinstance(reply, ProgramError):
        return {"exc_type": cast(Any, _known_exception(reply.kind)), "message": str(reply)}
    return {"return_value": reply}


def _known_exception(kind: str) -> str:
    """Monty has fewer built-in exceptions than Python."""
    from pydantic_monty import ExcType

    return kind if kind in get_args(ExcType) else "RuntimeError"


def _named(name: str) -> Callable[[], None]:
    """A function that stands for the host's one of this name; the worker asks for it by its name."""

    def stand_in() -> None:
        pass

    stand_in.__name__ = name
    return stand_in


async def _open_pool(pool: "AsyncMonty") -> None:
    from pydantic_monty import MontyError

    try:
        await pool.__aenter__()
    except (MontyError, OSError, RuntimeError) as error:
        reason = f"workers of the sandbox do not start: {_one_line(error)}"
        raise EngineError(f"{reason}; they are started from a file in {tempfile.gettempdir()}, see TMPDIR") from error


def _type_checks(pool: "AsyncMonty") -> CheckOut:
    return lambda stubs: pool.checkout(type_check=True, type_check_stubs=stubs, type_check_format="json")


def _both(names: set[str], more: set[str] | None) -> set[str] | None:
    return None if more is None else names | more


def _loaded_names(header: Mapping[str, Any]) -> set[str] | None:
    return None if header["names"] is None else set(header["names"])


async def _no_host(call: HostCall) -> Any:
    raise ProgramError(f"{call.name} cannot be called here")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


_warned: set[str] = set()


def _warn_once() -> None:
    if BACKEND not in _warned:
        _warned.add(BACKEND)
        logger.warning("programs run unconfined: nothing but the interpreter keeps them from this machine")
