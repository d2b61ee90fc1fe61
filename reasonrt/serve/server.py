"""The process around the app: it listens, and when it is told to end it finishes what it has begun."""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from reasonrt.config import Config
from reasonrt.errors import ConfigError
from reasonrt.runtime import Runtime
from reasonrt.serve.app import build_app
from reasonrt.serve.backends.base import Backend
from reasonrt.serve.backends.local import Worker
from reasonrt.serve.catalog import Catalog
from reasonrt.serve.config import ServeConfig
from reasonrt.serve.connections import Connections, protocol_of
from reasonrt.serve.gateway import Gateway
from reasonrt.serve.signals import take_signals

_log = logging.getLogger(__name__)
_THREADS = "reasonrt-serve"
_LEAVE_S = 0.5  # for threads to end
_TOLD_S = 2.0  # for callers to read that they were cut off
_KEEP_OPEN_S = 75  # longer than common clients keep an idle connection


class Server(uvicorn.Server):
    """Told to end, it gives 503 to new requests and `grace_s` to running ones; told again, it cuts them off.

    SIGTERM, SIGINT and SIGHUP tell it, at any time; the exit code is 0.
    """

    def __init__(self, app: FastAPI, config: ServeConfig) -> None:
        connections = Connections(config.connections, len(config.api_keys))
        app.state.gateway.metrics.watch_connections(lambda: connections.num, lambda: connections.num_closed)
        super().__init__(
            uvicorn.Config(
                app,
                host=config.host,
                port=config.port,
                http=protocol_of(connections),
                backlog=connections.backlog,
                proxy_headers=False,  # nobody asks for what they say
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_OPEN_S,
                timeout_graceful_shutdown=1,  # after the grace
                ws="none",
            )
        )
        self._app, self._grace_s = app, config.grace_s
        self._end: float | None = None
        self._cut_off_at: float | None = None
        self.failure: BaseException | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = take_signals(self.handle_exit)
        try:
            yield
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._end is None:
            self.drain()
        else:
            self._end = time.monotonic()
            self.force_exit = self.should_exit  # it has told its callers, and waits for its engines

    def drain(self) -> None:
        """Take no more requests, and end when none runs or the grace is over."""
        _log.info("draining")
        self._end = time.monotonic() + self._grace_s
        self.gateway.admission.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        if threading.current_thread() is threading.main_thread():
            take_signals(self.handle_exit)  # Ray puts its own in their place, from C++: Python does not know
        now = time.monotonic()
        if self._end is not None and (self._is_idle() or now >= self._end):
            if self._cut_off_at is None:
                self._cut_off_at = now
                self._cut_off()
            if self._is_idle() or now >= self._cut_off_at + _TOLD_S:
                self.should_exit = True
        holding = self._app.state.holding
        if holding.done() and not self.should_exit:  # the engines could not start
            self.failure = holding.exception()
            self.should_exit = True
        return await super().on_tick(counter)

    def _is_idle(self) -> bool:
        return self.gateway.admission.is_idle and not self.gateway.replies

    def _cut_off(self) -> None:
        if num := self.gateway.cut_off():
            _log.warning("%d requests ran beyond the grace of %g s and were cut off", num, self._grace_s)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        with ThreadPoolExecutor(thread_name_prefix=_THREADS) as threads:
            asyncio.get_running_loop().set_default_executor(threads)
            await super().serve(sockets)
            threads.shutdown(wait=False, cancel_futures=True)
            if self.failure is None and not await self._has_left():
                _exit_now()

    async def _has_left(self) -> bool:
        """Whether nothing of the engines runs here any more: nobody can end a thread that waits for one to start."""
        if threading.current_thread() is not threading.main_thread():
            return True
        give_up = time.monotonic() + _LEAVE_S
        while any(thread.name.startswith(_THREADS) for thread in threading.enumerate()):
            if time.monotonic() > give_up:
                return False
            await asyncio.sleep(0.02)
        return bool(self._app.state.holding.done())

    @property
    def gateway(self) -> Gateway:
        gateway: Gateway = self._app.state.gateway
        return gateway


def serve(backend: Backend, config: ServeConfig, announce: Callable[[str], None]) -> None:
    """Serve until a signal comes.

    Args:
        announce: gets the URL, as soon as the server listens; the engines start after that.

    Raises:
        ConfigError: the address cannot be used.
        EngineError: the engines could not start.
    """
    server = Server(build_app(backend, Catalog(backend.runtime, config), config), config)
    with _listen(config.host, config.port) as listening:
        host, port = listening.getsockname()[:2]
        announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        server.run([listening])
    if server.failure is not None:
        raise server.failure


def serve_local(settings: Config, config: ServeConfig, announce: Callable[[str], None]) -> None:
    """Engines, policies and endpoint in this process."""
    serve(Worker(Runtime.of(settings), config.bounds.engine_silence_s), config, announce)


def _exit_now() -> None:
    """End this process as it is; the watcher of `engines.orphans` ends what it has started."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from None
