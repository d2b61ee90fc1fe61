"""Before any route: request ids, who is asking, of which host; and one line of log for each request."""

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reasonrt.errors import shown
from reasonrt.serve.config import ServeConfig, is_loopback
from reasonrt.serve.metrics import Metrics
from reasonrt.serve.page import page_files
from reasonrt.serve.wire.errors import ApiError, to_api_error

ANONYMOUS = "anonymous"
OPEN_PATHS = frozenset({"/health", *page_files()})
"""What they answer is the same for everybody; a browser that opens a page sends no key."""

_POLLED_PATHS = frozenset({"/health", "/ready", "/metrics"})

_log = logging.getLogger(__name__)
_HOST = re.compile(r"(?P<host>\[[\da-f:.]+\]|[\w.~-]*)(:\d{1,5})?", re.ASCII | re.IGNORECASE)
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class KeyRing:
    """API keys by name; only their hashes are kept."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._hashes = {name: _hash(key) for name, key in keys.items()}

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def owner(self, key: str) -> str | None:
        """The name of `key`, in a time that tells nothing about any of them."""
        asked = _hash(key)
        owners = [name for name, known in self._hashes.items() if hmac.compare_digest(asked, known)]
        return owners[0] if owners else None


class AuthMiddleware:
    """ASGI middleware. Routes find these in the request's state: `request_id`, `key` (its name), `note` (for the log),
    and `held`, an `AsyncExitStack` of what the request holds until it has been answered.

    A connection that is in the state, as `connection`, is told whose it is.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._keys = KeyRing({name: key.get_secret_value() for name, key in config.api_keys.items()})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        asked_id = headers.get("x-request-id", "")
        request_id = asked_id if _REQUEST_ID.fullmatch(asked_id) else secrets.token_hex(8)
        note: dict[str, Any] = {}
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "note": note, "key": ANONYMOUS}
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            state["key"] = self._authorize(scope["path"], headers)
            if scope["path"] not in OPEN_PATHS and (connection := state.get("connection")):
                connection.belongs_to(state["key"])
            async with AsyncExitStack() as held:
                state["held"] = held
                await self._app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001 (whatever it is, the caller gets an answer and the log the cause)
            told = to_api_error(error, request_id)
            if not status:
                await told.response()(scope, receive, send_with_id)
        finally:
            self._metrics.responses.labels(str(status or "none")).inc()
            seen = {"request_id": request_id, "key": state["key"], "method": scope["method"], "path": scope["path"]}
            timed = {"status": status, "seconds": round(time.perf_counter() - began, 6)}
            level = logging.DEBUG if scope["path"] in _POLLED_PATHS else logging.INFO
            _log.log(level, "request", extra={"fields": seen | timed | note})

    def _authorize(self, path: str, headers: Headers) -> str:
        """The name of the caller's key.

        Raises:
            ApiError: there is none, or the request was meant for another host than this one, or for none that exists.
        """
        host = _host_name(headers.getlist("host"))
        if path in OPEN_PATHS:
            return ANONYMOUS
        if not self._keys:
            # a page in a browser here could reach us by a name of its own that it leads to this machine
            if not is_loopback(host):
                raise ApiError(403, f"this server answers to localhost only, not to {shown(host)}", code="wrong_host")
            return ANONYMOUS
        scheme, _, key = headers.get("authorization", "").partition(" ")
        owner = self._keys.owner(key.strip()) if scheme.lower() == "bearer" else None
        if owner is None:
            raise ApiError(401, "no valid API key; send it as Authorization: Bearer KEY", code="invalid_api_key")
        return owner


def _host_name(hosts: Sequence[str]) -> str:
    """Without the port; "" of HTTP/1.0, which need not name one.

    Raises:
        ApiError: there are several, or what stands there is not exactly a host and perhaps a port.
    """
    if len(hosts) > 1:
        raise ApiError(400, f"the request names {len(hosts)} hosts; send one Host header", code="wrong_host")
    header = hosts[0] if hosts else ""
    found = _HOST.fullmatch(header)
    if found is None:
        raise ApiError(400, f"{shown(header)} is no HOST or HOST:PORT; correct the Host header", code="wrong_host")
    return found["host"].strip("[]").lower()


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
