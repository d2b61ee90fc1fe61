"""How a server ends, from outside: by every signal that tells it to, at any time, with nothing left of it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from reasonrt.serve.signals import take_signals
from tests.waiting import wait_until

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
TEXT = "".join(f"Step {index} of it.\n\n" for index in range(20)) + "The end."
SERVER = f"""
import asyncio, ctypes, os, subprocess, sys, time
from reasonrt import Runtime
from reasonrt.engines.orphans import owned_environment
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.serve.backends.local import Worker
from reasonrt.serve.config import ServeConfig
from reasonrt.serve.server import serve

class Engine(ScriptedEngine):
    async def start(self):
        if not hasattr(self, "process"):
            self.process = subprocess.Popen(["sleep", "99"], env=os.environ | owned_environment())
            if "starts" in sys.argv:
                await asyncio.to_thread(time.sleep, 99)  # which nobody can end
            for sign in (1, 2, 15):  # as Ray does: Python hears nothing of it
                ctypes.CDLL(None).signal(sign, None)
        return self

    async def aclose(self):
        self.process.kill()
        self.process.wait()

engine = Engine("target", {TEXT!r}, seconds_per_token=0.002)
config = ServeConfig.model_validate({{"port": 0, "grace_s": 20}})
serve(Worker(Runtime({{"target": engine}})), config, lambda url: print(url, flush=True))
"""


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    command = [sys.executable, "-c", SERVER, *arguments]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip(), server
        finally:
            server.kill()


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def below(server: "subprocess.Popen[str]", num: int) -> list[psutil.Process]:
    """Its processes, once there are `num` of them."""
    wait_until(lambda: len(psutil.Process(server.pid).children(recursive=True)) >= num)
    return list(psutil.Process(server.pid).children(recursive=True))


def catches(server: "subprocess.Popen[str]", sign: signal.Signals) -> bool:
    """Whether it has a handler for it; an engine that starts takes it away, and the server takes it back."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)
    return bool(int(caught, 16) >> (sign - 1) & 1)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_finishes_what_runs_and_leaves_nothing(sign: signal.Signals) -> None:
    with serving() as (url, server):
        wait_until(lambda: httpx.get(url + "/ready", timeout=60).status_code == 200)
        wait_until(lambda: catches(server, sign))
        left = below(server, 2)  # the engine's, and who watches
        body: Any = {"model": "target", "messages": [{"role": "user", "content": "?"}], "stream": True}
        lines = []
        with httpx.stream("POST", url + "/v1/chat/completions", json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                if len(lines) == 4:
                    server.send_signal(sign)

        _, written = server.communicate(timeout=60)

    assert lines[-2:] == ["data: [DONE]", ""]
    assert "The end." in "".join(lines)
    assert server.returncode == 0, written
    assert "Traceback" not in written
    _, alive = psutil.wait_procs(left, timeout=60)
    assert all(map(is_gone, alive))


def test_it_ends_while_an_engine_starts() -> None:
    with serving("starts") as (_, server):
        left = below(server, 2)
        time.sleep(0.2)

        server.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, written = server.communicate(timeout=60)

    assert time.monotonic() - began < 15  # what the watcher does comes after that
    assert server.returncode == 0, written
    assert "Traceback" not in written
    _, alive = psutil.wait_procs(left, timeout=60)
    assert all(map(is_gone, alive))


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As SIGHUP is for what `nohup` starts."""
    before = {sign: signal.getsignal(sign) for sign in SIGNALS}
    told: list[int] = []
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

        taken = take_signals(lambda sign, _: told.append(sign))
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)

    assert set(taken) == {signal.SIGTERM, signal.SIGINT}
    assert told == [signal.SIGINT]
