"""A link to an engine in a child process, over a Unix socket pair.

What goes over it are pickles, each with its length before it. Whoever sends a pickle can run code at the receiver;
here the two are one program: the child is our own, and the socket pair has no address that others could reach.
"""

import asyncio
import itertools
import logging
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from reasonrt.engines.linked import BuildEngine, EngineHost
from reasonrt.engines.orphans import owned_environment
from reasonrt.errors import EngineError, ReasonRTError
from reasonrt.tasks import cancel

_GRACE_S = 5.0  # of a child that is to close its engine
_LENGTH = struct.Struct("!I")
_MAX_REASON = 300  # characters
_CHILD = "import sys; sys.path[:] = sys.argv[2:]; from reasonrt.engines.local_link import host; host(int(sys.argv[1]))"
_CALL, _STREAM, _CANCEL, _ITEM, _DONE, _ERROR = range(6)  # what a message is: three to the child, three from it
_log = logging.getLogger(__name__)


class LocalLink:
    """To an `EngineHost` in a child process, which the first call starts, and the first call after its death again.

    The child is a fresh interpreter, so CUDA and threads of this process do not matter to it. It runs in a session of
    its own: Ctrl-C at the terminal does not reach it. It ends with `aclose`, and with this process, however that ends.
    A link belongs to the event loop that it is used in.

    Args:
        name: of the engine, for messages.
        build: the engine; must be picklable by name, as a `functools.partial` of an importable function is.
    """

    def __init__(self, name: str, build: BuildEngine) -> None:
        self._name, self._build = name, build
        self._child: _Child | None = None
        self._startup: asyncio.Task[_Child] | None = None

    async def call(self, method: str, *arguments: Any, session: str = "") -> Any:
        child = self._running() if session else await self._alive()
        request_id, answers = child.ask(_CALL, method, arguments)
        try:
            return _value(*await answers.get())
        finally:
            child.leave(request_id)

    async def stream(self, method: str, *arguments: Any, session: str = "") -> AsyncGenerator[Any, None]:
        child = await self._alive()
        request_id, answers = child.ask(_STREAM, method, arguments)
        kind = _ITEM
        try:
            while True:
                kind, item = await answers.get()
                if kind != _ITEM:
                    _value(kind, item)
                    return
                yield item
        finally:
            child.leave(request_id)
            while kind == _ITEM:  # the far end has stopped when it says that it is done
                kind, _ = await answers.get()

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.is_alive

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()

    async def aclose(self) -> None:
        await cancel(self._startup)
        child, self._child, self._startup = self._child, None, None
        if child is not None:
            await child.end(_GRACE_S)

    def _running(self) -> "_Child":
        if self._child is None or not self._child.is_alive:
            raise EngineError(f"the process of engine {self._name!r} is gone, and with it what ran in it; ask again")
        return self._child

    async def _alive(self) -> "_Child":
        if self._child is not None and self._child.is_alive:
            return self._child
        if self._startup is None or self._startup.done():
            self._startup = asyncio.create_task(self._start())
        return await asyncio.shield(self._startup)  # the link's own: a caller that leaves does not end it

    async def _start(self) -> "_Child":
        dead, self._child = self._child, None
        if dead is not None:
            _log.warning("the process of engine %s died and is started again", self._name)
            await dead.end(0.0)
        try:
            child = _Child(self._name)
        except OSError as error:
            raise EngineError(f"cannot start a process for engine {self._name!r}: {error.strerror}") from error
        try:
            await child.connect()
            _, answers = child.ask(_CALL, "build", (pickle.dumps(self._build),))
            _value(*await answers.get())
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(child.end(0.0)))
            raise
        self._child = child
        return child


class _Child:
    """One life of the child process, and the requests that it works on."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._ids = itertools.count()
        self._answers: dict[int, asyncio.Queue[tuple[int, Any]]] = {}
        self._ended = asyncio.Event()
        self._watched: int | None = None  # the process, as a file that is readable once it has ended
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-c", _CHILD, str(theirs.fileno()), *map(str, sys.path)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=2,
                env=os.environ | owned_environment(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._channel = _Channel(ours, self._receive, self.kill)

    @property
    def is_alive(self) -> bool:
        return not self._ended.is_set()

    async def connect(self) -> None:
        await self._channel.connect()
        if hasattr(os, "pidfd_open"):  # a process that the engine has forked may hold the child's end of the socket
            self._watched = os.pidfd_open(self._process.pid)
            asyncio.get_running_loop().add_reader(self._watched, self.kill)

    def ask(self, kind: int, method: str, arguments: tuple[Any, ...]) -> tuple[int, "asyncio.Queue[Any]"]:
        """The id of the request, and the queue of its answers; the last one is `DONE` or `ERROR`."""
        request_id, answers = next(self._ids), asyncio.Queue[tuple[int, Any]]()
        if self.is_alive:
            self._channel.send((kind, request_id, method, arguments))
        self._answers[request_id] = answers
        if not self.is_alive:
            self._fail("died")
        return request_id, answers

    def leave(self, request_id: int) -> None:
        """Cancel the request if it still runs; it is answered all the same."""
        if request_id in self._answers and self.is_alive:
            self._channel.send((_CANCEL, request_id))

    async def end(self, grace_s: float) -> None:
        """Ask the child to close its engine and, after `grace_s`, kill it with all that it has started."""
        if self.is_alive and grace_s:
            self._fail("was closed")
            self._channel.finish()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), grace_s)
        self.kill()
        await asyncio.to_thread(self._process.wait)

    def _receive(self, message: tuple[int, int, Any]) -> None:
        kind, request_id, value = message
        if (answers := self._answers.get(request_id)) is not None:
            answers.put_nowait((kind, value))
        if kind != _ITEM:
            self._answers.pop(request_id, None)

    def kill(self) -> None:
        """Once: fail what runs, and kill what is left; the child is not reaped yet, so its group's id is its own."""
        if not self.is_alive:
            return
        self._ended.set()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            os.close(self._watched)
        self._channel.close()
        self._fail("died")

    def _fail(self, fate: str) -> None:
        """Answer what runs, and what comes in between, with the fate of the process."""
        for answers in self._answers.values():
            message = f"the process of engine {self._name!r} {fate} while it worked on this request; ask again"
            answers.put_nowait((_ERROR, EngineError(message)))
        self._answers.clear()


