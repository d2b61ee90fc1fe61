"""Every attempt to leave a sandbox, on each backend, with the host and another session beside it."""

import asyncio
import time
from typing import Any

import pytest

from reasonrt.programs.sandbox.base import Ending, HostCall
from reasonrt.programs.sandbox.build import BACKENDS, build_sandbox
from reasonrt.programs.sandbox.escapes import ATTEMPTS, REACHED, Attempt, attempts, run_attempt

CASES = [
    pytest.param(backend, attempt, id=f"{backend}: {attempt.name}")
    for backend in sorted(BACKENDS)
    for attempt in attempts(backend)
]


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_there_are_enough_attempts(backend: str) -> None:
    assert len(attempts(backend)) >= 40
    assert len({attempt.name for attempt in attempts(backend)}) == len(attempts(backend))
    assert all(backend in attempt.backends for attempt in attempts(backend))


@pytest.mark.parametrize(("backend", "attempt"), CASES)
async def test_attempt_holds(backend: str, attempt: Attempt) -> None:
    """The interpreter is asked itself: the check before a cell is no wall, and is left out."""
    sandbox = build_sandbox(backend, check=False, min_workers=1)
    try:
        neighbour = await sandbox.open({})
        assert not await run_attempt(sandbox, attempt)
        cell = await neighbour.run("print('still here')", _nobody)
        await neighbour.aclose()
    finally:
        await sandbox.aclose()

    assert (cell.ending, cell.output) == (Ending.DONE, "still here\n")


async def test_an_attempt_that_gets_through_is_seen() -> None:
    """The judge can find against: a program that says so, and one that takes too long."""
    sandbox = build_sandbox("monty", check=False)

    assert await run_attempt(sandbox, Attempt("says so", "print(REACHED)", ("monty",))) == REACHED
    assert "changed" in await run_attempt(sandbox, Attempt("rebinds", "context = 'mine'", ("monty",)))
    await sandbox.aclose()


async def test_the_host_answers_others_while_a_session_floods_it() -> None:
    """The event loop is never held for long, whatever a worker sends."""
    flood = next(attempt for attempt in ATTEMPTS if attempt.name == "a frame of many parts")
    sandbox = build_sandbox("cpython")
    await sandbox.start()
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            since = time.perf_counter()
            await asyncio.sleep(0.01)
            longest = max(longest, time.perf_counter() - since)

    watching = asyncio.create_task(watch())
    assert not await run_attempt(sandbox, flood)
    watching.cancel()
    await sandbox.aclose()

    assert longest < 5  # a frame of 8 MB is read in one go


async def _nobody(call: HostCall) -> Any:
    raise AssertionError(f"{call.name} was called")
