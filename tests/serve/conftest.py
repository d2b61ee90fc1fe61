"""A server of scripted engines in a thread, for the tests that come from outside."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from openai import OpenAI

from reasonrt import Runtime
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.serve.admission import Admission
from reasonrt.serve.app import build_app
from reasonrt.serve.backends.local import Worker
from reasonrt.serve.catalog import Catalog
from reasonrt.serve.config import ServeConfig
from reasonrt.serve.server import Server
from tests.waiting import wait_until

TEXT = "<think>\nOne.\n\nTwo.\n\nThree.\n\n</think>\n\n\\boxed{7}"


@dataclass
class Running:
    """A server and what is behind it."""

    url: str
    server: Server
    runtime: Runtime
    key: str | None
    clients: list[OpenAI | httpx.Client]
    """Made by a test, closed after it."""

    @property
    def engines(self) -> list[ScriptedEngine]:
        return [engine for engine in self.runtime.engines.values() if isinstance(engine, ScriptedEngine)]

    @property
    def working(self) -> int:
        """Generations that any engine still works on."""
        return sum(engine.running for engine in self.engines)

    wait_until = staticmethod(wait_until)

    @property
    def admission(self) -> Admission:
        return self.server.gateway.admission

    def connect(self, receive_bytes: int | None = None) -> socket.socket:
        """A connection of which nothing is known yet; with a small buffer, who does not read is soon noticed."""
        opened = socket.socket()
        opened.settimeout(20)
        if receive_bytes is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        url = httpx.URL(self.url)
        opened.connect((url.host, url.port))
        return opened

    def raw(self, body: Any, *, key: str | None = None, num_bytes: int | None = None, **headers: str) -> bytes:
        """A chat request as it goes over a connection; of `num_bytes`, if it says another length than it has."""
        content = json.dumps(body).encode()
        all_headers = {"host": "localhost", "content-type": "application/json"} | headers
        all_headers["content-length"] = str(len(content) if num_bytes is None else num_bytes)
        if key := key or self.key:
            all_headers["authorization"] = f"Bearer {key}"
        lines = ["POST /v1/chat/completions HTTP/1.1", *(f"{name}: {value}" for name, value in all_headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + content

    def openai(self, **settings: Any) -> OpenAI:
        usual: dict[str, Any] = {"base_url": f"{self.url}/v1", "api_key": self.key or "none", "max_retries": 0}
        client = OpenAI(**usual | settings)
        self.clients.append(client)
        return client

    def http(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        client = httpx.Client(base_url=self.url, headers=headers, timeout=20)
        self.clients.append(client)
        return client


Start = Callable[..., Running]


@pytest.fixture(scope="module")
def clients() -> list[OpenAI | httpx.Client]:
    return []


@pytest.fixture(autouse=True)
def close_clients(clients: list[OpenAI | httpx.Client]) -> Iterator[None]:
    yield
    while clients:
        clients.pop().close()


@pytest.fixture(scope="module")
def start(clients: list[OpenAI | httpx.Client]) -> Iterator[Start]:
    """Start a server: the script, keys of `serve`, settings of the engines (`engine=`) and their class (`kind=`),
    default options of policies (`policies=`); or engines by role (`engines=`), which the server starts."""
    servers: list[tuple[Server, threading.Thread]] = []

    def begin(
        script: Any = TEXT,
        *,
        engine: dict[str, Any] | None = None,
        kind: Any = ScriptedEngine,
        policies: dict[str, Any] | None = None,
        engines: dict[str, Any] | None = None,
        **keys: Any,
    ) -> Running:
        config = ServeConfig.model_validate({"port": 0} | keys)
        scripted = {role: kind(role, script, **(engine or {})) for role in ("draft", "target")}
        runtime = Runtime(engines or scripted, policies)
        worker = Worker(runtime, config.bounds.engine_silence_s)
        server = Server(build_app(worker, Catalog(runtime, config), config), config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        key = next((key.get_secret_value() for key in config.api_keys.values()), None)
        return Running(f"http://127.0.0.1:{port}", server, runtime, key, clients)

    yield begin
    for server, thread in servers:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def running(start: Start) -> Running:
    """One server for all tests of a module that change nothing."""
    return start()
