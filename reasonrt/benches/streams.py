"""What it costs to serve streams: CPU microseconds of the serving process for each token that its engines generate.

The server is a process of its own, with every layer that a caller of `reasonrt serve --local` meets; what engines
compute in processes of theirs is not counted. Without a configuration its engines are scripted, and write as those of
vLLM do: a pass brings one token to each running generation.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx

from reasonrt.benches.progress import Advance, tell_nobody
from reasonrt.config import load_config, model_folder
from reasonrt.engines.deltas import Deltas
from reasonrt.engines.orphans import owned_environment
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.errors import EngineError
from reasonrt.evals.tasks import load_task
from reasonrt.runtime import Runtime
from reasonrt.serve.backends.local import Worker
from reasonrt.serve.config import load_serve_config
from reasonrt.serve.server import serve
from reasonrt.tasks import cancel
from reasonrt.types import FinishReason, Sampling, TokenDelta

_START_S = 240.0
_PASS_S = 0.005
_STEPS = 20
_STEP = "Then 12 * 7 = 84, and 84 + 9 = 93.\n\n"
_SCRIPT = "<think>\n" + _STEP * _STEPS + "</think>\n\n\\boxed{93}"


async def measure_streams(
    streams: int = 64,
    rounds: int = 3,
    config: Path | None = None,
    policy: str = "target",
    advance: Advance = tell_nobody,
) -> dict[str, float | str]:
    """Measure a row with `cpu_us_per_token`, the median of `rounds`, each of two requests for every stream.

    Args:
        streams: callers that each read a stream concurrently.
        config: of the engines; None is scripted ones.
        policy: that the callers ask for.
        advance: told of each round.

    Raises:
        ConfigError: the configuration cannot be read.
        EngineError: the server did not start, or a request failed.
    """
    if config is not None:
        load_config(config)  # a mistake in it is named here
    questions = [problem.question for problem in load_task("zoo", 2 * streams, "test")]
    costs, rates = list[float](), list[float]()
    with _server(config, streams) as (process, url):
        limits = httpx.Limits(max_connections=streams)
        async with httpx.AsyncClient(base_url=url, timeout=_START_S, limits=limits) as client:
            await _wait(client, process)
            for index in range(rounds + 1):
                places = asyncio.Semaphore(streams)
                asked = questions if index else questions[:streams]  # the first round warms up
                began, cpu_s = time.perf_counter(), _cpu_s(process.pid)
                tokens = sum(await asyncio.gather(*(_read(client, places, policy, question) for question in asked)))
                if index:
                    costs.append(1e6 * (_cpu_s(process.pid) - cpu_s) / tokens)
                    rates.append(tokens / (time.perf_counter() - began))
                advance("rounds", index, rounds)
    return {
        "engine": "scripted" if config is None else str(config),
        "policy": policy,
        "streams": streams,
        "cpu_us_per_token": statistics.median(costs),
        "cpu_us_per_token_max": max(costs),
        "tokens_per_s": statistics.median(rates),
        "requests": len(questions) * rounds,
    }


class PassEngine(ScriptedEngine):
    """A scripted engine of which each pass brings one token to every running generation."""

    def __init__(self, name: str, script: str = _SCRIPT, *, seconds_per_pass: float = _PASS_S) -> None:
        super().__init__(name, script)
        self.tokenizer: Any = HFTokenizer(model_folder("zoo:nano-target"))
        self._ids = [*self.tokenizer.encode(script), min(self.tokenizer.eos_token_ids)]
        self._seconds, self._streams = seconds_per_pass, dict["_PassStream", None]()
        self._passes: asyncio.Task[None] | None = None

    def generate(self, prompt_token_ids: Any, sampling: Sampling, cache_salt: str = "") -> Any:
        deltas = Deltas(self.tokenizer, prompt_token_ids) if sampling.by_step else None
        return _PassStream(self, self._ids[: sampling.max_tokens], sampling, deltas)

    async def aclose(self) -> None:
        await cancel(self._passes)

    def begin(self, stream: "_PassStream") -> None:
        self._streams[stream] = None
        if self._passes is None or self._passes.done():
            self._passes = asyncio.create_task(self._run())

    def end(self, stream: "_PassStream") -> None:
        self._streams.pop(stream, None)

    async def _run(self) -> None:
        while self._streams:
            await asyncio.sleep(self._seconds)
            for stream in list(self._streams):
                stream.write()


class _PassStream:
    """What a pass has written waits here as in vLLM, put together until the reader comes."""

    def __init__(self, engine: PassEngine, ids: list[int], sampling: Sampling, deltas: Deltas | None) -> None:
        self._engine, self._ids, self._sampling, self._deltas = engine, ids, sampling, deltas
        self._ready = asyncio.Event()
        self._given, self._is_begun, self._is_over = 0, False, False
        self.generated_tokens = 0

    @property
    def passes(self) -> int:
        return self.generated_tokens

    def write(self) -> None:
        new = self._ids[self.generated_tokens]
        self.generated_tokens += 1
        is_last = self.generated_tokens == len(self._ids)
        if self._deltas is None or self._deltas.is_due((new,)) or is_last:
            self._ready.set()
        if is_last:
            self._engine.end(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenDelta:
        if self._is_over:
            raise StopAsyncIteration
        if not self._is_begun:
            self._is_begun = True
            self._engine.begin(self)
        await self._ready.wait()
        self._ready.clear()
        ids = tuple(self._ids[self._given : self.generated_tokens])
        self._given = self.generated_tokens
        reason = None
        if self._given == len(self._ids):
            self._is_over = True
            is_end = ids[-1] in self._engine.tokenizer.eos_token_ids
            reason = FinishReason.STOP if is_end else FinishReason.LENGTH
        logprobs = tuple(map(self._engine.logprob, ids)) if self._sampling.logprobs else ()
        return TokenDelta(ids, logprobs, reason)

    async def aclose(self) -> None:
        self._is_over = True
        self._engine.end(self)


def serve_streams(config: str, streams: str) -> None:
    """The other process: serve until a signal comes."""
    settings = load_config(config or None)
    places = {"running": int(streams), "queued": int(streams)}
    serving = load_serve_config({"port": 0, "bounds": places}, {})
    engines = {"target": PassEngine("target"), "draft": PassEngine("draft")}
    runtime = Runtime.of(settings) if config else Runtime(engines)
    serve(Worker(runtime), serving, partial(print, flush=True))


_CHILD = "import sys; from reasonrt.benches.streams import serve_streams; serve_streams(*sys.argv[1:])"


@contextmanager
def _server(config: Path | None, streams: int) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    command = [sys.executable, "-c", _CHILD, str(config or ""), str(streams)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | owned_environment()) as process:
        try:
            if process.stdout is None or not (url := process.stdout.readline().strip()):
                raise EngineError("the server did not start; its messages stand above")
            yield process, url
        finally:
            process.terminate()


async def _wait(client: httpx.AsyncClient, process: "subprocess.Popen[str]") -> None:
    give_up = time.monotonic() + _START_S
    while not (await client.get("/ready")).is_success:
        if process.poll() is not None or time.monotonic() > give_up:
            raise EngineError("the engines did not start; the server's messages stand above")
        await asyncio.sleep(0.1)
    await client.get("/openapi.json")  # a server makes it once, after its start


async def _read(client: httpx.AsyncClient, places: asyncio.Semaphore, policy: str, question: str) -> int:
    """Read a stream to its end, and count its tokens."""
    body = {"model": policy, "messages": [{"role": "user", "content": question}], "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    tokens = 0
    async with places, client.stream("POST", "/v1/chat/completions", json=body) as response:
        if not response.is_success:
            raise EngineError(f"a request was refused: {(await response.aread())[:200].decode(errors='replace')}")
        async for line in response.aiter_lines():
            event = json.loads(line[6:]) if line.startswith("data: {") else {}
            if "error" in event:
                raise EngineError(f"a request failed: {event['error']['message']}")
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    return tokens


def _cpu_s(pid: int) -> float:
    """CPU time of all threads of a process so far, without that of its children."""
    if sys.platform != "linux":
        raise EngineError("the CPU time of another process can only be read on Linux")
    return time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid makes it