class _Channel(asyncio.Protocol):
    """One end of the socket pair, for whole messages.

    What is sent within one turn of the event loop goes out in one write. Nothing is held back from a receiver that is
    slow: what waits is bounded by the tokens that requests may ask for.

    Args:
        end: of the socket pair; it is closed with the channel.
        receive: called with each message.
        lose: called when the other end has closed.
    """

    def __init__(self, end: socket.socket, receive: Callable[[Any], None], lose: Callable[[], None]) -> None:
        self._end, self._receive, self._lose = end, receive, lose
        self._transport: asyncio.Transport | None = None
        self._incoming = bytearray()
        self._outgoing: list[bytes] = []

    async def connect(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport, _ = await self._loop.create_unix_connection(lambda: self, sock=self._end)

    def send(self, message: Any) -> None:
        """Raises whatever pickling `message` raises; then nothing is sent."""
        content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing += (_LENGTH.pack(len(content)), content)

    def finish(self) -> None:
        """Tell the other end that nothing more comes, and continue to receive."""
        self._flush()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        if self._transport is None:
            self._end.close()
        else:
            self._flush()
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._incoming += data
        start = 0
        while len(self._incoming) >= (begin := start + _LENGTH.size):
            end = begin + _LENGTH.unpack_from(self._incoming, start)[0]
            if len(self._incoming) < end:
                break
            with memoryview(self._incoming) as content, content[begin:end] as pickled:
                message = pickle.loads(pickled)  # noqa: S301 - of our own process: see the head of this file
            self._receive(message)
            start = end
        del self._incoming[:start]

    def eof_received(self) -> bool:
        self._lose()
        return True  # whoever owns the channel closes it

    def connection_lost(self, error: Exception | None) -> None:
        self._lose()

    def _flush(self) -> None:
        if self._outgoing and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()


def _value(kind: int, value: Any) -> Any:
    if kind == _ERROR:
        raise value
    return value


def host(descriptor: int) -> None:
    """The child's program: serve one engine over the socket `descriptor` until its other end closes."""
    try:
        asyncio.run(_serve(socket.socket(fileno=descriptor)))
    finally:
        os.killpg(0, signal.SIGKILL)  # and what the engine has left running; the parent may not be there to do it


async def _serve(end: socket.socket) -> None:
    await _Served(end).until_closed()


class _Served:
    """The child's end: runs each request as a task, and answers it."""

    def __init__(self, end: socket.socket) -> None:
        self._channel = _Channel(end, self._receive, self._lose)
        self._host: EngineHost | None = None
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._is_lost = asyncio.Event()

    async def until_closed(self) -> None:
        await self._channel.connect()
        await self._is_lost.wait()
        await cancel(*self._tasks.values())
        if self._host is not None:
            await self._host.aclose()
        self._channel.close()

    def _lose(self) -> None:
        self._is_lost.set()

    def _receive(self, message: tuple[Any, ...]) -> None:
        kind, request_id, *asked = message
        if kind == _CANCEL:
            if request_id in self._tasks:
                self._tasks[request_id].cancel()
            return
        task = asyncio.create_task(self._work(kind, request_id, *asked))
        self._tasks[request_id] = task
        task.add_done_callback(partial(self._answer, request_id))

    async def _work(self, kind: int, request_id: int, method: str, arguments: tuple[Any, ...]) -> Any:
        work = getattr(self if method == "build" else self._host, method)(*arguments)
        if kind == _CALL:
            return await work
        async with aclosing(work) as items:
            async for item in items:
                self._channel.send((_ITEM, request_id, item))
        return None

    def _answer(self, request_id: int, task: asyncio.Task[Any]) -> None:
        del self._tasks[request_id]
        try:  # one that was cancelled is done: its asker waits for that
            self._channel.send((_DONE, request_id, None if task.cancelled() else task.result()))
        except Exception as error:  # noqa: BLE001 (whatever it is, the near end is to hear of it)
            self._channel.send((_ERROR, request_id, _portable(error)))

    async def build(self, pickled: bytes) -> None:
        build: BuildEngine = pickle.loads(pickled)  # noqa: S301 - of our own process
        engine = build()
        self._host = EngineHost(engine)
        await engine.start()


def _portable(error: Exception) -> ReasonRTError:
    """The error as it can be raised at the near end: itself where it is ours, and comes back from a pickle."""
    if isinstance(error, ReasonRTError):
        with suppress(Exception):
            same: ReasonRTError = pickle.loads(pickle.dumps(error))  # noqa: S301 - its own
            return same
    _log.error("an engine failed", exc_info=error)
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_REASON]
    return EngineError(f"the engine failed: {reason}; its process has printed where")
