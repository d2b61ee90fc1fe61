"""Traces: the file that `solve --trace` writes, and `reasonrt trace`, which shows it on the page of the server."""

import secrets
import threading
import time
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from reasonrt.cli.common import console
from reasonrt.errors import ConfigError
from reasonrt.files import parse_json
from reasonrt.serve.config import is_loopback
from reasonrt.serve.page import page_files
from reasonrt.serve.wire.responses import TracedStep
from reasonrt.types import Completion, Step

SCHEMA = "reasonrt.trace/1"
_SHOWN = (SCHEMA.partition("/")[0], "reasonrt.program_trace", "reasonrt.traces")


class TraceFile:
    """What happened in one request, in the order in which it did; the page shows it.

    Args:
        question, policy, options: that were asked.
    """

    def __init__(self, question: str, policy: str, options: Mapping[str, Any]) -> None:
        self._asked = {"question": question, "policy": policy, "options": dict(options)}
        self._events: list[Mapping[str, Any]] = []
        self._num_tokens, self._began = 0, time.perf_counter()

    def begin(self) -> None:
        """Count seconds from here: the engines have started."""
        self._began = time.perf_counter()

    def add(self, event: Mapping[str, Any]) -> None:
        """Take an event as the server sends it."""
        self._events.append(event)

    def step(self, step: Step) -> None:
        self._num_tokens += len(step.token_ids)
        self._events.append({"kind": "step", **TracedStep.of(step, self._seconds()).model_dump()})

    def report(self, known: Mapping[str, Any]) -> None:
        """For `Request.report`."""
        self._events.append({"at_tokens": self._num_tokens, "seconds": round(self._seconds(), 6), **known})

    def to_value(self, completion: Completion) -> dict[str, Any]:
        """The file, as JSON data."""
        ended = {
            "answer": completion.content,
            "finish_reason": str(completion.finish_reason),
            "seconds": completion.seconds,
            "usage": {name: asdict(spent) for name, spent in completion.usage.items()},
            "details": dict(completion.details),
            "warnings": dict(completion.warnings),
        }
        return {"schema": SCHEMA, "version": version("reasonrt"), **self._asked, "events": self._events, **ended}

    def _seconds(self) -> float:
        return time.perf_counter() - self._began


def trace(
    file: Annotated[
        Path, typer.Argument(help="Show this file, which solve, ask or replay --trace or calibrate traces has written.")
    ],
    is_opened: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in the browser; its address is printed in any case.")
    ] = True,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Listen on this port of 127.0.0.1; 0 takes a free one.")
    ] = 0,
) -> None:
    """Show a trace in the browser: who wrote which step, what was thrown away, and what it cost.

    The page is served to this machine alone, until Ctrl-C.
    """
    with trace_server(_read(file), port) as (server, address):
        console.print(f"{escape(str(file))} is shown on [bold]{address}[/]; Ctrl-C ends it", soft_wrap=True)
        if is_opened:
            threading.Thread(target=webbrowser.open, args=(address,), name="opens the page", daemon=True).start()
        with suppress(KeyboardInterrupt):
            server.serve_forever()


@contextmanager
def trace_server(content: bytes, port: int = 0) -> Iterator[tuple[ThreadingHTTPServer, str]]:
    """A server of the page on this machine, and the address under which it shows the trace `content`.

    Raises:
        ConfigError: the port is taken.
    """
    secret = secrets.token_urlsafe(16)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, content, secret))
    except OSError as error:
        raise ConfigError(f"cannot listen on port {port}: {error.strerror}; choose another with --port") from None
    with server:
        yield server, f"http://127.0.0.1:{server.server_port}/#{secret}"


def _read(file: Path) -> bytes:
    """Raises: ConfigError: it cannot be read, or is no trace."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}; name a trace") from None
    for text in (content, content.partition(b"\n")[0]):  # one value, or one on each line
        with suppress(ValueError):
            value = parse_json(text)
            name = str(value.get("schema", "")).partition("/")[0] if isinstance(value, dict) else ""
            if name in _SHOWN:
                return content
    raise ConfigError(f"{file} is no trace: its schema should be one of {', '.join(_SHOWN)}; write one with --trace")


class _Handler(BaseHTTPRequestHandler):
    """The page, and the trace under a path that only its address tells: other users of this machine reach the port.

    Args:
        content: of the trace.
        secret: the last part of that path.
    """

    def __init__(self, content: bytes, secret: str, *args: Any) -> None:
        self._files = {**page_files(), f"/trace/{secret}": (content, {"content-type": "application/json"})}
        super().__init__(*args)

    def do_GET(self) -> None:
        host = self.headers.get("host", "").rpartition(":")[0]
        content, headers = self._files.get(self.path if is_loopback(host) else "", (b"", {}))
        self.send_response(200 if headers else 404)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name in the base class)
        """Nothing: the terminal shows the address."""
