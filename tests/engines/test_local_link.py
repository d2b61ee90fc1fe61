"""An engine in a child process: what it does, how it dies, and that it never outlives its parent."""

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt import Request, Runtime
from reasonrt.config import PluginConfig
from reasonrt.engines.build import build_engine
from reasonrt.engines.linked import LinkedEngine
from reasonrt.engines.local_link import LocalLink, _Channel
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import CapabilityError, EngineError, ReasonRTError, RequestError
from reasonrt.ports import ChecksHealth, Engine
from reasonrt.types import Sampling
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("hosted_package")
WORDS = "word " * 200
Make = Callable[..., Engine]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Engines in processes of their own, closed after the test."""
    made: list[Engine] = []

    def make_one(name: str = "target", **settings: Any) -> Engine:
        config = PluginConfig(kind="plugin", name="scripted", own_process=True, settings={"text": WORDS} | settings)
        made.append(build_engine(name, config))
        return made[-1]

    yield make_one
    for engine in made:
        await engine.aclose()


async def tell(engine: Engine, words: str) -> float:
    """Have the far engine do what `hosted_engines` understands."""
    return (await engine.score(engine.tokenizer.encode(words))).value


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


async def kill(engine: Any) -> None:
    """Kill its process, and wait until the link has heard of it."""
    os.kill(int(await tell(engine, "pid")), signal.SIGKILL)
    await asyncio.to_thread(wait_until, lambda: not engine._link.is_running)


async def collect(engine: Engine, prompt: str, max_tokens: int = 2000) -> str:
    async with aclosing(engine.generate(engine.tokenizer.encode(prompt), Sampling(max_tokens))) as stream:
        return "".join([engine.tokenizer.decode(delta.token_ids) async for delta in stream])


async def test_it_runs_in_another_process_and_says_what_it_would_say_here(make: Make) -> None:
    linked, here = await make().start(), ScriptedEngine("target", WORDS)

    assert await tell(linked, "pid") != os.getpid()
    assert await collect(linked, "?") == await collect(here, "?")
    assert await linked.read([2, 3], [4, 5]) == await here.read([2, 3], [4, 5])
    drafted = here.tokenizer.encode("word wood")
    assert await linked.verify([2, 3], drafted) == await here.verify([2, 3], drafted)
    drawn = Sampling(1, temperature=1.0, seed=1)
    assert await linked.verify([2, 3], drafted, drawn) == await here.verify([2, 3], drafted, drawn)


async def test_policies_run_over_it(make: Make) -> None:
    async with Runtime({role: make(role, text="One.\n\n\\boxed{7}") for role in ("target", "draft")}) as runtime:
        completion = await runtime.complete(Request.ask("?", "self_consistency"))

    assert "\\boxed{7}" in completion.text


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        ("refuse this", RequestError, "^refused: this$"),
        ("cannot do", CapabilityError, "^cannot: do$"),
        ("bug here", EngineError, "^the engine failed: ZeroDivisionError: here; its process has printed where$"),
        ("own", EngineError, "between 1 and 2"),
    ],
)
async def test_errors_cross_as_themselves(make: Make, words: str, kind: type[ReasonRTError], message: str) -> None:
    engine = make()

    for _ in range(2):
        with pytest.raises(kind, match=message) as caught:
            await tell(engine, words)
        assert type(caught.value) is kind


async def test_what_does_not_fit_is_refused_from_the_stream(make: Make) -> None:
    stream = make(max_model_len=50).generate([2] * 40, Sampling(40))

    with pytest.raises(RequestError, match="exceed max_model_len 50"):
        await anext(stream)
    await stream.aclose()
    assert stream.generated_tokens == 0


@pytest.mark.parametrize(
    ("start", "message"),
    [("refuse to start", "refused: to start"), ("bug", "ZeroDivisionError"), ("exit 3", "process of engine .* died")],
)
async def test_engine_that_does_not_start_says_why_each_time(make: Make, start: str, message: str) -> None:
    engine = make(start=start)

    for _ in range(2):
        with pytest.raises(ReasonRTError, match=message):
            await engine.start()


async def test_engine_that_cannot_be_built_says_why() -> None:
    def like() -> ScriptedEngine:
        return ScriptedEngine("target", "")

    with pytest.raises((AttributeError, pickle.PicklingError), match="like"):
        await LinkedEngine(like(), LocalLink("target", like)).start()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
async def test_death_in_mid_stream_fails_what_runs_and_the_next_call_finds_it_back(
    make: Make, sign: signal.Signals
) -> None:
    engine = await make(seconds_per_token=0.005).start()
    pid = int(await tell(engine, "pid"))
    streams = [engine.generate([2], Sampling(1000)) for _ in range(3)]
    for stream in streams:
        await anext(stream)
    waiting = asyncio.ensure_future(tell(engine, "wait 60"))
    await asyncio.sleep(0.05)

    os.kill(pid, sign)

    for stream in streams:
        with pytest.raises(EngineError, match="process of engine 'target' died while it worked on this request"):
            async for _ in stream:
                pass
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    with pytest.raises(EngineError, match="died"):
        await waiting
    assert await collect(engine, "?", 100) == WORDS[:100]
    assert int(await tell(engine, "pid")) != pid
    assert is_gone(pid)


async def test_process_that_hangs_is_killed_and_the_next_call_finds_it_back(make: Make) -> None:
    engine = await make(seconds_per_token=0.002).start()
    assert isinstance(engine, ChecksHealth)
    pid = int(await tell(engine, "pid"))
    stream = engine.generate([2], Sampling(1000))
    await anext(stream)
    await engine.check_health(60)

    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(EngineError, match=r"engine 'target' has not answered for 0\.2 s, and was killed"):
        await engine.check_health(0.2)
    with pytest.raises(EngineError, match="died"):
        async for _ in stream:
            pass
    await engine.check_health(0.2)  # nothing is there that could hang
    await asyncio.to_thread(wait_until, lambda: is_gone(pid))
    assert await tell(engine, "pid") != pid


async def test_closing_a_stream_of_a_dead_process_starts_no_new_one(make: Make) -> None:
    engine = await make(seconds_per_token=0.002).start()
    stream = engine.generate([2], Sampling(1000))
    await anext(stream)
    os.kill(int(await tell(engine, "pid")), signal.SIGKILL)

    await stream.aclose()

    assert not engine._link.is_running  # type: ignore[attr-defined]
    assert stream.generated_tokens >= 4


async def test_callers_during_a_restart_share_one(make: Make) -> None:
    engine = await make(start="wait 0.2").start()
    await kill(engine)

    impatient = asyncio.ensure_future(tell(engine, "pid"))
    others = [asyncio.ensure_future(tell(engine, "pid")) for _ in range(5)]
    await asyncio.sleep(0.02)
    impatient.cancel()

    assert len(set(await asyncio.gather(*others))) == 1
    assert await tell(engine, "starts") == 1


async def test_loop_stays_responsive_while_the_engine_blocks_its_own(make: Make) -> None:
    engine = await make().start()
    late: list[float] = []

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            late.append(time.perf_counter() - before - 0.005)

    ticking = asyncio.create_task(tick())
    before = time.perf_counter()
    blocking = asyncio.ensure_future(tell(engine, "block 5"))
    await asyncio.sleep(0.1)
    assert await asyncio.wait_for(engine.start(), 4) is engine  # busy is not dead
    assert not blocking.done()
    await blocking
    ticking.cancel()

    assert time.perf_counter() - before > 5
    assert len(late) > 50
    assert max(late) < 4  # less than the engine has blocked its own, however busy the machine is


async def test_start_waits_for_an_engine_that_comes_back_from_a_death_of_its_own(make: Make) -> None:
    engine = await make().start()
    await kill(engine)

    await engine.start()

    assert await tell(engine, "starts") == 2  # built, and asked


@pytest.mark.parametrize("leave", ["close", "cancel"])
async def test_leaving_a_stream_stops_the_far_engine_and_counts_all(make: Make, leave: str) -> None:
    engine = await make(seconds_per_token=0.002).start()
    stream = engine.generate([2], Sampling(1000))
    await anext(stream)
    assert await tell(engine, "running") == 1

    if leave == "cancel":

        async def drain() -> None:
            async for _ in stream:
                pass

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(drain(), 0.05)
    await stream.aclose()

    assert await tell(engine, "running") == 0
    assert stream.generated_tokens == await tell(engine, "generated") > 0
    await asyncio.sleep(0.05)
    assert stream.generated_tokens == await tell(engine, "generated")


async def test_stream_left_before_the_far_end_has_heard_of_it_is_left(make: Make) -> None:
    engine = await make(seconds_per_token=0.002).start()
    for _ in range(20):
        stream = engine.generate([2], Sampling(1000))
        asking = asyncio.ensure_future(stream.__anext__())
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.wait_for(stream.aclose(), 10)

    assert await tell(engine, "running") == 0


async def test_cancelled_call_is_cancelled_at_the_far_end(make: Make) -> None:
    engine: Any = await make().start()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tell(engine, "wait 1000"), 0.05)

    # the far end answers what was cancelled once it has stopped
    await asyncio.to_thread(wait_until, lambda: not engine._link._child._answers)


async def test_two_hundred_streams_at_a_time_do_not_mix(make: Make) -> None:
    engine = await make(text="", seconds_per_token=0.0005).start()  # replies with the number in the prompt

    replies = await asyncio.gather(*(collect(engine, str(number)) for number in range(200)))

    for number, reply in enumerate(replies):
        assert reply.startswith(f"First step with {number}.")
        assert f"The answer is {2 * number}." in reply
    assert await tell(engine, "running") == 0


async def test_large_prompts_and_many_frames_arrive_whole(make: Make) -> None:
    engine = await make(max_model_len=2_000_000).start()
    prompt = "x" * 300_000

    assert await collect(engine, prompt, 50) == WORDS[:50]
    assert await asyncio.gather(*(tell(engine, f"ignore {'y' * size}") for size in (0, 1, 70_000))) == [0, 0, 0]


@given(st.lists(st.binary(max_size=300), max_size=6), st.data())
def test_messages_come_whole_however_the_bytes_are_cut(messages: list[bytes], data: st.DataObject) -> None:
    received: list[bytes] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = _Channel(ours, received.append, lambda: None)
        pickled = [pickle.dumps(message) for message in messages]
        content = b"".join(len(text).to_bytes(4, "big") + text for text in pickled)
        while content:
            size = data.draw(st.integers(1, len(content)))
            channel.data_received(content[:size])
            content = content[size:]

    assert received == messages


async def test_closing_ends_the_process_and_all_that_it_started(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reasonrt.engines.local_link._GRACE_S", 60.0)
    engine = await make().start()
    pid, grandchild = int(await tell(engine, "pid")), int(await tell(engine, "child"))

    before = time.monotonic()
    await engine.aclose()
    await engine.aclose()

    assert time.monotonic() - before < 30  # it has ended by itself
    assert is_gone(pid)
    await asyncio.to_thread(wait_until, lambda: is_gone(grandchild))
    await engine.start()  # and it can be started again
    assert await tell(engine, "pid") != pid


async def test_closing_fails_what_runs_and_does_not_wait_for_an_engine_that_is_deaf(make: Make) -> None:
    engine = await make(seconds_per_token=0.002).start()
    stream = engine.generate([2], Sampling(1000))
    await anext(stream)
    blocking = asyncio.ensure_future(tell(engine, "block 60"))
    await asyncio.sleep(0.1)
    await engine.start()

    before = time.monotonic()
    closing = asyncio.ensure_future(engine.aclose())
    with pytest.raises(EngineError, match="was closed while it worked on this request"):
        async for _ in stream:
            pass
    with pytest.raises(EngineError, match="was closed"):
        await blocking
    assert not closing.done()  # those who ask are told at once
    await closing
    assert time.monotonic() - before < 30


@pytest.mark.parametrize("start", ["hang", "wait 60"])
async def test_closing_does_not_wait_for_an_engine_that_does_not_end(make: Make, start: str) -> None:
    engine = make(start=start)
    starting = asyncio.ensure_future(engine.start())
    await asyncio.wait({starting}, timeout=1.0)

    before = time.monotonic()
    await engine.aclose()

    assert time.monotonic() - before < 30
    await asyncio.gather(starting, return_exceptions=True)


async def test_a_death_takes_along_what_the_engine_started(make: Make) -> None:
    engine = await make().start()
    grandchild = int(await tell(engine, "child"))

    os.kill(int(await tell(engine, "pid")), signal.SIGKILL)

    await asyncio.to_thread(wait_until, lambda: is_gone(grandchild))


PARENT = """
import asyncio, sys
from reasonrt.config import PluginConfig
from reasonrt.engines.build import build_engine

