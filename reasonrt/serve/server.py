"""The process around the app: it listens, and on SIGTERM finishes what it has begun."""

import logging
import signal
import socket
import time
from collections.abc import Callable
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

_log = logging.getLogger(__name__)
_KEEP_OPEN_S = 75  # longer than common clients keep an idle connection


class Server(uvicorn.Server):
    """On SIGTERM, new requests get 503 while running ones get `grace_s`; on SIGINT it ends immediately."""

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
        self.failure: BaseException | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM and self._end is None:
            self.drain()
        else:
            super().handle_exit(sig, frame)

    def drain(self) -> None:
        """Take no more requests, and end when none runs or the grace is over."""
        _log.info("draining")
        self._end = time.monotonic() + self._grace_s
        self.gateway.admission.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        admission = self.gateway.admission
        if self._end is not None and (admission.is_idle or time.monotonic() >= self._end):
            self.should_exit = True
        holding = self._app.state.holding
        if holding.done() and not self.should_exit:  # the engines could not start
            self.failure = holding.exception()
            self.should_exit = True
        return await super().on_tick(counter)

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
    serve(Worker(Runtime.of(settings)), config, announce)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from None
