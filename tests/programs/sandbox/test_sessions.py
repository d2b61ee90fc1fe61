"""Sessions of each backend: what cells leave behind, what they may ask, and how they end."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reasonrt.errors import ConfigError, EngineError, RequestError
from reasonrt.programs.sandbox.base import Cell, CellLimits, CellStopped, Ending, Host, HostCall, ProgramError
from reasonrt.programs.sandbox.build import SandboxTool, build_sandbox
from tests.waiting import wait_until

HostOf = Callable[..., Host]
QUICK = CellLimits(cell_s=0.5)


async def no_host(call: HostCall) -> Any:
    raise AssertionError(f"{call.name} was called")


async def run(sandbox: SandboxTool, code: str, host: Host = no_host, *functions: str, **values: Any) -> Cell:
    session = await sandbox.open(values, functions, CellLimits(max_calls=1000))
    try:
        return await session.run(code, host)
    finally:
        await session.aclose()


async def test_cell_sees_values_and_prints(sandbox: SandboxTool) -> None:
    began = time.perf_counter()
    cell = await run(sandbox, "print(len(context), context[1])", context=["a", "bé"])

    assert (cell.ending, cell.output, cell.error) == (Ending.DONE, "2 bé\n", "")
    assert 0 < cell.seconds < time.perf_counter() - began


async def test_variables_survive_an_exception(sandbox: SandboxTool) -> None:
    session = await sandbox.open({})

    raised = await session.run("x = 41\ny = [x]\nprint('so far')\n1 / 0", no_host)
    after = await session.run("print(x + 1, y)", no_host)

    assert (raised.ending, raised.output) == (Ending.RAISED, "so far\n")
    assert "line 4" in raised.error
    assert "ZeroDivisionError: division by zero" in raised.error
    assert after.output == "42 [41]\n"
    await session.aclose()


@pytest.mark.parametrize("code", ["1 +", "def f(:\n  pass", "x = '\ud800'", "(" * 500, "x = 1\n  y = 2"])
async def test_what_is_no_program_is_refused_and_the_session_stays(sandbox: SandboxTool, code: str) -> None:
    session = await sandbox.open({"x": 1})

    refused = await session.run(code, no_host)
    after = await session.run("print(x)", no_host)

    assert refused.ending is Ending.REFUSED
    assert refused.error
    assert after.output == "1\n"
    await session.aclose()


async def test_host_calls_look_like_calls(sandbox: SandboxTool, host_of: HostOf) -> None:
    host = host_of(ask=lambda prompt, limit=1: {"said": prompt * limit})
    code = "f = ask\nprint(ask('a'), f('b', limit=2), [ask(x)['said'] for x in 'cd'])"

    cell = await run(sandbox, code, host, "ask")

    assert cell.output == "{'said': 'a'} {'said': 'bb'} ['c', 'd']\n"
    assert cell.num_calls == 4


async def test_replies_keep_their_types(sandbox: SandboxTool, host_of: HostOf) -> None:
    reply = [None, True, 1, 1.5, "é", [1], (1, 2), {"a": {"b": 2}, 3: "c", (1, "x"): None}, 2**70]
    session = await sandbox.open({}, ["give", "take"])
    taken: list[Any] = []

    cell = await session.run("x = give()\ntake(x)", host_of(give=lambda: reply, take=taken.append))

    assert cell.ending is Ending.DONE
    assert taken == [reply]
    assert [type(item) for item in taken[0]] == [type(item) for item in reply]
    assert await session.value("x") == reply
    await session.aclose()


@pytest.mark.parametrize("code", ["secret()", "secret", "f = secret\nf()"])
async def test_a_function_that_was_not_handed_in_is_no_name(sandbox: SandboxTool, code: str) -> None:
    cell = await run(sandbox, code, no_host, "ask")

    assert cell.ending in (Ending.RAISED, Ending.REFUSED)
    assert "NameError: name 'secret' is not defined" in cell.error


@pytest.mark.parametrize("kind", ["RuntimeError", "ValueError", "KeyError", "TimeoutError"])
async def test_a_program_may_catch_what_a_host_function_raises(
    sandbox: SandboxTool, host_of: HostOf, kind: str
) -> None:
    def ask() -> None:
        raise ProgramError("budget exhausted", kind)

    code = f"try:\n    ask()\nexcept {kind} as error:\n    print('caught', error)\nask()"
    cell = await run(sandbox, code, host_of(ask=ask), "ask")

    assert cell.output.startswith("caught")
    assert "budget exhausted" in cell.output
    assert cell.ending is Ending.RAISED
    assert f"{kind}: " in cell.error


async def test_a_stopped_cell_cannot_catch_it(sandbox: SandboxTool, host_of: HostOf) -> None:
    def ask() -> None:
        raise CellStopped("the run is over")

    session = await sandbox.open({}, ["ask"])
    cell = await session.run("try:\n    ask()\nexcept BaseException:\n    pass\nprint('on')", host_of(ask=ask))
    after = await session.run("print(1)", no_host)

    assert (cell.ending, cell.output, cell.error) == (Ending.LOST, "", "the run is over")
    assert after.ending is Ending.LOST
    assert "the run is over" in after.error


async def test_an_error_of_the_host_itself_is_not_hidden(sandbox: SandboxTool, host_of: HostOf) -> None:
    def ask() -> None:
        raise EngineError("it died")

    with pytest.raises(EngineError, match="it died"):
        await run(sandbox, "try:\n    ask()\nexcept BaseException:\n    pass", host_of(ask=ask), "ask")


@pytest.mark.parametrize(
    "code",
    ["while True: pass", "while True:\n    try:\n        while True: pass\n    except BaseException:\n        pass"],
)
async def test_time_limit_loses_the_session_and_names_itself(sandbox: SandboxTool, code: str) -> None:
    session = await sandbox.open({}, limits=QUICK)

    began = time.perf_counter()
    cell = await session.run(code, no_host)

    assert time.perf_counter() - began < 60
    assert (cell.ending, cell.error) == (Ending.LOST, "timed out: it ran longer than 0.5 s")
    assert (await session.run("print(1)", no_host)).ending is Ending.LOST
    assert await session.value("x") is None
    await session.aclose()


async def test_an_exception_that_the_language_lacks_is_another_one(sandbox: SandboxTool, host_of: HostOf) -> None:
    def ask() -> None:
        raise ProgramError("refused", "NoSuchError")

    cell = await run(sandbox, "try:\n    ask()\nexcept RuntimeError as e:\n    print(e)", host_of(ask=ask), "ask")

    assert cell.output == "refused\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [([0] * 2_000_000, "more than 1000000 items"), ("\ud800", "half of a surrogate pair")],
    ids=range(2),
)
async def test_an_answer_that_cannot_be_handed_over_is_an_exception_of_the_program(
    sandbox: SandboxTool, host_of: HostOf, answer: Any, reason: str
) -> None:
    session = await sandbox.open({}, ["ask"])
    host = host_of(ask=lambda: answer)

    caught = await session.run("try:\n    ask()\nexcept RuntimeError as error:\n    print(error)", host)
    raised = await session.run("ask()", host)

    assert reason in caught.output
    assert raised.ending is Ending.RAISED
    assert "ask for less at a time" in raised.error
    await session.aclose()


async def test_a_reply_that_is_no_plain_data_is_an_error_of_the_host(sandbox: SandboxTool, host_of: HostOf) -> None:
    session = await sandbox.open({}, ["ask"])

    with pytest.raises(TypeError, match="the host function ask answered what no program can have"):
        await session.run("try:\n    ask()\nexcept BaseException:\n    pass", host_of(ask=object))

    assert (await session.run("print(1)", no_host)).ending is Ending.LOST


async def test_the_clock_stops_while_the_host_works(sandbox: SandboxTool, host_of: HostOf) -> None:
    session = await sandbox.open({}, ["ask"], CellLimits(cell_s=1.5))

    cell = await session.run("a = ask()\nb = ask()\nprint(a + b)", host_of(ask=_after(1.0)))

    assert (cell.ending, cell.output) == (Ending.DONE, "2\n")
    assert cell.seconds < 1.5  # the host took 2 s
    await session.aclose()


async def test_memory_limit_loses_the_session(sandbox: SandboxTool) -> None:
    session = await sandbox.open({}, limits=CellLimits(memory_bytes=1 << 27))

    cell = await session.run("x = []\nwhile True:\n    x.append('a' * 1000000 + str(len(x)))", no_host)

    assert (cell.ending, cell.error) == (Ending.LOST, "out of memory: it needed more than 134217728 bytes")


async def test_too_many_host_calls_lose_the_session(sandbox: SandboxTool, host_of: HostOf) -> None:
    code = "while True:\n    try:\n        ask()\n    except BaseException:\n        pass"
    cell = await run(sandbox, code, host_of(ask=lambda: None), "ask")

    assert (cell.ending, cell.error) == (Ending.LOST, "it made more than 1000 host calls")


async def test_output_is_cut_and_the_cell_continues(sandbox: SandboxTool) -> None:
    session = await sandbox.open({}, limits=CellLimits(output_characters=10))

    cell = await session.run("print('é' * 8)\nprint('b' * 3000000)\nx = 1", no_host)

    assert (cell.ending, cell.output) == (Ending.DONE, "éééééééé\nb\n[cut: 3000000 more characters]")
    assert await session.value("x") == 1
    await session.aclose()


async def test_a_killed_worker_is_a_loss_and_is_replaced(sandbox: SandboxTool, host_of: HostOf) -> None:
    session = await sandbox.open({}, ["ask"])
    pid = session.worker_pid  # type: ignore[attr-defined]

    cell = await session.run("ask()", host_of(ask=lambda: os.kill(pid, signal.SIGKILL)))

    assert cell.ending is Ending.LOST
    assert "worker died" in cell.error
    assert "\n" not in cell.error
    assert (await run(sandbox, "print('next')")).output == "next\n"


async def test_cancelling_kills_the_worker(sandbox: SandboxTool) -> None:
    session = await sandbox.open({})
    pid = session.worker_pid  # type: ignore[attr-defined]
    task = asyncio.create_task(session.run("while True: pass", no_host))
    await asyncio.sleep(0.1)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await asyncio.to_thread(wait_until, lambda: _has_ended(pid))
    assert (await session.run("print(1)", no_host)).ending is Ending.LOST


async def test_cancelling_in_a_host_call_kills_the_worker(sandbox: SandboxTool, host_of: HostOf) -> None:
    session = await sandbox.open({}, ["ask"])
    pid = session.worker_pid  # type: ignore[attr-defined]
    task = asyncio.create_task(session.run("ask()", host_of(ask=_after(60))))
    await asyncio.sleep(0.1)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await asyncio.to_thread(wait_until, lambda: _has_ended(pid))


async def test_sessions_never_see_each_others_output(sandbox: SandboxTool, host_of: HostOf) -> None:
    """Candidates that print at the same time are independent."""

    async def candidate(name: str) -> Cell:
        code = f"for i in range(200):\n    print({name!r}, i)\n    ask()"
        return await run(sandbox, code, host_of(ask=lambda: asyncio.sleep(0)), "ask")

    cells = await asyncio.gather(*(candidate(name) for name in "abcd"))

    for name, cell in zip("abcd", cells, strict=True):
        assert cell.output == "".join(f"{name} {i}\n" for i in range(200))


async def test_sessions_share_no_process_and_no_variable(sandbox: SandboxTool) -> None:
    first = await sandbox.open({})
    pid = first.worker_pid  # type: ignore[attr-defined]
    await first.run("secret = 1", no_host)
    await first.aclose()

    second = await sandbox.open({})

    assert second.worker_pid != pid  # type: ignore[attr-defined]
    assert "NameError" in (await second.run("print(secret)", no_host)).error
    await second.aclose()


async def test_a_dump_continues_as_often_as_wanted(sandbox: SandboxTool, host_of: HostOf) -> None:
    session = await sandbox.open({"context": "text"}, ["ask"])
    await session.run("x = [ask(1)]\n1 / 0", host_of(ask=lambda n: n + 1))
    state = await session.dump()
    await session.run("x.append('later')", no_host)

    for reply in "AB":
        copy = await sandbox.load(state, ["ask"])
        cell = await copy.run("x.append(ask())\nprint(context, x)", host_of(ask=lambda reply=reply: reply))
        assert cell.output == f"text [2, '{reply}']\n"
        await copy.aclose()
    assert await session.value("x") == [2, "later"]
    await session.aclose()


async def test_a_fork_continues_in_the_middle_of_a_call(sandbox: SandboxTool) -> None:
    states: list[bytes] = []

    async def host(call: HostCall) -> Any:
        if call.args == ("doubtful",):
            assert call.fork
            states.append(await call.fork())
        return "first"

    session = await sandbox.open({"context": "text"}, ["ask"])
    code = "print('before')\ny = ask('sure')\nx = ask('doubtful')\nprint(x, y)\nz = ask('more')"
    original = await session.run(code, host)
    assert original.output == "before\nfirst first\n"

    for reply in ("second", "third"):
        fork, cell = await sandbox.resume(states[0], reply, host, ["ask"])
        assert (cell.ending, cell.output, cell.num_calls) == (Ending.DONE, f"before\n{reply} first\n", 3)
        assert await fork.value("x") == reply
        assert (await fork.run("print(context)", no_host)).output == "text\n"
        await fork.aclose()
    await session.aclose()


async def test_a_fork_may_be_answered_by_an_error(sandbox: SandboxTool) -> None:
    states: list[bytes] = []

    async def host(call: HostCall) -> Any:
        assert call.fork
        states.append(await call.fork())

    session = await sandbox.open({}, ["ask"])
    await session.run("try:\n    ask()\nexcept ValueError as error:\n    print(error)", host)
    await session.aclose()

    fork, cell = await sandbox.resume(states[0], ProgramError("too long", "ValueError"), no_host, ["ask"])

    assert cell.output == "too long\n"
    await fork.aclose()


@pytest.mark.parametrize("state", [b"", b"{}\n", b"nonsense", b'{"backend": "other", "version": 1}\n'])
async def test_what_is_no_state_is_refused(sandbox: SandboxTool, state: bytes) -> None:
    with pytest.raises(RequestError, match="no state"):
        await sandbox.load(state)
    with pytest.raises(RequestError, match="no state"):
        await sandbox.resume(state, None, no_host)


async def test_a_damaged_state_is_one_line() -> None:
    sandbox = build_sandbox("monty", max_workers=1)
    session = await sandbox.open({})
    state = await session.dump()
    await session.aclose()
    call = state.replace(b'"session"', b'"call", "output": "", "num_cut": 0, "num_calls": 0, "seconds": 0')

    for _ in range(2):  # the place is given back
        with pytest.raises(EngineError, match="a saved session cannot be loaded"):
            await sandbox.load(state[:-50])
        with pytest.raises(EngineError, match="a saved session cannot be loaded"):
            await sandbox.resume(call, 1, no_host)
    await sandbox.aclose()


@pytest.mark.parametrize(
    ("code", "value"),
    [("x = {'a': [1, (2, None)]}", {"a": [1, (2, None)]}), ("x = 'é'", "é"), ("y = 1", None), ("x = print", None)],
)
async def test_value_is_plain_data_or_none(sandbox: SandboxTool, code: str, value: Any) -> None:
    session = await sandbox.open({}, ["ask"])
    await session.run(code, no_host)

    assert await session.value("x") == value
    assert await session.value("ask") is None
    assert await session.value("1 + 1") is None
    await session.aclose()


NOT_HANDED_OVER = {
    "too many": ("a = [0] * 1000\nb = [a] * 1000\nask([b] * 1000)", "items"),
    "too deep": ("a = []\nfor _ in range(200):\n    a = [a]\nask(a)", "nested"),
    "too long": ("ask(['x' * 1000000] * 500)", "characters"),
    "too large": ("ask(2 ** 100000)", "bits"),
    "an object": ("class A:\n    pass\nask(A())", "plain data"),
}


@pytest.mark.parametrize(("code", "reason"), NOT_HANDED_OVER.values(), ids=NOT_HANDED_OVER)
async def test_what_no_host_should_be_handed_is_an_error_of_the_program(
    sandbox: SandboxTool, code: str, reason: str
) -> None:
    cell = await run(sandbox, code, no_host, "ask")

    assert cell.ending is Ending.RAISED
    assert "TypeError: ask: " in cell.error
    assert reason in cell.error


async def test_waiting_too_long_for_a_place_is_one_line() -> None:
    sandbox = build_sandbox(max_workers=1, checkout_s=0.2)
    session = await sandbox.open({})

    with pytest.raises(EngineError, match=r"no sandbox was free within .* all 1 are in use"):
        await sandbox.open({})
    await session.aclose()
    await (await sandbox.open({})).aclose()
    await sandbox.aclose()
    await sandbox.aclose()


async def test_closed_sessions_leave_no_descriptor(sandbox: SandboxTool) -> None:
    async def run_sessions(count: int) -> None:
        for _ in range(count):
            assert (await run(sandbox, "print(1)")).output == "1\n"
        await asyncio.sleep(0.05)

    await run_sessions(4)
    before = len(os.listdir("/proc/self/fd"))

    await run_sessions(24)

    # fewer than one of three sessions: a worker that waits for the next one has some, too
    await asyncio.to_thread(wait_until, lambda: len(os.listdir("/proc/self/fd")) < before + 8)


async def test_a_session_may_not_need_more_memory_than_its_worker(sandbox: SandboxTool) -> None:
    with pytest.raises(ConfigError, match="worker_bytes"):
        await sandbox.open({}, limits=CellLimits(memory_bytes=1 << 40))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_worker": 1}, "unknown setting 'max_worker'"),
        ({"max_workers": "1"}, "'max_workers'"),
        ({"max_workers": 0}, "'max_workers'"),
        ({"backend": "docker"}, "unknown sandbox 'docker'; there are "),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        build_sandbox(**settings)
    assert "\n" not in str(raised.value)


def _after(seconds: float) -> Callable[[], Any]:
    async def ask() -> int:
        await asyncio.sleep(seconds)
        return 1

    return ask


def _has_ended(pid: int) -> bool:
    """Whether a process has; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