async def main():
    config = PluginConfig(kind="plugin", name="scripted", own_process=True, settings={"text": "x"})
    engine = await build_engine("target", config).start()
    async def ask(words):
        return (await engine.score(engine.tokenizer.encode(words))).value

    await ask("print of the engine")
    print(int(await ask("pid")), int(await ask("child")), flush=True)
    if "block" in sys.argv:
        await ask("block 1000")
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["kill", "kill while it blocks", "kill while it hangs", "interrupt"])
async def test_it_never_outlives_its_parent(end: str, tmp_path: Path) -> None:
    """Killed, interrupted at its terminal (the signal goes to its process group), and while the engine is deaf."""
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), *(["block"] if "blocks" in end else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(  # noqa: ASYNC220
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        child, grandchild = map(int, parent.stdout.readline().split())
        await asyncio.sleep(0.3)
        assert os.getpgid(child) != os.getpgid(parent.pid)
        if "hangs" in end:
            os.kill(child, signal.SIGSTOP)
        os.killpg(parent.pid, signal.SIGINT if end == "interrupt" else signal.SIGKILL)

        await asyncio.to_thread(wait_until, lambda: is_gone(child) and is_gone(grandchild))
        parent.wait(60)
        written = parent.stderr.read()

    assert written.startswith("of the engine\n")  # what an engine prints never gets into the parent's output
    assert "local_link" not in written  # the child has said nothing of its end
