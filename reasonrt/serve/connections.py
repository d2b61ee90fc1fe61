"""Connections: how many are open, from whom, how large a request's head may be, and how long a caller may take.

HTTP itself is h11's and uvicorn's. h11 bounds what it holds of an unfinished head, reads one request at a time, and
leaves it to its user to refuse more.
"""

import asyncio
import ipaddress
import logging
import re
import resource
from itertools import chain
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from reasonrt.serve.admission import most_of_one_key
from reasonrt.serve.config import ConnectionsConfig
from reasonrt.serve.logs import OncePerPeriod
from reasonrt.serve.wire.errors import ApiError

LINE_BYTES, HEAD_BYTES, HEADERS = 16 << 10, 64 << 10, 100
"""The most that the head of a request may have: bytes of one line and of all, and lines after the first."""

_SLICE_BYTES = 16 << 10  # that are parsed before what they mean is looked at
_CHUNKS, _CHUNK_BYTES = 1024, 256  # of a body: after so many chunks, the mean size; each costs as much as a kilobyte
_LINGER_BYTES, _LINGER_S = 1 << 20, 2.0  # for what is still on its way when its answer has been sent
_YOUNG_S = 0.25  # no connection is closed for others before its first bytes could be read
_SPARE_DESCRIPTORS = 256  # for engines, workers and files
_BACKLOG = 2048
_BLANK_LINE = re.compile(rb"\n\r?\n")


