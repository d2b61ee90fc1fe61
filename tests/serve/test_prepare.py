"""What one HTTP request costs before any engine is asked: one policy, and one chat template for each vocabulary."""

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import httpx
import pytest

from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine
from reasonrt.routers.prompts import LAYOUTS
from reasonrt.types import Message, Request

RULE = {"kind": "upper_threshold", "signal": {"kind": "agreement"}, "threshold": 3}


class CountingTokenizer(CharacterTokenizer):
    """One vocabulary for both engines, which counts how often its template is applied to each conversation."""

    applied: ClassVar = Counter[tuple[Message, ...]]()

    def chat(self, messages: Sequence[Message]) -> list[int]:
        self.applied[tuple(messages)] += 1
        return super().chat(messages)


class CountingEngine(ScriptedEngine):
    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.tokenizer = CountingTokenizer()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("options", [{}, {"stopping": {"rule": RULE}}])
@pytest.mark.parametrize("policy", ["target", "arbitrage", "specreason", "self_consistency"])
def test_one_request_is_prepared_once_and_its_template_applied_once(
    start: Any, monkeypatch: pytest.MonkeyPatch, policy: str, options: dict[str, Any], stream: bool
) -> None:
    if options and policy == "self_consistency":
        pytest.skip("it commits nothing before its end")
    server = start(kind=CountingEngine)
    prepared: list[Request] = []
    prepare = server.runtime.prepare

    def counted(request: Request) -> Any:
        prepared.append(request)
        return prepare(request)

    monkeypatch.setattr(server.runtime, "prepare", counted)
    question = f"How many, {policy} {bool(options)} {stream}?"
    ask = [{"role": "user", "content": question}]
    body = {"model": policy, "messages": ask, "stream": stream, "reasonrt": {"options": options}}

    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=20)

    assert answer.status_code == 200, answer.text
    assert len(prepared) == 1
    assert CountingTokenizer.applied[(Message("user", question),)] == 1


class WatchedTokenizer(CharacterTokenizer):
    """A vocabulary of its own, which notes the threads that it encodes long texts in."""

    threads: ClassVar = list[str]()
    decoding: ClassVar = list[str]()

    def __init__(self, name: str) -> None:
        self.fingerprint = name

    def encode(self, text: str) -> list[int]:
        if len(text) > 32 << 10:
            self.threads.append(threading.current_thread().name)
        return super().encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        if len(token_ids) > 32 << 10:
            self.decoding.append(threading.current_thread().name)
        return super().decode(token_ids)


class WatchedEngine(ScriptedEngine):
    def __init__(self, name: str, *arguments: Any, **settings: Any) -> None:
        super().__init__(name, *arguments, **settings)
        self.tokenizer = WatchedTokenizer(name)


@pytest.fixture(scope="module")
def watched(start: Any) -> Any:
    text = "<think>\nOne.\n\nTwo.\n\n</think>\n\n\\boxed{7}"
    engines = {role: WatchedEngine(role, text) for role in ("draft", "target", "reward")}
    return start(engines=engines, policies={"oracle": {}})


@pytest.mark.parametrize(
    "model",
    [
        "target",
        "draft",
        "auto",
        "arbitrage",
        "specreason",
        "entropy",
        "oracle",
        *(f"rsd@layout={layout}" for layout in LAYOUTS),
        "self_consistency",
        "program_search",
    ],
)
def test_no_long_text_is_tokenized_in_the_event_loop(watched: Any, model: str) -> None:
    """Whatever of a request is read by whichever engine."""
    WatchedTokenizer.threads.clear()
    ask = [{"role": "user", "content": "so long " * 5000}]
    rule = {} if model in ("self_consistency", "program_search") else {"options": {"stopping": {"rule": RULE}}}

    answer = watched.http().post("/v1/chat/completions", json={"model": model, "messages": ask, "reasonrt": rule})

    assert answer.status_code == 200, answer.text
    assert WatchedTokenizer.threads
    assert {name.partition("_")[0] for name in WatchedTokenizer.threads} == {"reading"}


@pytest.mark.parametrize(
    ("prompt", "echo"),
    [("so long " * 5000, True), ([115] * 40_000, False), ([[115] * 40_000] * 2, False)],
    ids=["echo", "ids", "many"],
)
def test_no_long_prompt_is_read_in_the_event_loop(watched: Any, prompt: Any, echo: bool) -> None:
    WatchedTokenizer.threads.clear()
    WatchedTokenizer.decoding.clear()
    body = {"model": "target", "prompt": prompt, "echo": echo, "max_tokens": 1}

    watched.http().post("/v1/completions", json=body)

    names = WatchedTokenizer.threads + ([] if echo else WatchedTokenizer.decoding)
    assert len(names) >= 1 + (not echo)
    assert {name.partition("_")[0] for name in names} == {"reading"}
