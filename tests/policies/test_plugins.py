"""A policy of somebody else's works as soon as its package is installed."""

from pathlib import Path

import pytest

from reasonrt import Request, Runtime
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import ConfigError, RequestError
from reasonrt.policies.registry import policy_names

CODE = """
from dataclasses import dataclass

from reasonrt.policies.options import PolicyOptions
from reasonrt.types import FinishReason, Step, Stop


@dataclass
class Shout(PolicyOptions):
    word: str = "hey"
    engines = ("target",)

    async def solve(self, request, engines):
        yield Step(self.word.upper(), (), "target")
        yield Stop(FinishReason.STOP)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that announces `shout`, and `broken`, whose module does not exist."""
    (tmp_path / "shouting.py").write_text(CODE)
    info = tmp_path / "shouting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[reasonrt.policies]\nshout = shouting:Shout\nbroken = nowhere_to_be_found:Policy\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "shout"


@pytest.fixture
def runtime() -> Runtime:
    return Runtime({"target": ScriptedEngine("target", "")})


async def test_installed_policy_solves_by_its_name(installed: str, runtime: Runtime) -> None:
    completion = await runtime.complete(Request.ask("?", installed, options={"word": "oh"}))

    assert completion.text == "OH"
    assert installed in policy_names()


async def test_installed_policy_refuses_unknown_options(installed: str, runtime: Runtime) -> None:
    with pytest.raises(RequestError, match="unknown option 'volume'; Shout knows word"):
        await runtime.complete(Request.ask("?", installed, options={"volume": 11}))


@pytest.mark.usefixtures("installed")
async def test_policy_that_cannot_be_imported_is_named_with_the_reason(runtime: Runtime) -> None:
    with pytest.raises(
        ConfigError, match=r"'broken' is announced as nowhere_to_be_found:Policy .* repair or uninstall"
    ):
        await runtime.complete(Request.ask("?", "broken"))


async def test_policy_that_is_not_installed_is_unknown(runtime: Runtime) -> None:
    with pytest.raises(RequestError, match="unknown policy 'whisper'; there are arbitrage, auto, "):
        await runtime.complete(Request.ask("?", "whisper"))
