"""Program search on a real engine: what a deadline leaves behind."""

import json
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from reasonrt import FinishReason, Limits, Request, Runtime
from reasonrt.engines.vllm import VllmEngine
from reasonrt.engines.vllm_settings import VllmSettings

pytestmark = pytest.mark.vllm
WINDOW = 8192


@pytest.fixture(scope="module")
async def wide_engine(nano_target: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    """nano-target with a window that holds the prompt: what it writes there is no program."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    shutil.copytree(nano_target, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": WINDOW}))
    engine = await VllmEngine("target", folder, VllmSettings(max_model_len=WINDOW)).start()
    yield engine
    await engine.aclose()


async def test_a_deadline_ends_every_generation_in_the_engine(wide_engine: VllmEngine) -> None:
    """Acceptance test (g) of program search: it returns at its deadline, and requests are aborted in vLLM."""
    options = {"direct": "never", "turn_tokens": 4096, "max_turns": 64, "trace": True, "strategy": "srlm", "k": 8}
    request = Request.ask(
        "Which?", "program_search", context="a text\n" * 5000, options=options, limits=Limits(deadline_s=5.0), seed=1
    )
    runtime = Runtime({"target": wide_engine})
    await runtime.complete(Request.ask("1 + 1 =", limits=Limits(max_tokens=4)))  # the first one compiles

    began = time.perf_counter()
    completion = await runtime.complete(request)

    assert time.perf_counter() - began < 15
    assert completion.finish_reason is FinishReason.DEADLINE
    assert completion.details["status"] == "deadline"
    assert completion.usage["target"].generated > 0
    assert not wide_engine._llm.output_processor.request_states
    await runtime.tools["sandbox"].aclose()
