"""Calls of tools by a real engine: guided decoding holds even a model to them that has never seen any."""

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from reasonrt import FunctionTool, Request, Runtime
from reasonrt.engines.vllm import VllmEngine
from reasonrt.engines.vllm_settings import VllmSettings
from reasonrt.errors import ConfigError, EngineError
from reasonrt.ports import Capability

pytestmark = pytest.mark.vllm

DIGIT = {
    "type": "object",
    "properties": {"digit": {"enum": [7, 8]}},
    "required": ["digit"],
    "additionalProperties": False,
}
TOOLS = (FunctionTool("double", parameters=DIGIT), FunctionTool("halve", parameters=DIGIT))
SHOWN = '{% if tools %}<|user|>{{ tools | tojson }} <tool_call>{"name": , "arguments": }</tool_call>{% endif %}'


@pytest.fixture(scope="module")
def folder(nano_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the zoo, with a template that shows tools as Qwen's does."""
    made = tmp_path_factory.mktemp("tools") / "model"
    shutil.copytree(nano_target, made)
    template = made / "chat_template.jinja"
    template.write_text(SHOWN + template.read_text())
    return made


@pytest.fixture(scope="module")
async def runtime(folder: Path) -> AsyncIterator[Runtime]:
    engine = VllmEngine("target", folder, VllmSettings(structured=True, kv_cache_mib=64, max_num_seqs=8))
    async with Runtime({"target": engine}) as started:
        yield started


@pytest.mark.parametrize("choice", ["required", "halve"])
async def test_calls_that_must_come_fit_their_schemas(runtime: Runtime, choice: str) -> None:
    request = Request.ask("1 + 1", tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    completion = await runtime.complete(request)

    (call,) = completion.tool_calls
    assert call.name in ("double", "halve") if choice == "required" else call.name == "halve"
    assert json.loads(call.arguments)["digit"] in (7, 8)
    assert completion.content == ""


async def test_text_is_free_where_nothing_must_come(runtime: Runtime) -> None:
    completion = await runtime.complete(Request.ask("Solve the following addition: 1 + 1.", tools=TOOLS))

    assert completion.tool_calls == ()
    assert completion.content


@pytest.mark.parametrize(
    ("settings", "parser"),
    [({}, "hermes"), ({"tool_parser": "qwen3_json"}, "qwen3_json"), ({"tool_parser": None}, None)],
)
def test_parser_is_found_or_named(folder: Path, settings: dict[str, Any], parser: str | None) -> None:
    engine = VllmEngine("target", folder, VllmSettings(**settings))

    assert engine.tool_parser == parser
    assert (Capability.TOOLS in engine.capabilities) is (parser is not None)
    assert engine.call_marks == (("<tool_call>",) if parser == "hermes" else ())


def test_parser_without_tools_to_show_is_refused(nano_target: Path) -> None:
    with pytest.raises(ConfigError, match="shows no tools, so that tool_parser 'hermes'"):
        VllmEngine("target", nano_target, VllmSettings(tool_parser="hermes"))


async def test_parser_that_was_found_and_does_not_fit_costs_the_tools_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "chat_template.jinja").write_text("{{ tools }}<｜tool▁calls▁begin｜>")  # no token of this model's
    engine = VllmEngine("target", other)
    assert Capability.TOOLS in engine.capabilities

    def fail(_: VllmEngine) -> None:
        raise RuntimeError("as far as here")

    monkeypatch.setattr(VllmEngine, "_build", fail)
    with pytest.raises(EngineError, match="as far as here"):
        await engine.start()

    assert Capability.TOOLS not in engine.capabilities
    assert "engine target calls no tools: tool parser deepseek_v31: " in caplog.text


async def test_parser_that_vllm_has_not_is_named_at_the_start(folder: Path) -> None:
    with pytest.raises(ConfigError, match="engine 'target': vLLM has no tool parser nonsense"):
        await VllmEngine("target", folder, VllmSettings(tool_parser="nonsense")).start()
