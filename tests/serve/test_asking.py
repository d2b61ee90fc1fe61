"""`reasonrt solve --server`: what a running server answers, as its own runtime would have told it."""

import socket
import threading
from contextlib import suppress
from typing import Any

import pytest
from typer.testing import CliRunner

from reasonrt import Completion, Request, Runtime, Step
from reasonrt.cli.asking import KEY_VARIABLE, ask_server
from reasonrt.cli.main import app
from reasonrt.engines.scripted import CharacterTokenizer, ScriptedEngine
from reasonrt.errors import EngineError, RequestError
from reasonrt.types import FinishReason

ASK = {"messages": [{"role": "user", "content": "?"}], "reasonrt": {"trace": True}}


def _ask(server: Any, **more: Any) -> tuple[Completion, list[Step]]:
    steps: list[Step] = []
    return ask_server(server.url, {**ASK, "model": "target", **more}, steps.append), steps


@pytest.mark.parametrize("opens", [False, True])
async def test_the_answer_is_that_of_the_runtime(
    start: Any, opening_tokenizer: CharacterTokenizer, opens: bool
) -> None:
    def engine(name: str, script: str) -> ScriptedEngine:
        made = ScriptedEngine(name, script)
        if opens:
            made.tokenizer = opening_tokenizer
        return made

    script = "One.\n\n</think>\n\n\\boxed{7}" if opens else "<think>\nOne.\n\n</think>\n\n\\boxed{7}"
    asked, steps = _ask(start(script, kind=engine))
    own = await Runtime({"target": engine("target", script)}).complete(Request.ask("?"))

    assert [(step.text, step.author) for step in steps] == [(step.text, step.author) for step in own.steps]
    assert tuple(steps) == asked.steps
    assert (asked.content, asked.reasoning, asked.answer) == (own.content, own.reasoning, "7")
    assert asked.usage.keys() == own.usage.keys()
    assert asked.generated_tokens == own.generated_tokens


def test_a_limit_is_told(running: Any) -> None:
    asked, _ = _ask(running, max_tokens=8)

    assert asked.finish_reason is FinishReason.LENGTH


def test_what_did_not_take_place_is_told(running: Any) -> None:
    asked, _ = _ask(running, model="arbitrage")

    assert "calibrate router" in asked.warnings["speculation"]


def test_refusals_are_the_servers_words(running: Any) -> None:
    with pytest.raises(RequestError, match="there is no model 'magic'"):
        _ask(running, model="magic")


def test_a_key_is_read_from_the_environment(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(api_keys={"ada": "a" * 20})
    with pytest.raises(RequestError, match=f"; set {KEY_VARIABLE}"):
        _ask(server)

    monkeypatch.setenv(KEY_VARIABLE, "a" * 20)

    assert _ask(server)[0].answer == "7"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "ftp://x", "nothing"])
def test_a_server_that_is_not_there_is_named(url: str) -> None:
    with pytest.raises((EngineError, RequestError), match=url):
        ask_server(url, ASK, print)


def test_the_command_starts_nothing(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reasonrt.runtime.Runtime.of", None)

    done = CliRunner().invoke(app, ["solve", "?", "--server", running.url, "--json", "-"], catch_exceptions=False)

    assert '"author": "target"' in done.stdout
    assert "\\boxed{7}" in done.stderr


ANSWERS = {
    "deep": b"data: " + b"[" * 100_000 + b"\n",
    "no choices": b"data: {}\n",
    "a list": b"data: [1]\n",
    "choices of text": b'data: {"choices": ["x"]}\n',
    "an infinite usage": b'data: {"choices": [], "reasonrt": {"usage": {"target": {"generated": 1e400}}}}\n',
    "a usage of another kind": b'data: {"choices": [], "reasonrt": {"usage": {"target": {"much": 1}}}}\n',
    "a long number": b'data: {"choices": [], "usage": ' + b"9" * 5000 + b"}\n",
    "a step that is none": b'data: {"choices": [{"delta": {}, "reasonrt": {"step": 7}}]}\n',
    "an error without end": b'data: {"error": {"message": "' + b"x" * 900_000 + b'"}}\n',
    "escapes": b'data: {"error": {"message": "\\u001b[2J"}}\n',
    "nothing": b"",
    "a line without end": b"data: " + b"x" * (17 << 20),
}


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("answer", ANSWERS)
def test_answer_that_is_not_what_it_says_is_one_line(answer: str, status: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.recv(1 << 16)
                connection.sendall(f"HTTP/1.1 {status} X\r\nConnection: close\r\n\r\n".encode() + ANSWERS[answer])

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://ada:sesame@127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises((EngineError, RequestError)) as caught:
            ask_server(url, ASK, print)
        thread.join(10)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    assert "sesame" not in str(caught.value)
