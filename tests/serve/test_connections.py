"""Who has shown no key takes little memory, few connections and little time from those who have."""

import logging
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.serve.config import ConnectionsConfig
from reasonrt.serve.connections import HEAD_BYTES, HEADERS, LINE_BYTES, Connections

KEYS = {"ada": "a" * 16, "bob": "b" * 16}
BODY: Any = {"model": "target", "messages": [{"role": "user", "content": "?"}]}
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
HEAD_S = 1.0


@pytest.fixture(scope="module")
def shared(start: Any) -> Any:
    return start(api_keys=KEYS, connections={"total": 64, "per_address": 16, "head_s": HEAD_S, "write_s": 0.5})


@pytest.fixture(scope="module")
def patient(start: Any) -> Any:
    """However slow a caller of these tests may be, it is given the time for its head."""
    return start(api_keys=KEYS, connections={"head_s": 120})


@pytest.fixture
def narrow(shared: Any) -> Iterator[Any]:
    """A server of few connections and little patience. None outlives its caller."""
    yield shared
    shared.wait_until(lambda: not shared.server.server_state.connections)


def status_of(connection: socket.socket) -> int:
    """Of the next answer; 0 where the connection was closed without one."""
    try:
        answer = connection.recv(1 << 16)
    except ConnectionError:
        return 0
    return int(answer.split()[1]) if answer else 0


