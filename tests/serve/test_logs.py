"""What is logged is one JSON object per line, and writing it keeps nobody waiting."""

import fcntl
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from reasonrt.serve import logs
from reasonrt.serve.logs import JsonFormatter, OncePerPeriod, UnblockedHandler

# a server of scripted engines whose log goes to a pipe, with few descriptors
SERVER = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from reasonrt import Runtime
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.serve.config import ServeConfig
from reasonrt.serve.logs import log_as_json
from reasonrt.serve.server import serve
from reasonrt.serve.backends.local import Worker
log_as_json()
worker = Worker(Runtime({"target": ScriptedEngine("target", "7")}))
serve(worker, ServeConfig(port=0), lambda url: print(url, flush=True))
"""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def handler_to(descriptor: int, most_lines: int) -> tuple[logging.Logger, UnblockedHandler]:
    handler = UnblockedHandler(descriptor, most_lines)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    return logger, handler


def read_until(descriptor: int, is_enough: Callable[[bytes], bool]) -> bytes:
    """What is written to it until what was read is enough."""
    read, give_up = b"", time.monotonic() + 60
    while not is_enough(read):
        assert time.monotonic() < give_up
        if select.select([descriptor], [], [], 0.01)[0]:
            read += os.read(descriptor, 1 << 16)
    return read


def test_pipe_that_nobody_reads_costs_lines_and_they_are_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    logger, handler = handler_to(writing, 100)

    for index in range(3000):
        logger.info("line %d %s", index, "x" * 100)
    read = read_until(reading, lambda read: handler._lines.empty())  # else the last one would be dropped as well
    logger.info("the last one")
    read += read_until(reading, lambda read: b"the last one" in read)
    handler.flush_within(60)

    messages = [json.loads(line)["message"] for line in read.splitlines()]
    kept = [int(message.split()[1]) for message in messages if message.startswith("line")]
    dropped = sum(int(message.split()[0]) for message in messages if message.endswith("lines of log were dropped"))
    assert kept == sorted(kept)
    assert dropped > 2000
    assert len(kept) + dropped == 3000
    assert messages[-1] == "the last one"


def test_everything_is_written_before_the_process_ends(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        logger, handler = handler_to(file.fileno(), 10_000)
        for index in range(2000):
            logger.info("line %d", index, extra={"fields": {"index": index}})
        handler.flush_within(20)

    lines = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(2000))


def test_nobody_waits_at_the_end_for_a_pipe_that_nobody_reads(pipe: tuple[int, int]) -> None:
    logger, handler = handler_to(pipe[1], 1000)
    for _ in range(1000):
        logger.info("x" * 1000)

    began = time.monotonic()
    handler.flush_within(0.1)

    assert time.monotonic() - began < 30


def test_signal_handlers_may_log_while_something_is_logged(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        logger, handler = handler_to(file.fileno(), 1_000_000)
        before = signal.signal(signal.SIGVTALRM, lambda *_: logger.info("a signal"))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.001, 0.001)
        try:
            for _ in range(5000):
                logger.info("a line")
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
        handler.flush_within(20)

    messages = [json.loads(line)["message"] for line in (tmp_path / "log").read_text().splitlines()]
    assert messages.count("a line") == 5000
    assert messages.count("a signal") > 0


def test_process_that_was_forked_logs_too(pipe: tuple[int, int]) -> None:
    logger, handler = handler_to(pipe[1], 1000)

    if (child := os.fork()) == 0:
        logger.info("of the child")
        handler.flush_within(60)
        os._exit(0)

    assert os.waitpid(child, 0)[1] == 0
    assert json.loads(os.read(pipe[0], 1 << 16))["message"] == "of the child"


def test_each_message_is_said_once_per_period(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, clock = logging.Logger("test"), SimpleNamespace(monotonic=lambda: 100.0)
    monkeypatch.setattr(logs, "time", clock)
    logger.addFilter(OncePerPeriod(60))
    logger.addHandler(caplog.handler)

    for index in range(10):
        logger.warning("number %d", index)
        logger.error("failed %d", index)
    logger.warning("another")
    clock.monotonic = lambda: 161.0
    logger.warning("number %d", 10)

    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "number 0",
        "another",
        "number 10 (9 times more since this was last said)",
    ]
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 10


@pytest.fixture(scope="module")
def unread() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()
        process.stderr.close()


def test_server_whose_log_nobody_reads_answers(unread: str) -> None:
    body: Any = {"model": "target", "messages": [{"role": "user", "content": "?"}]}
    with httpx.Client(base_url=unread, timeout=60) as client:
        for _ in range(40):  # a line has about 300 bytes
            assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_server_with_few_descriptors_answers(unread: str) -> None:
    url = httpx.URL(unread)
    silent = [socket.create_connection((url.host, url.port)) for _ in range(300)]

    assert httpx.get(f"{unread}/health", timeout=60).status_code == 200
    assert httpx.get(f"{unread}/v1/models", timeout=60).status_code == 200
    for connection in silent:
        connection.close()
