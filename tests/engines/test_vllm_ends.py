"""How an engine's processes begin and end, without vLLM: what stands for it starts processes as it does."""

import asyncio
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from reasonrt.engines.vllm import VllmEngine, _deaf_to_the_terminal
from reasonrt.errors import EngineError

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(99)"]


def sleep() -> None:
    time.sleep(99)


def build(engine: VllmEngine) -> Any:
    """As vLLM builds: it starts a process, and waits for it in a thread that cannot be stopped."""
    engine._started_before = multiprocessing.active_children()
    process = multiprocessing.get_context("fork").Process(target=sleep)
    process.start()
    process.join()
    engine._started_before = None
    raise RuntimeError("the core did not start")


async def test_closing_an_engine_ends_its_start(nano_draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = multiprocessing.active_children()
    other = multiprocessing.get_context("fork").Process(target=sleep)
    other.start()
    monkeypatch.setattr(VllmEngine, "_build", build)
    engine = VllmEngine("target", nano_draft)
    starting = asyncio.ensure_future(engine.start())
    await asyncio.sleep(0.2)
    assert not starting.done()

    await asyncio.wait_for(engine.aclose(), 5)

    with pytest.raises(EngineError, match="engine 'target' was closed while it started"):
        await starting
    assert other.is_alive()
    assert {*multiprocessing.active_children()} == {*before, other}
    other.kill()
    other.join()


class Core:
    """Of an engine, without vLLM: it hangs or it answers, and dies when its process does."""

    def __init__(self, process: Any, answers: bool) -> None:
        self.process, self.answers = process, answers
        self.engine_core = self.resources = self.engine_manager = self
        self.processes = [process]

    @property
    def errored(self) -> bool:
        return not self.process.is_alive()

    async def collective_rpc(self, method: str) -> None:
        if not self.answers:
            await asyncio.sleep(99)


async def test_core_that_dies_when_it_is_asked_is_no_core_that_hangs(nano_draft: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=sleep)
    process.start()
    engine = VllmEngine("target", nano_draft)
    engine._llm = Core(process, answers=False)
    asking = asyncio.ensure_future(engine.check_health(0.5))
    await asyncio.sleep(0)

    process.kill()

    await asking
    process.join()


@pytest.mark.parametrize("answers", [True, False])
async def test_core_that_hangs_is_killed(nano_draft: Path, answers: bool) -> None:
    process = multiprocessing.get_context("fork").Process(target=sleep)
    process.start()
    engine = VllmEngine("target", nano_draft)
    await engine.check_health(0.1)  # nothing runs yet
    engine._llm = Core(process, answers)

    if answers:
        await engine.check_health(0.1)
        assert process.is_alive()
        process.kill()
    else:
        with pytest.raises(EngineError, match=r"engine 'target' has not answered for 0\.1 s, and was killed"):
            await engine.check_health(0.1)
    process.join(5)
    assert process.exitcode == -signal.SIGKILL
    await engine.check_health(0.1)  # it is dead, which its next call finds out


def test_what_a_terminal_sends_reaches_no_process_of_an_engine() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with _deaf_to_the_terminal():
        deaf = subprocess.Popen(SLEEP)
    usual = subprocess.Popen(SLEEP)
    try:
        for sign in (signal.SIGINT, signal.SIGHUP):
            for process in (deaf, usual):
                process.send_signal(sign)
        assert usual.wait(5) in (-signal.SIGINT, -signal.SIGHUP)
        assert deaf.poll() is None
        deaf.send_signal(signal.SIGTERM)
        assert deaf.wait(5) == -signal.SIGTERM
    finally:
        deaf.kill()
        usual.kill()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
