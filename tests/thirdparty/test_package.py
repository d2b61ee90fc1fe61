"""Somebody else's policy, router, engine, task and tool, installed by entry points and used from everywhere."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest

from reasonrt import Request, Runtime
from reasonrt.errors import ConfigError, RequestError
from reasonrt.evals.tasks import load_task
from reasonrt.testing import check_engine, check_policy, check_router
from tests.waiting import wait_until

ABACUS = Path(__file__).parent / "abacus"
RUN = [sys.executable, "-c", "from reasonrt.cli.main import main; main()"]
QUESTION = "What is 17 + 25?"


@pytest.mark.parametrize("name", ["policy", "router", "engine", "task", "tool"])
def test_each_is_under_40_lines(name: str) -> None:
    assert len((ABACUS / "reasonrt_abacus" / f"{name}.py").read_text().splitlines()) < 40


@pytest.mark.usefixtures("installed")
async def test_each_keeps_its_contract() -> None:
    tool = import_module("reasonrt_abacus.tool").Abacus

    await check_policy("checked", tools={"abacus": tool})
    await check_policy("checked", {"asks": ["target"]}, tools={"abacus": tool})
    await check_router(import_module("reasonrt_abacus.router").EQUATIONS, {"tolerance": 2})
    await check_engine(lambda: import_module("reasonrt_abacus.engine").Adder("target"), is_model=False)


async def test_sdk(config: Path) -> None:
    async with Runtime.from_config(config) as runtime:
        completion = await runtime.complete(Request.ask(QUESTION, "checked"))
        speculated = await runtime.complete(Request.ask(QUESTION, "equations"))
        wrong = await runtime.complete(Request.ask(QUESTION, "draft"))

    assert completion.content == speculated.content == r"\boxed{42}"
    assert completion.details == {"asked": "target", "is_right": True}
    assert wrong.content == r"\boxed{43}"
    assert {step.author for step in speculated.steps if "=" in step.text} == {"target"}
    assert {step.author for step in speculated.steps} == {"draft", "target"}
    assert load_task("sums", 3)[0].question.startswith("What is ")
    assert load_task("sums", 3) == load_task("sums", 9)[:3]


async def test_options_come_from_the_configuration_and_are_checked(config: Path) -> None:
    async with Runtime.from_config(config, policies={"checked": {"asks": ["draft"]}}) as runtime:
        by_default = await runtime.complete(Request.ask(QUESTION, "checked"))
        asked = await runtime.complete(Request.ask(QUESTION, "checked", options={"asks": ["draft", "target"]}))
        with pytest.raises(RequestError, match="unknown option 'ask'; Checked knows asks, tool"):
            runtime.prepare(Request.ask(QUESTION, "checked", options={"ask": 1}))
        with pytest.raises(RequestError, match="tolerance must be a whole number at least 0, got -1"):
            runtime.prepare(Request.ask(QUESTION, "equations", options={"tolerance": -1}))

    assert by_default.details == {"asked": "draft", "is_right": False}
    assert asked.details == {"asked": "target", "is_right": True}


async def test_policy_whose_tool_is_not_configured_is_told(config: Path) -> None:
    runtime = Runtime.from_config(config, tools={})

    with pytest.raises(ConfigError, match="policy checked uses a tool 'abacus'; there are sandbox: configure it"):
        runtime.prepare(Request.ask(QUESTION, "checked"))


async def test_tool_lives_as_long_as_the_runtime(config: Path) -> None:
    runtime: Any = Runtime.from_config(config)

    assert not runtime.tools["abacus"].is_ready
    async with runtime:
        assert runtime.tools["abacus"].is_ready
    assert not runtime.tools["abacus"].is_ready


def run(*arguments: str, cwd: Path, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*RUN, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


def test_cli_solves(config: Path, plugin_environment: dict[str, str]) -> None:
    done = run(
        "solve", QUESTION, "--policy", "checked@asks=[draft, target]", "--json", "end.json",
        cwd=config.parent, env=plugin_environment,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert r"\boxed{42}" in done.stdout
    assert json.loads((config.parent / "end.json").read_text())["details"] == {"asked": "target", "is_right": True}


def test_cli_evaluates_the_task_by_policy_and_router(config: Path, plugin_environment: dict[str, str]) -> None:
    policies = [word for name in ("checked", "equations", "draft") for word in ("--policy", name)]
    done = run(
        "eval", "--task", "sums", "--limit", "20", *policies, "--out", "run", "--json", "report.json",
        cwd=config.parent, env=plugin_environment,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    rows = {row["policy"]: row for row in json.loads((config.parent / "report.json").read_text())["rows"]}
    assert {name: row["accuracy"] for name, row in rows.items()} == {"checked": 1.0, "equations": 1.0, "draft": 0.0}
    # what does not work is named once, and the zoo's task is there
    assert done.stderr.count("'tasks_absent'") == done.stderr.count("'tasks_raises'") == 1


@contextmanager
def served(cwd: Path, env: dict[str, str]) -> Iterator[tuple[httpx.Client, Path]]:
    """`reasonrt serve --local`, once it is ready, and the file of its standard error."""
    log = cwd / "server.log"
    with log.open("wb") as errors:
        server = subprocess.Popen(
            [*RUN, "serve", "--local", "--port", "0"],
            cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    try:
        assert server.stdout is not None
        told = re.search(r"http://\S+?(?=;)", server.stdout.readline())
        assert told, log.read_text()
        with httpx.Client(base_url=told[0], timeout=60, transport=httpx.HTTPTransport(retries=3)) as http:
            wait_until(lambda: http.get("/ready").is_success)
            yield http, log
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)  # waits, and closes the pipe


def test_http(config: Path, plugin_environment: dict[str, str]) -> None:
    with served(config.parent, plugin_environment) as (http, log):
        models = [model["id"] for model in http.get("/v1/models").json()["data"]]

        def ask(model: str, **options: Any) -> httpx.Response:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": QUESTION}],
                "reasonrt": {"options": options},
            }
            return http.post("/v1/chat/completions", json=body)

        right, wrong = ask("checked@asks=[draft, target]"), ask("checked", asks=["draft"])
        speculated = ask("equations@tolerance=0")
        refused = [ask("checked@tool=abacus"), ask("checked", tool="abacus")]
        refused += [ask("checked@asks=draft"), ask("checked@no=1")]

    assert {"checked", "equations", "target", "draft"} <= set(models)
    assert not [model for model in models if "absent" in model or "raises" in model]
    assert right.json()["choices"][0]["message"]["content"] == r"\boxed{42}"
    assert wrong.json()["choices"][0]["message"]["content"] == r"\boxed{43}"
    assert speculated.json()["choices"][0]["message"]["content"] == r"\boxed{42}"
    assert [answer.status_code for answer in refused] == [400] * 4
    messages = [answer.json()["error"]["message"] for answer in refused]
    assert all("option 'tool' may be set by the server's configuration only" in message for message in messages[:2])
    assert "asks must be a list" in messages[2]
    assert "unknown option 'no'" in messages[3]
    named = [line for line in log.read_text().splitlines() if "is left out" in line]
    assert sum("'policies_absent'" in line for line in named) == sum("'routers_raises'" in line for line in named) == 1


def test_doctor_reports_each(config: Path, plugin_environment: dict[str, str]) -> None:
    done = run("doctor", "--json", "doctor.json", cwd=config.parent, env=plugin_environment)

    findings = {
        finding["subject"]: finding["status"]
        for finding in json.loads((config.parent / "doctor.json").read_text())["findings"]
    }
    assert done.returncode == 1
    works = ("policy checked", "router equations", "engine adder", "engine target", "task sums", "tool abacus")
    assert {findings[subject] for subject in works} == {"ok"}
    assert findings["policy policies_absent"] == findings["tool tools_raises"] == "problem"


def test_tool_that_the_configuration_names_and_does_not_work_is_one_line(
    config: Path, plugin_environment: dict[str, str]
) -> None:
    config.write_text(config.read_text().replace("name: abacus", "name: tools_raises"))

    done = run("solve", QUESTION, "--policy", "checked", cwd=config.parent, env=plugin_environment)

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: tool 'abacus': tool 'tools_raises' is announced as")
    assert "Traceback" not in done.stderr
