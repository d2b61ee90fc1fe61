"""Block diffusion over HTTP, on an engine with a tiny model of random weights."""

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from reasonrt.config import DiffusionConfig
from reasonrt.engines.build import build_engine
from reasonrt.tasks import cancel
from tests.waiting import wait_until

ASK: Any = [{"role": "user", "content": "What is 3 + 4?"}]
MODEL = "block_diffusion"
NUM_REQUESTS = 32
NUM_PROBES = 400


@pytest.fixture(scope="module")
def served(start: Any, diffusion_folder: Callable[..., Path]) -> Any:
    settings = {"model": str(diffusion_folder()), "own_process": False, "max_model_len": 2048}
    engine = build_engine("diffusion", DiffusionConfig(kind="diffusion", **settings))
    server = start(engines={"diffusion": engine})
    wait_until(lambda: httpx.get(f"{server.url}/ready", timeout=60).status_code == 200)
    return server


def create(server: Any, **fields: Any) -> Any:
    asked: dict[str, Any] = {"model": MODEL, "messages": ASK, "max_tokens": 64}
    return server.openai().chat.completions.create(**asked | fields)


def content(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_it_is_one_of_the_models(served: Any) -> None:
    assert {model.id for model in served.openai().models.list()} == {"auto", MODEL}


def test_answer_counts_passes_and_canvas_positions(served: Any) -> None:
    answer = create(served, model=f"{MODEL}@threshold=0.3", extra_body={"reasonrt": {"trace": True}})

    used = answer.reasonrt["usage"]["diffusion"]
    assert 0 < used["passes"] < used["generated"] == answer.usage.completion_tokens <= 64
    assert used["canvas"] == 8 * used["passes"]
    steps = answer.choices[0].reasonrt["trace"]
    assert len(steps) > 1
    assert {step["author"] for step in steps} == {"diffusion"}
    assert sum(step["tokens"] for step in steps) == used["generated"] - used["discarded"]


def test_stream_appends_what_the_whole_answer_has(served: Any) -> None:
    options = {"include_usage": True}
    whole = create(served)

    chunks = list(create(served, stream=True, stream_options=options))

    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(texts) > 1
    assert "".join(texts) == whole.choices[0].message.content
    assert chunks[-1].reasonrt["usage"]["diffusion"]["passes"] == whole.reasonrt["usage"]["diffusion"]["passes"]


def test_every_choice_is_drawn_by_its_own_seed_again_and_again(served: Any) -> None:
    drawn: dict[str, Any] = {"temperature": 0.9, "seed": 5, "max_tokens": 24}

    first, again = (create(served, n=3, **drawn) for _ in range(2))
    alone = create(served, **drawn)

    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3
    assert alone.choices[0].message.content == texts[0]


@pytest.mark.parametrize("is_stream", [True, False])
def test_stop_text_ends_the_answer_before_it(served: Any, is_stream: bool) -> None:
    whole = create(served).choices[0].message.content
    stop = whole.split()[9]

    answer = create(served, stop=[stop], stream=is_stream)

    chunks = list(answer) if is_stream else [answer]
    text = content(chunks) if is_stream else answer.choices[0].message.content
    assert text == whole.partition(stop)[0].rstrip()
    assert chunks[-1].choices[0].finish_reason == "stop"
    wait_until(lambda: served.runtime.engines["diffusion"].running == 0)


def test_token_limit_ends_the_answer_within_a_block(served: Any) -> None:
    answer = create(served, max_tokens=11)

    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 11


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": f"{MODEL}@blocks=3"}, "unknown option 'blocks'; block_diffusion knows block_length, "),
        ({"model": f"{MODEL}@threshold=2"}, r"threshold must be a number in \[0, 1\], got 2"),
        ({"model": f"{MODEL}@block_length=9"}, "block_length must be at most 8, which the model was trained on, got 9"),
        ({"model": f"{MODEL}@strategy=adaptive"}, "strategy 'adaptive' needs a model that attends to what follows"),
        ({"model": f"{MODEL}@residual_start=reference"}, "needs an engine with a reference model"),
        ({"messages": [{"role": "user", "content": "long " * 5000}]}, "the prompt has 5[0-9]{3} tokens"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    served: Any, fields: dict[str, Any], message: str, is_stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as raised:
        create(served, stream=is_stream, **fields)

    body: Any = raised.value.body
    assert "\n" not in body["message"]


@pytest.mark.parametrize("is_stream", [True, False])
def test_caller_that_leaves_frees_the_engine_within_a_pass(
    served: Any, is_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = served.runtime.engines["diffusion"]
    ask: dict[str, Any] = {"model": f"{MODEL}@threshold=1", "max_tokens": 2000, "stream": is_stream}
    jobs: list[Any] = []
    make = engine.job

    def make_and_keep(*asked: Any) -> Any:
        job, watch = make(*asked)
        jobs.append(job)
        return job, watch

    monkeypatch.setattr(engine, "job", make_and_keep)
    if is_stream:
        stream = create(served, **ask)
        next(iter(stream))
        wait_until(lambda: engine.running == 1)
        stream.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            create(served, **ask, timeout=0.3)

    wait_until(lambda: engine.running == 0)
    assert all(job.passes < 1900 for job in jobs)  # to its end it takes 2000
    assert create(served).choices[0].message.content == create(served).choices[0].message.content


def test_metrics_have_passes_and_canvas_positions(served: Any) -> None:
    def counted() -> dict[str, float]:
        families = text_string_to_metric_families(httpx.get(f"{served.url}/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return {sample.name: sample.value for sample in samples if sample.labels == {"engine": "diffusion"}}

    create(served)
    before = counted()
    used = create(served).reasonrt["usage"]["diffusion"]
    after = counted()

    assert after["reasonrt_passes_total"] - before["reasonrt_passes_total"] == used["passes"]
    assert after["reasonrt_canvas_positions_total"] - before["reasonrt_canvas_positions_total"] == used["canvas"]


@pytest.fixture
def url_of_server(diffusion_folder: Callable[..., Path], tmp_path: Path) -> Iterator[str]:
    """`reasonrt serve --local` with the engine in a process of its own, and a model that takes a while for a pass."""
    folder = diffusion_folder(hidden=256, layers=6, mlp=704, head_dim=64, block_length=32)
    (tmp_path / "reasonrt.yaml").write_text(
        f"engines: {{diffusion: {{kind: diffusion, model: {folder}, max_num_seqs: {NUM_REQUESTS}}}}}\n"
    )
    command = [sys.executable, "-c", "from reasonrt.cli.main import main; main()", "serve", "--local", "--port", "0"]
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    assert server.stdout is not None
    try:
        url = server.stdout.readline().split()[2].rstrip(";")
        wait_until(lambda: httpx.get(f"{url}/ready", timeout=60).status_code == 200, 240)
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)


@pytest.mark.slow  # half a minute
@pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="run it alone: another worker would have the cores")
async def test_health_answers_within_20_ms_while_32_requests_are_decoded(url_of_server: str) -> None:
    body = {"model": f"{MODEL}@threshold=1", "messages": ASK, "max_tokens": 900, "stream": True}
    limits = httpx.Limits(max_connections=2 * NUM_REQUESTS)
    seconds: list[float] = []
    async with httpx.AsyncClient(base_url=url_of_server, timeout=200, limits=limits) as client:
        asked = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for _ in range(NUM_REQUESTS)]
        try:
            await asyncio.sleep(3.0)  # the first passes read the prompts
            for _ in range(NUM_PROBES):
                began = time.perf_counter()
                assert (await client.get("/health")).status_code == 200
                seconds.append(time.perf_counter() - began)
                await asyncio.sleep(0.02)
            assert f"reasonrt_running {NUM_REQUESTS}.0" in (await client.get("/metrics")).text
            assert not any(task.done() for task in asked)
        finally:
            await cancel(*asked)

    assert statistics.quantiles(seconds, n=100)[98] < 0.020