class Connections:
    """The open connections of one server.

    One over which no request with a key has come is a stranger, and belongs to its address; the others belong to their
    key. Over a bound, the oldest stranger is closed, then the connection that has been idle longest.

    Args:
        bounds: of their number.
        num_keys: of several, one has at most three quarters of all connections.
        descriptors: that this process may have open.

    Attributes:
        total: how many there may be; fewer than the bound says where descriptors are few.
        backlog: how many may wait for being accepted; as many may be accepted before one is closed again.
        num: how many are open.
        num_closed: how many were closed because there were too many.
    """

    def __init__(self, bounds: ConnectionsConfig, num_keys: int = 0, descriptors: int | None = None) -> None:
        self.bounds = bounds
        limit = _descriptors() if descriptors is None else descriptors
        spare = max(min(_SPARE_DESCRIPTORS, limit // 2), limit // 4)
        self.total, self.backlog = min(bounds.total, limit - spare), min(_BACKLOG, spare // 2)
        self.num = self.num_closed = 0
        self.log = logging.Logger(__name__)  # uvicorn, too, logs by it what any connection may cause
        self.log.parent = logging.getLogger(__name__)
        self.log.addFilter(OncePerPeriod())
        self._per_key = most_of_one_key(self.total, num_keys)
        self._owned: dict[str, dict[Connection, None]] = {}
        self._strangers: dict[Connection, None] = {}  # in order of arrival
        self._idle: dict[Connection, None] = {}  # of keys, between two requests; the one that has waited longest first

    def add(self, connection: "Connection", address: str) -> None:
        """A stranger has come."""
        self._strangers[connection] = None
        strangers = self._own(connection, f"address {address}")
        if len(strangers) > self.bounds.per_address and (oldest := next(iter(strangers))).age_s >= _YOUNG_S:
            self._close(oldest, "more than %d connections without a key from one address", self.bounds.per_address)
        if self.num > self.total:
            others = (other for other in chain(self._strangers, self._idle) if other is not connection)
            self._close(next(others, connection), "more than %d connections", self.total)

    def know(self, connection: "Connection", key: str) -> None:
        """A request with `key` has come over it, and is worked on."""
        owner = f"key {key}"
        if connection.owner != owner:
            self.remove(connection)
            owned = self._own(connection, owner)
            if len(owned) > self._per_key:
                longest_idle = next((other for other in owned if other in self._idle), connection)
                self._close(longest_idle, "more than %d connections with one key", self._per_key)
        self._idle.pop(connection, None)

    def rest(self, connection: "Connection") -> None:
        """Its request has been answered."""
        if connection.owner and connection not in self._strangers:
            self._idle[connection] = None

    def remove(self, connection: "Connection") -> None:
        """It is closed, or belongs to another one from now on."""
        self._strangers.pop(connection, None)
        self._idle.pop(connection, None)
        if owned := self._owned.get(connection.owner):
            self.num -= 1
            del owned[connection]
            if not owned:
                del self._owned[connection.owner]
        connection.owner = ""

    def _own(self, connection: "Connection", owner: str) -> "dict[Connection, None]":
        self.num += 1
        connection.owner = owner
        owned = self._owned.setdefault(owner, {})
        owned[connection] = None
        return owned

    def _close(self, connection: "Connection", reason: str, most: int) -> None:
        self.log.warning(reason + "; one is closed for another (serve.connections)", most)
        self.num_closed += 1
        self.remove(connection)
        connection.abort()


def protocol_of(connections: Connections) -> type[asyncio.Protocol]:
    """What uvicorn makes one of for each connection that it accepts."""
    return type("ServedConnection", (Connection,), {"_all": connections})


class Connection(H11Protocol):
    """uvicorn's protocol, with bounds on the head of a request, on its time, and on the time that a write waits.

    Attributes:
        owner: whose it is, as `Connections` knows them.
    """

    _all: Connections

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, {**app_state, "connection": self}, _loop)
        self.owner = ""
        self.logger = self._all.log
        self.conn = self._parser = _Parser()
        self._began_s = self.loop.time()
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._linger_bytes = _LINGER_BYTES

    @property
    def age_s(self) -> float:
        return self.loop.time() - self._began_s

    @property
    def _is_lingering(self) -> bool:
        return self._linger_timer is not None

    def belongs_to(self, key: str) -> None:
        """A request with `key` has come over it."""
        if self.owner:  # else it is being closed
            self._all.know(self, key)

    def abort(self) -> None:
        """Close it at once, whatever is under way."""
        self._leave_cycle()
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # what is written waits as soon as anything is left of it
        self._head_timer = self.loop.call_later(self._all.bounds.head_s, self._end_slow_head)
        self._all.add(self, _network(self.client[0] if self.client else ""))

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.remove(self)
        for timer in (self._head_timer, self._write_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn would hold a connection that was reset, and its last request

    def data_received(self, data: bytes) -> None:
        for begin in range(0, len(data), _SLICE_BYTES):
            if self._is_lingering:
                self._linger_bytes -= len(data) - begin
                if self._linger_bytes < 0:
                    self.abort()
                return
            super().data_received(data[begin : begin + _SLICE_BYTES])
        self._watch_head()

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self._is_lingering or self.cycle is None or self.cycle.response_complete:
            return
        if self.cycle.more_body:
            if self.cycle is not before:
                self.flow.pause_reading()  # until it is asked for
        elif len(self._parser.unparsed) < HEAD_BYTES:
            self.flow.resume_reading()  # of the next request there may be more, or the caller leaves

    def on_response_complete(self) -> None:
        self._all.rest(self)
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY and not self._has_small_body:  # one that nobody has asked for
            self._linger()
            return
        super().on_response_complete()
        self._watch_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._all.bounds.write_s, self._end_slow_write)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._parser.refusal or ApiError(400, "this is no HTTP/1.1 request"))

    def shutdown(self) -> None:
        if self.cycle is None or self.cycle.response_complete or self._is_lingering:  # in whatever state the parser is
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    @property
    def _has_small_body(self) -> bool:
        """Whether the rest of the body will come, and costs less than another connection: h11 drops it."""
        headers = dict(self.headers)
        return b"expect" not in headers and int(headers.get(b"content-length", HEAD_BYTES + 1)) <= HEAD_BYTES

    def _watch_head(self) -> None:
        """Between two requests, time what is sent, from its first byte on."""
        if self._is_lingering:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
        elif self._head_timer is None and (self._parser.unparsed or self.conn.their_state is h11.SEND_BODY):
            self._unset_keepalive_if_required()
            self._head_timer = self.loop.call_later(self._all.bounds.head_s, self._end_slow_head)

    def _end_slow_head(self) -> None:
        head_s = self._all.bounds.head_s
        self.logger.warning("the head of a request took longer than %g s", head_s)
        if self._parser.unparsed:
            self._refuse(ApiError(408, f"the head of the request took longer than {head_s:g} s"))
        else:
            self.transport.close()

    def _end_slow_write(self) -> None:
        self.logger.warning("a caller has not read for %g s", self._all.bounds.write_s)
        self.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answer, if no answer has begun, and read no more requests."""
        self._leave_cycle()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.abort()
            return
        body = error.body().to_json()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        answer = h11.Response(status_code=error.status, headers=headers), h11.Data(data=body), h11.EndOfMessage()
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in answer))
        self._linger()

    def _leave_cycle(self) -> None:
        """To the app, the caller has gone."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _linger(self) -> None:
        """Close, once the caller has: what it still sends is thrown away, or it would never see its answer."""
        self._unset_keepalive_if_required()
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._linger_timer = self.loop.call_later(_LINGER_S, self.abort)
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self.transport.write_eof()


class _Parser(h11.Connection):
    """Of requests; refuses heads that are too large before they are parsed, and bodies in crumbs.

    Attributes:
        refusal: what the caller is to be told of an error.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self.refusal: ApiError | None = None
        self._num_chunks = self._body_bytes = 0

    @property
    def unparsed(self) -> bytes:
        """What has come and was not understood yet."""
        return self.trailing_data[0]

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            self._check_head(self.unparsed)
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._num_chunks = self._body_bytes = 0
            if {b"content-length", b"transfer-encoding"} <= dict(event.headers).keys():  # h11 would believe the latter
                self._refuse(400, "a request has a content-length or comes in chunks, not both")
        elif isinstance(event, h11.Data):
            self._num_chunks += event.chunk_start
            self._body_bytes += len(event.data)
            if self._num_chunks > _CHUNKS + self._body_bytes // _CHUNK_BYTES:
                self._refuse(400, f"the body has chunks of less than {_CHUNK_BYTES} bytes; give it a content-length")
        return event

    def _check_head(self, data: bytes) -> None:
        end = _BLANK_LINE.search(data)
        head = data[: end.start()] if end else data
        first, *rest = head.split(b"\n", HEADERS + 1)
        if len(first) > LINE_BYTES:
            self._refuse(414, f"the request line must have at most {LINE_BYTES} bytes")
        if len(rest) > HEADERS:
            self._refuse(431, f"a request must have at most {HEADERS} headers")
        if len(head) > HEAD_BYTES or any(len(line) > LINE_BYTES for line in rest):
            self._refuse(431, f"one header must have at most {LINE_BYTES} bytes, all of them {HEAD_BYTES}")

    def _refuse(self, status: int, message: str) -> None:
        self.refusal = ApiError(status, message)
        raise h11.RemoteProtocolError(message, status)


def _network(host: str) -> str:
    """What one caller can come from: of IPv6, anybody has 64 bits."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _descriptors() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if limit == resource.RLIM_INFINITY else limit
