"""Engines die, requests go on: nothing is lost, nothing is said twice, and what is told of it is true."""

import asyncio
import json
import random
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any, Self

import httpx
import openai
import pytest

from reasonrt import Runtime
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.engines.vllm import VllmEngine
from reasonrt.errors import EngineError
from reasonrt.serve.backends import local
from reasonrt.serve.backends.local import Worker
from reasonrt.serve.wire.errors import ABSENT, ApiError
from reasonrt.types import Completion, Request, Sampling
from tests.waiting import wait_until

STEPS = ["<think>\nOne.\n\n", *(f"Step {index} of it.\n\n" for index in range(20)), "</think>\n\n", r"\boxed{7}"]
TEXT = "".join(STEPS)
ASK: Any = [{"role": "user", "content": "?"}]
ENGINE = {"seconds_per_token": 0.0005}
FEW = {"model": "target", "messages": ASK}


def go_on(prompt: str, sampling: Sampling) -> str:
    """What is missing of the text."""
    return TEXT.removeprefix(prompt.rpartition("[assistant] ")[2])


@pytest.fixture(scope="module")
def mortal(start: Any) -> Any:
    return start(go_on, engine=ENGINE, max_resumes=50)


@pytest.mark.parametrize("policy", ["target", "draft", "arbitrage", "self_consistency"])
@pytest.mark.parametrize("seed", range(4))
def test_stream_goes_on_after_deaths_without_repeating_text(mortal: Any, policy: str, seed: int) -> None:
    dice = random.Random(seed)
    client = mortal.openai()
    deaths = {1, 3, 4, 9}
    reasoning = content = ""
    chunks = []

    for chunk in client.chat.completions.create(model=policy, messages=ASK, stream=True, extra_body=TRACE):
        chunks.append(chunk)
        reasoning += getattr(chunk.choices[0].delta, "reasoning", None) or ""
        content += chunk.choices[0].delta.content or ""
        if len(chunks) in deaths:
            dice.choice(mortal.engines).kill()

    assert reasoning == TEXT.partition("</think>")[0].removeprefix("<think>").strip()
    assert content == r"\boxed{7}"
    owns = [getattr(chunk.choices[0], "reasonrt", None) or {} for chunk in chunks]
    assert "".join(own["step"]["text"] for own in owns if "step" in own) == TEXT
    assert mortal.working == 0


TRACE = {"reasonrt": {"trace": True}}


def kill_as_it_writes(engine: Any) -> None:
    before = engine.generated_tokens
    wait_until(lambda: engine.running and engine.generated_tokens > before)
    engine.kill()


