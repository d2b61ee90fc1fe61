"""Engines die, requests go on: nothing is lost, nothing is said twice, and what is told of it is true."""

import asyncio
import random
import re
import signal
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Self

import httpx
import openai
import pytest

from reasonrt import Completion, FinishReason, Limits, Request, Runtime, Step
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import EngineError, RequestError
from reasonrt.serve.backend import Accepted, Worker
from reasonrt.serve.journal import outlive, total_usage
from reasonrt.types import EngineUsage, Event, Sampling

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


def test_whole_answers_survive_too_and_say_so(mortal: Any) -> None:
    answers = []
    caller = threading.Thread(target=lambda: answers.append(mortal.openai().chat.completions.create(**FEW)))
    caller.start()
    for _ in range(3):
        time.sleep(0.06)
        mortal.engines[1].kill()
    caller.join(20)

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

    def kill() -> None:
        while server.working == 0:
            time.sleep(0.001)
        for _ in range(40):
            server.engines[1].kill()
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(openai.InternalServerError, match="engine 'target' died") as whole:
        server.openai().chat.completions.create(**FEW)
    with pytest.raises(openai.APIError, match="engine 'target' died"):
        list(server.openai().chat.completions.create(**FEW, stream=True))
    killer.join()

    assert whole.value.status_code == 503
    assert whole.value.response.headers["retry-after"] == "2"
    assert server.openai().chat.completions.create(**FEW).choices[0].message.content == r"\boxed{7}"


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
    server = start(go_on, engine={"seconds_per_token": 0.01})
    own = {"reasonrt": {"deadline_s": 0.5}}

    began = time.perf_counter()
    choice = server.openai().chat.completions.create(**FEW, extra_body=own).choices[0]

    assert time.perf_counter() - began < 1.5
    assert choice.finish_reason == "length"
    assert choice.reasonrt["finish_reason"] == "deadline"
    assert choice.message.reasoning.startswith("One.\n\nStep 0")


class Slow(ScriptedEngine):
    """Takes a while to start, and to come back."""

    started = 0

    async def start(self) -> Self:
        if self.started == self.life + 1:
            return self
        await asyncio.sleep(1.0)
        self.started = self.life + 1
        return self


async def test_readiness_follows_the_engines() -> None:
    engine = Slow("target", TEXT)
    worker = Worker(Runtime({"target": engine}))
    entering = asyncio.create_task(worker.__aenter__())
    await asyncio.sleep(0.1)
    states = [await worker.is_ready()]
    await entering
    states.append(await worker.is_ready())

    engine.kill()
    give_up = time.monotonic() + 5
    for expected in (False, True):
        while await worker.is_ready() is not expected:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.02)
    await worker.__aexit__()

    assert states == [False, True]
    assert worker.restarts == 1


def test_draining_finishes_what_runs_and_takes_nothing_new(start: Any) -> None:
    server = start(go_on, engine={"seconds_per_token": 0.003}, grace_s=20)
    stream = server.openai().chat.completions.create(**FEW, stream=True)
    text = next(stream).choices[0].delta.content

    server.server.handle_exit(signal.SIGTERM, None)

    with pytest.raises(openai.InternalServerError, match="shutting down") as refused:
        server.openai().chat.completions.create(**FEW)
    assert refused.value.response.headers["retry-after"]
    assert httpx.get(server.url + "/ready").status_code == 503
    assert httpx.get(server.url + "/health").status_code == 200
    text += "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == r"\boxed{7}"
    give_up = time.monotonic() + 5
    while not server.server.should_exit:
        assert time.monotonic() < give_up
        time.sleep(0.05)


class Scenario:
    """A backend that plays: each attempt yields some steps and then fails, hangs or ends."""

    restarts = 0

    def __init__(self, *attempts: tuple[int, str]) -> None:
        self.attempts = list(attempts)
        self.seen: list[Request] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def is_ready(self) -> bool:
        return True

    async def solve(self, request: Request, session: str) -> AsyncGenerator[Accepted | Event, None]:
        self.seen.append(request)
        num_steps, end = self.attempts.pop(0)
        if end == "refuse":
            raise RequestError("no")
        yield Accepted(3, False)
        kept = len(request.committed)
        for index in range(kept, kept + num_steps):
            yield Step(f"{index} ", (1, 2), "target")
        if end == "die":
            raise EngineError("dead")
        if end == "hang":
            await asyncio.sleep(60)
        usage = {"target": EngineUsage(calls=1, generated=2 * num_steps)}
        yield Completion((), FinishReason.STOP, usage, 0.0, {"own": 1})


async def play(backend: Scenario, max_resumes: int = 5, **limits: Any) -> list[Accepted | Event]:
    request = Request.ask("?", limits=Limits(**limits))
    async with aclosing(outlive(backend, request, "", max_resumes, lambda: None)) as events:
        return [event async for event in events]


async def test_journal_yields_each_step_once_and_adds_up_usage() -> None:
    backend = Scenario((2, "die"), (0, "die"), (3, "die"), (1, "end"))

    accepted, *steps, completion = await play(backend)

    assert accepted == Accepted(3, False)
    assert [step.text for step in steps if isinstance(step, Step)] == [f"{index} " for index in range(6)]
    assert isinstance(completion, Completion)
    assert list(completion.steps) == steps
    assert [len(request.committed) for request in backend.seen] == [0, 2, 2, 5]
    assert completion.usage["target"].generated == 12
    assert completion.details == {"own": 1, "resumed": 3}


async def test_journal_gives_up_after_too_many_deaths() -> None:
    with pytest.raises(EngineError, match="dead"):
        await play(Scenario((1, "die"), (1, "die"), (1, "end")), max_resumes=1)


async def test_journal_passes_on_what_is_no_death() -> None:
    with pytest.raises(RequestError, match="no"):
        await play(Scenario((1, "die"), (0, "refuse")))


async def test_journal_ends_at_the_deadline_what_hangs() -> None:
    began = time.perf_counter()
    *_, completion = await play(Scenario((2, "hang")), deadline_s=0.2)

    assert isinstance(completion, Completion)
    assert completion.finish_reason is FinishReason.DEADLINE
    assert len(completion.steps) == 2
    assert time.perf_counter() - began < 4
    assert completion.usage["target"].generated == 4


async def test_journal_leaves_later_attempts_less_time() -> None:
    backend = Scenario((1, "die"), (1, "end"))

    await play(backend, deadline_s=5.0)

    first, second = (request.limits.deadline_s for request in backend.seen)
    assert first is not None
    assert second is not None
    assert second < first <= 5.0


def test_usage_of_attempts_is_added_engine_by_engine() -> None:
    a, b = EngineUsage(1, 2, 3, 4, 5, 6), EngineUsage(10, 20, 30, 40, 50, 60)

    assert total_usage([{"x": a}, {}, {"x": b, "y": b}]) == {"x": EngineUsage(11, 22, 33, 44, 55, 66), "y": b}
