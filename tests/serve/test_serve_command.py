"""`reasonrt serve` from outside: refusals, and a server of real engines whose core is killed; about a minute."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import BadRequestError, OpenAI

RUN = [sys.executable, "-c", "from reasonrt.cli.main import main; main()", "serve", "--port", "0"]
ENVIRONMENT = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
CONFIG = """
engines:
  target: {model: "zoo:nano-target", cores: "0"}
serve: {bounds: {max_tokens: 700}}
"""
QUESTION = "Calculate the answer of this chain sum: 47 + 36 - 12 + 55 - 8."


@pytest.mark.parametrize(
    ("arguments", "keys", "expected"),
    [
        (["--host", "0.0.0.0"], "", "anybody who reaches 0.0.0.0 could use the engines"),  # noqa: S104
        (["--host", "0.0.0.0"], "ada=short", "must have at least 16 characters"),  # noqa: S104
        ([], "nonsense", "REASONRT_API_KEYS holds NAME=KEY,NAME=KEY"),
        (["--port", "99999"], "", "serve.port"),
        (["--config", "no.yaml"], "", "cannot read no.yaml"),
    ],
)
def test_refusals_are_one_line(tmp_path: Path, arguments: list[str], keys: str, expected: str) -> None:
    environment = ENVIRONMENT | {"REASONRT_API_KEYS": keys}
    command = [*RUN, "--local", *arguments]

    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)

    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    (folder / "reasonrt.yaml").write_text(CONFIG)
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*RUN, *arguments], cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[2].rstrip(";")
        assert httpx.get(url + "/health", timeout=60).status_code == 200
        assert httpx.get(url + "/ready", timeout=60).status_code == 503
        wait_until_ready(url)
        yield url, server
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=120)


def wait_until_ready(url: str) -> None:
    give_up = time.monotonic() + 300
    while httpx.get(url + "/ready", timeout=60).status_code != 200:
        assert time.monotonic() < give_up
        time.sleep(0.2)


def engine_cores(pid: int) -> list[psutil.Process]:
    cores: list[psutil.Process] = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            if "EngineCore" in " ".join(process.cmdline()):
                cores.append(process)
    return cores


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_server_outlives_its_engine_core_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--local") as (url, server),
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client,
    ):
        ask: dict[str, Any] = {"model": "target", "messages": [{"role": "user", "content": QUESTION}]}
        with pytest.raises(BadRequestError, match="700"):  # what the file says, holds
            client.chat.completions.create(**ask, max_tokens=701)
        peaceful = client.chat.completions.create(**ask)
        cores = engine_cores(server.pid)
        assert len(cores) == 1

        text, is_killed = "", False
        for chunk in client.chat.completions.create(**ask, stream=True):
            text += getattr(chunk.choices[0].delta, "reasoning", None) or ""
            if text and not is_killed:
                for core in cores:
                    core.kill()
                is_killed = True

        assert text == peaceful.choices[0].message.reasoning
        wait_until_ready(url)
        assert "restarts_total 0.0" not in httpx.get(url + "/metrics", timeout=60).text
        below = psutil.Process(server.pid).children(recursive=True)
    assert server.returncode == 0
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive
