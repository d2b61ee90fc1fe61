"""What only the backend of full Python has: its library, a journal, and a worker that is not believed."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from reasonrt.errors import ConfigError, EngineError
from reasonrt.programs.sandbox.base import Ending, Host, HostCall
from reasonrt.programs.sandbox.build import SandboxTool, build_sandbox
from tests.waiting import wait_until

HostOf = Callable[..., Host]


@pytest.fixture
async def sandbox() -> AsyncIterator[SandboxTool]:
    built = build_sandbox("cpython")
    yield built
    await built.aclose()


async def nobody(call: HostCall) -> Any:
    raise AssertionError(f"{call.name} was called")


async def test_the_standard_library_is_there(sandbox: SandboxTool) -> None:
    session = await sandbox.open({})
    names = "abc, ast, bisect, csv, ctypes, dataclasses, decimal, difflib, enum, fractions, hashlib, heapq, io, json"
    more = "lzma, math, pprint, random, re, sqlite3, statistics, string, textwrap, typing, unicodedata, zlib"

    cell = await session.run(f"import {names}, {more}\nprint(hashlib.sha256(b'').hexdigest()[:4])", nobody)

    assert (cell.error, cell.output) == ("", "e3b0\n")
    await session.aclose()


async def test_what_is_installed_beside_it_is_not(sandbox: SandboxTool) -> None:
    session = await sandbox.open({})

    for name in ("pydantic", "pytest", "reasonrt.config"):
        assert "ModuleNotFoundError" in (await session.run(f"import {name}", nobody)).error
    await session.aclose()


async def test_a_rebound_host_function_is_restored_after_the_cell(sandbox: SandboxTool, host_of: HostOf) -> None:
    session = await sandbox.open({}, ["ask"])

    await session.run("def ask(x):\n    return 'forged'\nprint(ask(1))", nobody)
    await session.run("globals()['ask'] = None", nobody)
    await session.run("del ask", nobody)
    cell = await session.run("print(ask(1))", host_of(ask=lambda x: "from the host"))

    assert cell.output == "from the host\n"
    await session.aclose()


@pytest.mark.parametrize("code", ["import os\nos._exit(0)", "import os\nos._exit(3)", "import os\nos.abort()"])
async def test_an_end_without_a_result_is_a_loss_whatever_its_code(sandbox: SandboxTool, code: str) -> None:
    session = await sandbox.open({})

    cell = await session.run(f"print('so far')\n{code}", nobody)

    assert (cell.ending, cell.error) == (Ending.LOST, "the worker died: it ended without a result")
    await session.aclose()


@pytest.mark.parametrize("code", ["import sys\nsys.exit(0)", "raise SystemExit", "raise KeyboardInterrupt"])
async def test_an_exit_ends_the_cell_and_not_the_session(sandbox: SandboxTool, code: str) -> None:
    session = await sandbox.open({})

    cell = await session.run(f"x = 1\n{code}", nobody)

    assert cell.ending is Ending.RAISED
    assert await session.value("x") == 1
    await session.aclose()


async def test_a_traceback_shows_the_program_and_nothing_below_it(sandbox: SandboxTool) -> None:
    session = await sandbox.open({})

    cell = await session.run("def f():\n    return 1 / 0\nf()", nobody)

    assert "return 1 / 0" in cell.error
    assert "<cell 1>" in cell.error
    assert "worker" not in cell.error
    await session.aclose()


END = {"kind": "end", "ending": "done", "error": "", "output": "", "num_cut": 0}
FORGED = {
    "a name that was not handed in": {"kind": "call", "name": "secret", "args": [], "kwargs": {"dict": []}},
    "a name that is none": {"kind": "call", "name": 1, "args": [], "kwargs": {"dict": []}},
    "arguments that are none": {"kind": "call", "name": "ask", "args": 3, "kwargs": {"dict": []}},
    "a value that is none": {"kind": "call", "name": "ask", "args": [{"x": 1}], "kwargs": {"dict": []}},
    "an end of no kind": {"kind": "end", "ending": "lost", "error": "", "output": "", "num_cut": 0},
    "an end without output": {"kind": "end", "ending": "done"},
    "an end that has cut too much": END | {"output": "x" * 70_000, "num_cut": 10**4300 - 1},
    "an end that has cut too little": END | {"num_cut": -1},
    "no message": {"x": 1},
}


@pytest.mark.parametrize("message", FORGED.values(), ids=FORGED)
async def test_a_forged_frame_reaches_no_function(sandbox: SandboxTool, message: dict[str, Any]) -> None:
    session = await sandbox.open({}, ["ask"])
    body = json.dumps(message)
    code = f"import os\nbody = {body!r}.encode()\nos.write(1, len(body).to_bytes(4, 'big') + body)\nos.read(0, 1)"

    cell = await session.run(code, nobody)

    assert cell.ending in (Ending.LOST, Ending.DONE)
    await session.aclose()


@pytest.mark.parametrize("depth", [70, 300, 600, 900])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"tuple": [', "]}"), ('{"dict": [[1, ', "]]}")])
async def test_a_forged_value_is_none(sandbox: SandboxTool, depth: int, begin: str, end: str) -> None:
    session = await sandbox.open({})
    value = f'{{"kind": "value", "value": {begin * depth}1{end * depth}}}'
    frames = [body.encode() for body in (json.dumps(END), value)]
    code = f"import os\nfor body in {frames!r}:\n    os.write(1, len(body).to_bytes(4, 'big') + body)\nos.read(0, 1)"
    assert (await session.run(code, nobody)).ending is Ending.DONE

    assert await session.value("answer") is None
    await session.aclose()


async def test_a_worker_computes_nothing_while_the_host_does(sandbox: SandboxTool) -> None:
    """Whatever it pretends: this one says that it has ended, and goes on."""
    session = await sandbox.open({})
    body = json.dumps(END)
    code = f"import os\nbody = {body!r}.encode()\nos.write(1, len(body).to_bytes(4, 'big') + body)\nwhile True: pass"

    assert (await session.run(code, nobody)).ending is Ending.DONE

    await asyncio.to_thread(wait_until, lambda: _state(session.worker_pid) == "T")  # type: ignore[attr-defined]
    await session.aclose()


async def test_a_state_is_a_journal_and_asks_nobody_twice(sandbox: SandboxTool, host_of: HostOf) -> None:
    session = await sandbox.open({"context": [1, (2, "é")]}, ["ask"])
    await session.run("import random\nx = [ask('a'), random.random(), list({'p', 'q', 'r'})]", host_of(ask=lambda p: p))
    await session.run("x.append(ask('b'))\n1 / 0", host_of(ask=lambda p: p * 2))
    await session.run("this is refused", nobody)
    before = await session.value("x")

    copy = await sandbox.load(await session.dump(), ["ask"])

    assert await copy.value("x") == before
    assert await copy.value("context") == [1, (2, "é")]
    assert await copy.dump() == await session.dump()
    await copy.aclose()
    await session.aclose()


async def test_a_state_that_depends_on_time_says_so(sandbox: SandboxTool, host_of: HostOf) -> None:
    session = await sandbox.open({}, ["ask"])
    await session.run("import time\nask(time.time_ns())", host_of(ask=lambda t: t))
    state = await session.dump()
    await session.aclose()

    with pytest.raises(EngineError, match="something else"):
        await sandbox.load(state, ["ask"])


async def test_the_environment_is_empty_and_descriptors_are_three(
    sandbox: SandboxTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REASONRT_ONLY_HERE", "1")
    session = await sandbox.open({})
    pid = session.worker_pid  # type: ignore[attr-defined]

    cell = await session.run("import os\nprint(dict(os.environ), os.getcwd())", nobody)

    assert cell.output == "{} /\n"
    assert "REASONRT" not in _of_process(pid, "environ")
    assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
    await session.aclose()


async def test_it_never_runs_without_its_wrapper() -> None:
    with pytest.raises(ConfigError, match="nothing without its wrapper"):
        await build_sandbox("cpython", unconfined=True).start()


def _of_process(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def _state(pid: int) -> str:
    return _of_process(pid, "stat").rpartition(")")[2].split()[0]
