"""How an engine's processes begin and end, without vLLM: what stands for it starts processes as it does."""

import asyncio
import multiprocessing
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from reasonrt.engines.vllm import VllmEngine
from reasonrt.engines.vllm_start import deaf_to_the_terminal
from reasonrt.errors import EngineError
from reasonrt.ports import Capability

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

    await asyncio.wait_for(engine.aclose(), 60)

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
    process.join()

    await asking


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
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    await engine.check_health(0.1)  # it is dead, which its next call finds out


class Starting:
    """A core, without vLLM, that answers its first calls when it may, or fails in one of them."""

    errored = is_ended = False
    output_handler = None

    def __init__(self, draws: bool, failing: str = "") -> None:
        self.draws, self.failing = draws, failing
        self.may_answer, self.is_asked = asyncio.Event(), asyncio.Event()
        self.called: list[str] = []

    async def collective_rpc(self, method: str, args: tuple[object, ...] = ()) -> list[bool]:
        self.is_asked.set()
        await self.may_answer.wait()
        if method == self.failing:
            raise ProcessLookupError(method)
        self.called.append(method)
        return [self.draws]

    def shutdown(self) -> None:
        self.is_ended = True


class Silent(VllmEngine):
    """Its warm-up gets no tokens."""

    cores: list[Starting]

    def _build(self) -> Starting:
        return self.cores.pop(0)

    async def generate(self, *args: Any) -> Any:
        if await self._alive() is None:
            yield

    async def read(self, *args: Any) -> Any:
        await self._alive()


@pytest.fixture
def silent(nano_draft: Path, monkeypatch: pytest.MonkeyPatch) -> Silent:
    monkeypatch.setattr("reasonrt.engines.vllm._translated", lambda engine: nullcontext())
    return Silent("target", nano_draft)


async def test_nobody_gets_an_engine_before_its_workers_are_prepared(silent: Silent) -> None:
    core, without_draws = Starting(draws=True), Starting(draws=False)
    silent.cores = [core, without_draws]
    starting = asyncio.ensure_future(silent.start())
    await core.is_asked.wait()

    asking = asyncio.ensure_future(silent._alive())
    await asyncio.sleep(0.05)
    assert not asking.done()
    core.may_answer.set()

    assert await asking is core
    assert core.called == ["give_way", "keep_reads_apart", "draw_in_place_of_drafts"]
    assert Capability.VERIFY_SAMPLED in silent.capabilities
    await starting
    core.errored = True
    without_draws.may_answer.set()
    assert await silent._alive() is without_draws
    assert Capability.VERIFY_SAMPLED not in silent.capabilities
    await silent.aclose()


@pytest.mark.parametrize("failing", ["give_way", "keep_reads_apart", "draw_in_place_of_drafts"])
async def test_an_engine_whose_workers_cannot_be_prepared_has_not_started(silent: Silent, failing: str) -> None:
    unprepared, core = Starting(draws=True, failing=failing), Starting(draws=True)
    silent.cores = [unprepared, core]
    for each in (unprepared, core):
        each.may_answer.set()

    with pytest.raises(EngineError, match=f"engine 'target' did not start from .*: {failing}"):
        await silent.start()

    assert unprepared.is_ended
    assert await silent._alive() is core
    await silent.aclose()


def test_what_a_terminal_sends_reaches_no_process_of_an_engine() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with deaf_to_the_terminal():
        deaf = subprocess.Popen(SLEEP)
    usual = subprocess.Popen(SLEEP)
    try:
        for sign in (signal.SIGINT, signal.SIGHUP):
            for process in (deaf, usual):
                process.send_signal(sign)
        assert usual.wait(60) in (-signal.SIGINT, -signal.SIGHUP)
        assert deaf.poll() is None
        deaf.send_signal(signal.SIGTERM)
        assert deaf.wait(60) == -signal.SIGTERM
    finally:
        deaf.kill()
        usual.kill()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
