"""A block that is watched while it fills up: what is expected at each place, and that it is what is written there."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reasonrt import Limits, Request, Runtime
from reasonrt.config import DiffusionConfig
from reasonrt.diffusion.batcher import Batcher
from reasonrt.diffusion.canvas import Canvas
from reasonrt.diffusion.decoding import read_decoding
from reasonrt.diffusion.job import Job
from reasonrt.diffusion.sampling import Drawing
from reasonrt.diffusion.writers import Task
from reasonrt.engines.build import build_engine

PROMPT = (5, 6, 7)


@pytest.mark.parametrize("context", ["block", "causal"])
def test_what_was_expected_last_is_what_is_written(tiny_model: Any, generate: Any, context: str) -> None:
    model = tiny_model(context=context)
    canvas = Canvas(len(PROMPT))
    decoding = read_decoding({"strategy": "threshold", "threshold": 0.5, "residual": False}, model.shape)
    job = Job(Task(PROMPT, 24, frozenset()), decoding, Drawing(), lambda job, settled: None, watch=canvas)

    [written] = generate(Batcher(model, 1, 64), [job])

    passes = canvas.take()
    expected = {place: token for masked in passes for place, token, _ in masked}
    assert [expected[place] for place in range(24)] == list(written.tokens)
    assert all(0 < probability <= 1 for masked in passes for *_, probability in masked)
    assert canvas.take() == ()


async def test_a_traced_request_tells_how_its_blocks_fill_up(diffusion_folder: Callable[..., Path]) -> None:
    config = DiffusionConfig(kind="diffusion", model=str(diffusion_folder()), own_process=False, max_model_len=512)
    told: list[Any] = []
    async with Runtime({"diffusion": build_engine("diffusion", config)}) as runtime:
        request = Request.ask("?", "block_diffusion", limits=Limits(max_tokens=24), trace=True, report=told.append)
        traced = await runtime.complete(request)
        plain = await runtime.complete(replace(request, trace=False))

    assert traced.text == plain.text
    assert {event["kind"] for event in told} == {"canvas"}
    assert "".join(text for event in told for text in event["texts"]).startswith(traced.text)
    assert [event["at_tokens"] for event in told][:1] == [0]
    places = {place for event in told for masked in event["passes"] for place, _, _ in masked}
    assert places >= set(range(24))