def test_whole_answers_survive_too_and_say_so(mortal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    client, engine = mortal.openai(), mortal.engines[1]
    caller = threading.Thread(target=lambda: answers.append(client.chat.completions.create(**FEW)))
    with monkeypatch.context() as slowly:
        slowly.setattr(engine, "seconds_per_token", 0.02)
        caller.start()
        for _ in range(3):
            kill_as_it_writes(engine)
    caller.join(60)

    (answer,) = answers
    own = answer.choices[0].reasonrt
    assert answer.choices[0].message.content == r"\boxed{7}"
    assert own["details"]["resumed"] >= 1
    assert answer.usage.completion_tokens >= len(TEXT) - TEXT.count("\n\n")
    resumed = re.search(r"reasonrt_resumed_requests_total (\d+)", httpx.get(mortal.url + "/metrics").text)
    assert resumed is not None
    assert int(resumed[1]) >= own["details"]["resumed"]


def test_more_deaths_than_allowed_are_an_error_of_the_right_kind(start: Any) -> None:
    server = start(go_on, engine={"seconds_per_token": 0.01}, max_resumes=1)
    are_told = threading.Event()

    def kill() -> None:
        while not are_told.wait(0.02):
            server.engines[1].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(openai.InternalServerError, match=r"an engine failed; .* under this request's id") as whole:
            server.openai().chat.completions.create(**FEW)
        with pytest.raises(openai.APIError, match=r"an engine failed; .* under this request's id"):
            list(server.openai().chat.completions.create(**FEW, stream=True))
    finally:
        are_told.set()
        killer.join()

    assert whole.value.status_code == 503
    assert whole.value.response.headers["retry-after"] == "2"
    assert server.openai().chat.completions.create(**FEW).choices[0].message.content == r"\boxed{7}"


@pytest.mark.parametrize("policy", ["target", "arbitrage"])
def test_engine_that_hangs_is_replaced_and_its_requests_are_resumed(hanging: Any, policy: str) -> None:
    client, engine = hanging.openai(), hanging.engines[1]
    reasoning, content, life = "", "", engine.life

    for index, chunk in enumerate(client.chat.completions.create(model=policy, messages=ASK, stream=True)):
        reasoning += getattr(chunk.choices[0].delta, "reasoning", None) or ""
        content += chunk.choices[0].delta.content or ""
        if index in (2, 9):
            engine.hang()

    assert reasoning == TEXT.partition("</think>")[0].removeprefix("<think>").strip()
    assert content == r"\boxed{7}"
    assert engine.life == life + 2


def test_engine_that_works_is_left_alone_however_long_it_takes(hanging: Any) -> None:
    life = hanging.engines[1].life

    hanging.openai().chat.completions.create(**FEW, max_tokens=80)

    assert hanging.engines[1].life == life


@pytest.fixture(scope="module")
def hanging(start: Any) -> Any:
    """A server that waits 0.2 s for an engine that hangs."""
    return start(go_on, engine={"seconds_per_token": 0.01}, bounds={"engine_silence_s": 0.2})


class Broken(ScriptedEngine):
    """Fails with what nobody foresaw, after one step."""

    async def work(self, num_tokens: int, life: int) -> None:
        await super().work(num_tokens, life)
        if self.generated_tokens > 20:
            raise ZeroDivisionError("a secret of the house")


def test_unforeseen_errors_are_told_without_their_text(start: Any) -> None:
    client = start(go_on, kind=Broken).openai()

    with pytest.raises(openai.APIError, match="its log has the cause under this request's id"):
        list(client.chat.completions.create(**FEW, stream=True))
    with pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(**FEW)

    assert "secret" not in str(raised.value)
    assert raised.value.status_code == 500


def test_silent_stream_is_kept_alive_by_comments(start: Any) -> None:
    server = start("a b c d e f g\n\nend", engine={"seconds_per_token": 0.05}, keep_alive_s=0.05)

    with server.http().stream("POST", "/v1/chat/completions", json=FEW | {"stream": True}) as answer:
        lines = list(answer.iter_lines())

    assert lines.count(": keep-alive") >= 5
    assert lines[-2:] == ["data: [DONE]", ""]


def test_deadline_ends_with_what_is_committed(start: Any) -> None:
    server = start("<think>\n" + "So on.\n\n" * 2000, engine={"seconds_per_token": 0.01})
    own = {"reasonrt": {"deadline_s": 3}}

    began = time.perf_counter()
    choice = server.openai().chat.completions.create(**FEW, max_tokens=20_000, extra_body=own).choices[0]

    assert time.perf_counter() - began < 40  # the whole text takes 140 s
    assert choice.finish_reason == "length"
    assert choice.reasonrt["finish_reason"] == "deadline"
    assert choice.message.reasoning.startswith("So on.\n\nSo on.")


class Held(ScriptedEngine):
    """Starts, and comes back, when it may."""

    def __init__(self, name: str, script: str) -> None:
        super().__init__(name, script)
        self.may_start = asyncio.Event()
        self.started = 0

    async def start(self) -> Self:
        if self.started == self.life + 1:
            return self
        await self.may_start.wait()
        self.started = self.life + 1
        return self


@pytest.mark.parametrize("fault", ["kill", "hang"])
async def test_readiness_follows_the_engines(fault: str) -> None:
    engine = Held("target", TEXT)
    worker = Worker(Runtime({"target": engine}), engine_silence_s=0.2)
    entering = asyncio.create_task(worker.__aenter__())
    await asyncio.sleep(0.1)
    states = [worker.ready]
    engine.may_start.set()
    await entering
    states.append(worker.ready)

    engine.may_start.clear()
    getattr(engine, fault)()
    give_up = time.monotonic() + 60
    while worker.ready or not worker.restarts:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)
    engine.may_start.set()
    while not worker.ready:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)
    await worker.__aexit__()

    assert states == [0, 1]
    assert worker.restarts == 1


async def test_who_can_go_elsewhere_does_not_wait_for_an_engine() -> None:
    engine = Held("target", TEXT)
    engine.may_start.set()
    async with Worker(Runtime({"target": engine})) as worker:
        engine.may_start.clear()
        engine.kill()
        give_up = time.monotonic() + 60
        while worker.ready:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.02)

        prepared = worker.runtime.prepare(Request.ask("?"))
        with pytest.raises(ApiError) as raised:
            await anext(worker.solve(prepared, is_patient=False))
        engine.may_start.set()
        *_, completion = [event async for event in worker.solve(prepared)]

    assert raised.value.code == ABSENT
    assert isinstance(completion, Completion)


