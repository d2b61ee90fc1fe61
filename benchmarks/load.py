"""What the serving benchmarks share: servers in processes of their own, a caller that costs little, percentiles."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from reasonrt.engines.orphans import owned_environment

START_S = 240.0


@dataclass
class Answer:
    """One request as its caller saw it; times in seconds since it was sent, of steps those that show some text."""

    status: int = 0
    step_s: list[float] = field(default_factory=list)
    total_s: float = 0.0
    content: str = ""
    reasoning: str = ""
    tokens: int = 0
    error: str = ""


@dataclass
class Server:
    url: str
    process: "subprocess.Popen[bytes]"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def is_ready(self, path: str = "/ready") -> bool:
        try:
            return httpx.get(self.url + path, timeout=2).is_success
        except httpx.HTTPError:
            return False


def config_file(folder: Path, engines: dict[str, Any], **serve: Any) -> Path:
    file = folder / "reasonrt.yaml"
    file.write_text(yaml.safe_dump({"engines": engines, "serve": serve}))
    return file


@contextmanager
def running(
    command: Sequence[str], port: int, ready: str, log: Path, folder: Path | None = None, **environment: str
) -> Iterator[Server]:
    """The server that `command` starts (in `folder`), from when it is ready until the block is left."""
    with log.open("wb") as output:
        # in the session of the benchmark: Linux shares the cores out among sessions first (sched_autogroup), and what
        # is measured side by side must have one share
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | owned_environment() | environment,  # it ends with us, however we end
            cwd=folder,
            process_group=0,
        )
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        give_up = time.monotonic() + START_S
        while not server.is_ready(ready):
            if process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"the server did not start; the end of its log:\n{tail(log)}")
            time.sleep(0.2)
        yield server
        if process.poll() is not None:
            raise SystemExit(f"the server ended by itself, {process.returncode}; the end of its log:\n{tail(log)}")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


def our_server(config: Path, port: int, log: Path, *, is_local: bool, checkout: Path | None = None) -> Any:
    """The endpoint of `checkout`, a folder with reasonrt; None is the one that is installed."""
    command = [sys.executable, "-c", "from reasonrt.cli.main import main; main()", "serve", "--config", str(config)]
    command += ["--port", str(port), *(["--local"] if is_local else [])]
    if checkout is None:
        return running(command, port, "/ready", log)
    return running(command, port, "/ready", log, checkout, PYTHONPATH=str(checkout))


async def ask(port: int, body: dict[str, Any], leave_after_s: float | None = None) -> Answer:
    """Send one chat request; of a stream, note when each step came.

    Args:
        leave_after_s: close the connection then, whatever has come.
    """
    answer, began = Answer(), time.perf_counter()
    try:
        async with asyncio.timeout(leave_after_s):
            await _exchange(port, body, answer, began)
    except TimeoutError:
        answer.error = "left"
    except (OSError, asyncio.IncompleteReadError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.total_s = time.perf_counter() - began
    return answer


async def _exchange(port: int, body: dict[str, Any], answer: Answer, began: float) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    try:
        content = json.dumps(body).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        if not (line := await reader.readline()):
            raise asyncio.IncompleteReadError(b"", None)
        answer.status = int(line.split()[1])
        while (await reader.readline()).strip():
            pass
        if body.get("stream") and answer.status == 200:
            async for event in _events(reader):
                _note(event, answer, time.perf_counter() - began)
        else:
            text = (await reader.read()).decode()
            value = json.loads(text[text.index("{") : text.rindex("}") + 1])
            if answer.status == 200:
                message = value["choices"][0]["message"]
                answer.content, answer.reasoning = message["content"] or "", message.get("reasoning") or ""
                answer.tokens = value["usage"]["completion_tokens"]
            else:
                answer.error = value["error"]["message"]
    finally:
        writer.close()


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    is_done = False
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])
        is_done = is_done or line.startswith(b"data: [DONE]")
    if not is_done:
        raise asyncio.IncompleteReadError(b"", None)


def _note(event: dict[str, Any], answer: Answer, seconds: float) -> None:
    if "error" in event:
        answer.error = event["error"]["message"]
    for choice in event.get("choices", ()):
        delta = choice["delta"]
        content, reasoning = delta.get("content") or "", delta.get("reasoning") or ""
        answer.content += content
        answer.reasoning += reasoning
        if (content or reasoning) and choice["finish_reason"] is None:  # the last chunk is the end, not a step
            answer.step_s.append(seconds)
    answer.tokens = (event.get("usage") or {}).get("completion_tokens", answer.tokens)


async def ask_all(port: int, bodies: Sequence[dict[str, Any]], concurrency: int) -> list[Answer]:
    """All of them, `concurrency` at a time, in order."""
    places = asyncio.Semaphore(concurrency)

    async def one(body: dict[str, Any]) -> Answer:
        async with places:
            return await ask(port, body)

    return await asyncio.gather(*map(one, bodies))


def bodies(num: int, policy: str, *, stream: bool, seed: int = 0) -> list[dict[str, Any]]:
    """Chat requests: problems of the zoo's test split, shuffled."""
    from reasonrt.evals.tasks import load_task

    problems = load_task("zoo", num, "test")
    random.Random(seed).shuffle(problems)
    more = {"stream": stream} | ({"stream_options": {"include_usage": True}} if stream else {})
    return [
        {"model": policy, "messages": [{"role": "user", "content": problem.question}], "temperature": 0} | more
        for problem in problems
    ]


def require_no_error(answers: Sequence[Answer]) -> None:
    """End here if one of them failed: what is measured would not be what is named."""
    if errors := [answer.error for answer in answers if answer.error]:
        raise SystemExit(f"{len(errors)} of {len(answers)} requests failed, the first: {errors[0]}")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))] if ordered else 0.0


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
