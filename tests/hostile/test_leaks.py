"""After requests of every kind a server holds what it held before: no task, no file, no request, no work."""

import asyncio
import gc
import logging
import os
import random
import time
from collections import Counter
from typing import Any

import pytest
from attacks import MIXED, MortalScript, Outcome, Target, mixed

from reasonrt.engines.scripted import ScriptedEngine
from tests.waiting import wait_until

BOUNDS = {"body_bytes": 1 << 16, "context_bytes": 0}


@pytest.fixture(scope="module")
def mortal(start: Any) -> Any:
    script = MortalScript()
    script.engine = ScriptedEngine("draft", script, seconds_per_token=0.0005)
    target = ScriptedEngine("target", "<think>\nOne.\n\n" * 40, chunk_tokens=40)
    return start(
        engines={"draft": script.engine, "target": target}, api_keys={"caller": "0123456789abcdef"}, bounds=BOUNDS
    )


_OTHERS = ("socket.socket", "builtins.coroutine")


def held_by(server: Any) -> Counter[str]:
    """What this process holds that requests bring: our objects, tasks and connections."""
    wait_until(lambda: server.working == 0 and server.server.gateway.admission.is_idle)
    wait_until(lambda: not server.server.server_state.connections)
    gc.collect()
    kinds = (type(each) for each in gc.get_objects())
    counted = Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
    kept = {
        name: num
        for name, num in counted.items()
        if name.startswith(("reasonrt.", "uvicorn.", "starlette.", "_asyncio."))
        or name in ("socket.socket", "coroutine")
    }
    return Counter(kept | {"files": len(os.listdir("/proc/self/fd"))})


async def test_nothing_is_left_of_requests_of_every_kind(mortal: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # what is logged is kept until the test ends, with the errors in it
    target, outcome = Target(int(mortal.url.rpartition(":")[2]), mortal.key, large_bytes=1 << 17), Outcome()
    await mixed(target, random.Random(0), 3 * len(MIXED), outcome)
    before = await asyncio.to_thread(held_by, mortal)

    await mixed(target, random.Random(1), 3 * len(MIXED), outcome)

    assert not outcome.broken
    more, give_up = Counter({"not looked at": 1}), time.monotonic() + 60  # the last connections close in their time
    while more and time.monotonic() < give_up:
        more = await asyncio.to_thread(held_by, mortal) - before
    assert not more
    assert mortal.http().get("/metrics").text.count("reasonrt_resumed_requests_total") >= 1