class Sick(ScriptedEngine):
    """Cannot start for a reason that nobody foresaw."""

    is_sick = False

    async def start(self) -> Self:
        if self.is_sick:
            raise ZeroDivisionError
        return self


async def test_watch_outlives_what_nobody_foresaw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_LOOK_S", 0.01)
    engine = Sick("target", TEXT)
    async with Worker(Runtime({"target": engine})) as worker:
        for is_sick in (True, False, True):
            worker.check_health()
            engine.is_sick = is_sick
            give_up = time.monotonic() + 60
            while worker.ready == is_sick:
                assert time.monotonic() < give_up
                await asyncio.sleep(0.01)
        monkeypatch.setattr(local, "_LOST_S", 0.1)
        await asyncio.sleep(0.2)

        with pytest.raises(EngineError, match="engine 'target' has been absent for more than"):
            worker.check_health()


class Core:
    """Of an engine, without vLLM."""

    errored = False
    output_handler = None
    is_ended = False

    def shutdown(self) -> None:
        self.is_ended = True


async def test_start_of_an_engine_outlives_who_asked_for_it(nano_draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores: list[Core] = []
    may_be_built = threading.Event()

    def build(engine: VllmEngine) -> Core:
        cores.append(Core())
        assert may_be_built.wait(60)
        return cores[-1]

    async def warm_up(engine: VllmEngine) -> None:
        await asyncio.sleep(0.05)

    monkeypatch.setattr(VllmEngine, "_build", build)
    monkeypatch.setattr(VllmEngine, "_warm_up", warm_up)
    engine = VllmEngine("target", nano_draft)

    for _ in range(2):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.start(), 0.05)
    may_be_built.set()
    await engine.start()
    cores[0].errored = True
    may_be_built.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine.start(), 0.05)
    await asyncio.to_thread(wait_until, lambda: len(cores) == 2)
    closing = asyncio.create_task(engine.aclose())
    await asyncio.sleep(0.05)
    assert not closing.done()  # it waits for the start
    may_be_built.set()
    await closing

    assert engine.restarts == 1
    assert [core.is_ended for core in cores] == [True, True]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_draining_finishes_what_runs_and_takes_nothing_new(start: Any, sign: signal.Signals) -> None:
    server = start(go_on, engine={"seconds_per_token": 0.2}, grace_s=60)
    client = server.openai()
    stream = client.chat.completions.create(**FEW, stream=True)
    text = next(stream).choices[0].delta.content

    server.server.handle_exit(sign, None)

    with pytest.raises(openai.InternalServerError, match="shutting down") as refused:
        client.chat.completions.create(**FEW)
    assert refused.value.response.headers["retry-after"]
    assert httpx.get(server.url + "/ready", timeout=60).status_code == 503
    assert httpx.get(server.url + "/health", timeout=60).status_code == 200
    server.engines[1].seconds_per_token = 0.0  # else it would take a minute
    text += "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == r"\boxed{7}"
    wait_until(lambda: server.server.should_exit)


@pytest.mark.parametrize("end", ["the grace is over", "it is told again"])
def test_work_beyond_the_grace_is_cut_off_in_our_format(start: Any, end: str, caplog: pytest.LogCaptureFixture) -> None:
    server = start(
        go_on, engine={"seconds_per_token": 0.1}, grace_s=0.3 if "over" in end else 60, bounds={"running": 3}
    )
    answers: list[httpx.Response] = []

    def ask(is_stream: bool) -> None:
        url = server.url + "/v1/chat/completions"
        answers.append(httpx.post(url, json=FEW | {"stream": is_stream}, timeout=60))

    callers = [threading.Thread(target=ask, args=(index % 2 == 0,)) for index in range(5)]  # two of them wait
    for caller in callers:
        caller.start()
    wait_until(lambda: server.working == 3 and server.server.gateway.admission.queued == 2)
    time.sleep(0.3)

    server.server.handle_exit(signal.SIGTERM, None)
    if "again" in end:
        server.server.handle_exit(signal.SIGTERM, None)
    for caller in callers:
        caller.join(60)

    streams = [answer.text for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert streams
    assert len(streams) + len(refused) == 5
    for text in streams:
        *_, last, done, end_of_text = text.split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
        assert (done, end_of_text) == ("data: [DONE]", "")
    for answer in refused:
        assert answer.json()["error"]["code"] == "draining"
        assert answer.headers["retry-after"]
    assert [record.message for record in caplog.records if "cut off" in record.message] == [
        f"5 requests ran beyond the grace of {0.3 if 'over' in end else 60:g} s and were cut off"
    ]
    wait_until(lambda: not server.working and server.server.should_exit)
