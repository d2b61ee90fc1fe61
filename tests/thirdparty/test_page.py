"""docs/extending.md shows the package that is tested, and what it says can be done."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reasonrt.policies.single import Target
from reasonrt.ports import Engines
from reasonrt.testing import ContractError, check_policy
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, Request, Stop
from reasonrt.writing import sampling_for, write_steps

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
ABACUS = Path(__file__).parent / "abacus"
FILES = ["pyproject.toml", *(f"reasonrt_abacus/{name}.py" for name in ("policy", "router", "engine", "task", "tool"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("name", FILES)
def test_page_shows_the_tested_code(name: str) -> None:
    assert (ABACUS / name).read_text() in [*blocks("python"), *blocks("toml")]


@pytest.mark.usefixtures("installed")
async def test_the_tests_that_it_shows_pass() -> None:
    (code,) = [block for block in blocks("python") if "check_policy(" in block]
    namespace: dict[str, Any] = {}
    exec(code, namespace)  # noqa: S102

    await namespace["test_contracts"]()


class Forgetful(Target):
    async def solve(self, request: Request, engines: Engines) -> Any:
        engine, transcript = engines["target"], Transcript(request.messages)
        async for event in write_steps(engine, transcript, sampling_for(request, transcript, engine)):
            yield Stop(event) if isinstance(event, FinishReason) else event


async def test_the_message_that_it_shows_is_the_message() -> None:
    with pytest.raises(ContractError) as raised:
        await check_policy(Forgetful)

    assert blocks("text") == [f"{raised.value}\n"]


def test_what_it_does_from_python_and_the_command_line_works(
    tmp_path: Path, installed: Path, plugin_environment: dict[str, str]
) -> None:
    (tmp_path / "reasonrt.yaml").write_text(blocks("yaml")[0])
    (program,) = [block for block in blocks("python") if "asyncio.run" in block]
    commands = [line.removeprefix("$ reasonrt ") for line in blocks("console")[0].splitlines()]

    printed = [_run(tmp_path, plugin_environment, "-c", program)]
    for command in commands:
        if command != "serve --local":
            main = "from reasonrt.cli.main import main; main()"
            printed.append(_run(tmp_path, plugin_environment, "-c", main, *shlex.split(command)))

    assert len(printed) == len(commands)
    assert "\\boxed{42} {'asked': 'target', 'is_right': True}" in printed[0]
    assert "\\boxed{42}" in printed[1]
    assert "equations@tolerance=1" in printed[2]


def _run(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