def is_closed(connection: socket.socket) -> bool:
    """Once all that was sent has been read."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def ask_health(server: Any) -> None:
    """Over a new connection."""
    with server.connect() as connection:
        connection.sendall(HEALTH + b"\r\n")
        assert status_of(connection) == 200


def send_until_refused(connection: socket.socket, pieces: Iterator[bytes]) -> int:
    """How many bytes were taken."""
    num_bytes = 0
    try:
        for piece in pieces:
            connection.sendall(piece)
            num_bytes += len(piece)
    except (ConnectionError, TimeoutError):
        pass
    return num_bytes


PIECE = 1 << 16
HUGE = {
    "one header": (HEALTH + b"x: ", b"x" * PIECE, 431),
    "headers": (HEALTH, b"a: b\r\n" * (PIECE // 6), 431),
    "folded lines": (HEALTH + b"x: y\r\n", b" z\r\n" * (PIECE // 4), 431),
    "a URL": (b"GET /", b"x" * PIECE, 414),
    "a method": (b"", b"X" * PIECE, 414),
    "nothing": (b"", b"\0" * PIECE, 400),
}


@pytest.mark.parametrize(("begin", "piece", "status"), HUGE.values(), ids=HUGE)
def test_endless_heads_are_refused_and_the_connection_is_closed(
    patient: Any, begin: bytes, piece: bytes, status: int
) -> None:
    with patient.connect() as connection:
        connection.sendall(begin)
        num_bytes = send_until_refused(connection, iter([piece] * (1 << 28 >> 16)))  # 256 MiB

        assert num_bytes < 16 << 20  # most of it in buffers of the kernel
        ask_health(patient)
        assert status_of(connection) in (0, status)  # what it sends after that may have destroyed it
        assert is_closed(connection)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 2000), max_size=HEADERS + 2),
    long=st.sampled_from([0, 0, LINE_BYTES - 20, LINE_BYTES - 3, LINE_BYTES - 2, LINE_BYTES + 1]),
    path=st.sampled_from([0, 0, 0, LINE_BYTES - 30, LINE_BYTES]),
    cuts=st.lists(st.integers(0, 100_000), max_size=4),
)
def test_heads_are_taken_exactly_within_the_bounds(
    patient: Any, lengths: list[int], long: int, path: int, cuts: list[int]
) -> None:
    lines = [b"GET /nothing?" + b"x" * path + b" HTTP/1.1", b"host: localhost", b"connection: close"]
    lines += [b"a: " + b"x" * length for length in lengths] + ([b"b: " + b"x" * (long - 4)] if long else [])
    head = b"\r\n".join(lines)
    expected = {401}
    if len(lines[0]) + 1 > LINE_BYTES:
        expected = {414}
    elif len(lines) - 1 > HEADERS or len(head) > HEAD_BYTES or any(len(line) + 1 > LINE_BYTES for line in lines):
        expected = {431}
    with patient.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begin = 0
        for end in [*sorted(cut for cut in cuts if cut < len(head)), len(head) + 4]:
            send_until_refused(connection, iter([(head + b"\r\n\r\n")[begin:end]]))
            begin = end

        assert status_of(connection) in expected
        assert is_closed(connection)


def test_refusal_is_an_error_as_any_other(narrow: Any) -> None:
    answer = narrow.http().get("/health", headers={"x": "y" * LINE_BYTES})

    assert answer.status_code == 431
    assert answer.json()["error"]["message"] == "one header must have at most 16384 bytes, all of them 65536"
    assert answer.headers["connection"] == "close"


SLOW = {
    "a byte at a time": ([b"GET", *(bytes([byte]) for byte in b" /health?" + b"x" * 1000)], 408),
    "headers without an end": ([HEALTH, *([b"a: b\r\n"] * 50)], 408),
    "nothing": ([], 0),
    "the next request of a connection": ([HEALTH + b"\r\n", b"GET ", *([b"/"] * 1000)], 200),
    "the next request with the one before it": ([HEALTH + b"\r\nGET ", *([b"/"] * 1000)], 200),
}


@pytest.mark.parametrize(("pieces", "status"), SLOW.values(), ids=SLOW)
def test_heads_come_in_time_or_the_connection_is_closed(narrow: Any, pieces: list[bytes], status: int) -> None:
    began = time.monotonic()
    with narrow.connect() as connection:
        for piece in pieces:
            if time.monotonic() - began > 3 * HEAD_S:
                break
            send_until_refused(connection, iter([piece]))
            time.sleep(0.02)

        assert status_of(connection) == status
        assert is_closed(connection)


def test_connections_without_a_key_make_room_for_those_with_one(narrow: Any, caplog: pytest.LogCaptureFixture) -> None:
    kept = narrow.connect()
    kept.sendall(narrow.raw(BODY))
    assert status_of(kept) == 200
    with ExitStack() as stack, caplog.at_level(logging.WARNING):
        for _ in range(3):
            for _ in range(60):
                stack.enter_context(narrow.connect())
            time.sleep(0.05)
            ask_health(narrow)
            headers = {"authorization": f"Bearer {KEYS['bob']}"}
            assert httpx.get(narrow.url + "/v1/models", headers=headers).status_code == 200
        opened = len(narrow.server.server_state.connections)
    kept.sendall(narrow.raw(BODY))

    assert opened <= 64
    assert status_of(kept) == 200
    assert 1 <= sum("one is closed for another" in record.getMessage() for record in caplog.records) <= 3
    kept.close()


def test_one_key_leaves_connections_to_the_others(start: Any) -> None:
    server = start(api_keys=KEYS, connections={"total": 16})
    with ExitStack() as stack:
        for _ in range(40):
            connection = stack.enter_context(server.connect())
            connection.sendall(server.raw(BODY, key=KEYS["ada"]))
            assert status_of(connection) == 200

        assert len(server.server.server_state.connections) <= 12
        ask_health(server)


def test_connection_of_a_caller_who_does_not_read_is_closed(narrow: Any) -> None:
    """Whatever it asks: here, a page again and again."""
    with narrow.connect(receive_bytes=4096) as connection:
        send_until_refused(connection, iter([b"GET /page/main.js HTTP/1.1\r\nhost: localhost\r\n\r\n" * 100] * 10_000))

        narrow.wait_until(lambda: not narrow.server.server_state.connections)


def test_places_of_a_caller_who_does_not_read_are_free_again(start: Any) -> None:
    server = start(
        ("a" * 20_000 + "\n\n") * 50,
        engine={"max_model_len": 2_000_000, "chunk_tokens": 20_001},
        bounds={"max_tokens": 1_000_000},
        connections={"write_s": 0.5},
    )
    with server.connect(receive_bytes=4096) as connection:
        connection.sendall(server.raw(BODY | {"stream": True, "n": 8, "max_tokens": 1_000_000}))
        server.wait_until(lambda: server.admission.running == 8)

        server.wait_until(lambda: server.admission.is_idle)  # long before its deadline
    assert server.working == 0


@pytest.mark.parametrize("is_chunked", [False, True])
def test_body_that_nobody_asked_for_is_not_kept(narrow: Any, is_chunked: bool) -> None:
    """The answer arrives, and then the connection is closed, however much more is sent."""
    head = narrow.raw(BODY, key="wrong" * 4, num_bytes=1 << 40).partition(b"\r\n\r\n")[0]
    piece = b"x" * PIECE
    if is_chunked:
        head = head.replace(b"content-length: %d" % (1 << 40), b"transfer-encoding: chunked")
        piece = b"1\r\nx\r\n" * (PIECE // 6)
    with narrow.connect() as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert status_of(connection) == 401

        assert send_until_refused(connection, iter([piece] * 4000)) < 16 << 20


def test_a_body_of_two_lengths_is_refused_before_room_is_taken_for_it(narrow: Any) -> None:
    head = narrow.raw(BODY).partition(b"\r\n\r\n")[0] + b"\r\ntransfer-encoding: chunked\r\n\r\n"
    with narrow.connect() as connection:
        connection.sendall(head + b"ffff\r\n{")

        assert status_of(connection) == 400
        assert is_closed(connection)
    assert narrow.admission.body_bytes == 0


def test_body_in_crumbs_is_refused(narrow: Any) -> None:
    head = narrow.raw(BODY).partition(b"\r\n\r\n")[0]
    head = head[: head.index(b"content-length")] + b"transfer-encoding: chunked\r\nauthorization: Bearer " + b"a" * 16
    with narrow.connect() as connection:
        connection.sendall(head + b"\r\n\r\n" + b"1\r\n \r\n" * 5000)

        assert status_of(connection) == 400
        assert is_closed(connection)


def test_small_bodies_of_refused_requests_leave_the_connection_open(narrow: Any) -> None:
    with narrow.connect() as connection:
        for _ in range(3):
            connection.sendall(narrow.raw(BODY, key="wrong" * 4))
            assert status_of(connection) == 401


@given(limit=st.integers(64, 1 << 20), total=st.integers(16, 1 << 16))
def test_descriptors_are_never_all_taken(limit: int, total: int) -> None:
    connections = Connections(ConnectionsConfig(total=total), descriptors=limit)

    assert connections.total <= total
    assert connections.total + connections.backlog <= limit - min(64, limit // 8)
    assert connections.total >= min(total, limit // 2)


def test_limit_of_descriptors_is_that_of_the_process() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        assert Connections(ConnectionsConfig()).total == 768
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
