"""What only real vLLM can show: exact accounting against its own count, death and return, and scoring models."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from vllm.platforms import current_platform

from reasonrt.engines.vllm import VllmEngine
from reasonrt.engines.vllm_settings import VllmSettings, engine_arguments
from reasonrt.errors import CapabilityError, EngineError
from reasonrt.runtime import Runtime
from reasonrt.types import Completion, Limits, Message, Request, Sampling

pytestmark = pytest.mark.vllm

QUESTION = "Solve the following multiplication: 29 * 73. Give only the result as your final answer."


@contextmanager
def counted_by_vllm(engine: VllmEngine) -> Iterator[list[int]]:
    """The tokens that the engine's core hands over within the block, of requests that have not been given up."""
    processor = engine._llm.output_processor
    process, counts = processor.process_outputs, list[int]()

    def counting(outputs: list[Any], *arguments: Any, **options: Any) -> Any:
        counts.extend(len(output.new_token_ids) for output in outputs if output.request_id in processor.request_states)
        return process(outputs, *arguments, **options)

    processor.process_outputs = counting
    try:
        yield counts
    finally:
        del processor.process_outputs


@pytest.mark.parametrize(
    ("policy", "options"),
    [("target", {}), ("draft", {}), ("self_consistency", {"k": 5, "temperature": 1.0})],
)
async def test_usage_adds_up_to_vllms_own_count(
    draft_engine: VllmEngine, target_engine: VllmEngine, policy: str, options: dict[str, object]
) -> None:
    engines = {"draft": draft_engine, "target": target_engine}
    requests = [Request.ask(QUESTION.replace("29", str(n)), policy, options=options, seed=n) for n in range(21, 31)]

    with counted_by_vllm(draft_engine) as of_draft, counted_by_vllm(target_engine) as of_target:
        completions = [result async for _, result in Runtime(engines).solve_all(requests, 4)]

    for name, counts in (("draft", of_draft), ("target", of_target)):
        ours = sum(
            result.usage[name].generated
            for result in completions
            if isinstance(result, Completion) and name in result.usage
        )
        assert ours == sum(counts)


async def test_a_request_cut_by_its_deadline_is_counted_exactly_too(target_engine: VllmEngine) -> None:
    runtime = Runtime({"target": target_engine})

    with counted_by_vllm(target_engine) as counts:
        completion = await runtime.complete(Request.ask(QUESTION, limits=Limits(deadline_s=0.15)))

    assert completion.finish_reason == "deadline"
    assert completion.seconds < 0.15 + 0.1 + 0.1  # the deadline, our 100 ms, a step of the engine
    assert completion.usage["target"].generated == sum(counts)


async def test_shared_prefixes_are_read_from_the_cache(target_engine: VllmEngine) -> None:
    prompt = target_engine.tokenizer.chat((Message("user", "Sort these numbers in ascending order: " + "7, " * 40),))
    for _ in range(2):
        stream = target_engine.generate(prompt, Sampling(2))
        deltas = [delta async for delta in stream]

    block = engine_arguments(target_engine.model, target_engine.settings, current_platform.is_cpu())["block_size"]
    assert deltas[0].cached_tokens == (len(prompt) - 1) // block * block  # whole ones, and one token is always computed


async def test_a_dead_engine_fails_its_requests_and_comes_back(nano_draft: Path) -> None:
    known = set(psutil.Process().children(recursive=True))
    engine = await VllmEngine("mortal", nano_draft, VllmSettings(kv_cache_mib=64)).start()
    try:
        prompt = engine.tokenizer.chat((Message("user", QUESTION),))
        streams = [engine.generate(prompt, Sampling(400)) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        for process in set(psutil.Process().children(recursive=True)) - known:
            if "EngineCor" in process.name():
                process.kill()

        async def drain(index: int) -> None:
            async for _ in streams[index]:
                pass

        results = await asyncio.gather(*(drain(index) for index in range(3)), return_exceptions=True)
        completion = await Runtime({"target": engine}).complete(Request.ask(QUESTION))

        assert all(isinstance(result, EngineError) and "died" in str(result) for result in results)
        assert completion.finish_reason == "stop"
        assert engine.restarts == 1
    finally:
        await engine.aclose()
    give_up = time.monotonic() + 30.0  # processes that end on a busy machine take their time
    while left := [process for process in set(psutil.Process().children(recursive=True)) - known if is_alive(process)]:
        assert time.monotonic() < give_up, left
        await asyncio.sleep(0.2)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "VLLM" in process.name()
    except psutil.NoSuchProcess:
        return False


async def test_a_scoring_model_scores_and_nothing_else(nano_draft: Path, tmp_path: Path) -> None:
    import shutil

    import torch
    from transformers import AutoConfig, Qwen3ForSequenceClassification

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(nano_draft, num_labels=1)
    model = Qwen3ForSequenceClassification(config).to(torch.bfloat16).eval()
    model.save_pretrained(tmp_path)
    shutil.copytree(
        nano_draft, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("config.json", "*.safetensors")
    )
    engine = await VllmEngine("reward", tmp_path, VllmSettings(scores=True, kv_cache_mib=64)).start()
    try:
        prompt = engine.tokenizer.chat((Message("user", QUESTION),))
        score = await engine.score(prompt)
        with torch.no_grad():
            logit = model(torch.tensor([prompt])).logits[0, 0]

        assert score == pytest.approx(torch.sigmoid(logit.float()).item(), abs=0.02)
        with pytest.raises(CapabilityError, match="scoring model"):
            engine.generate(prompt, Sampling(1))
    finally:
        await engine.aclose()
