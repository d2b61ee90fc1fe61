"""A traced request over HTTP: its events come between the chunks, and in the whole answer beside its steps."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reasonrt.cli.main import app
from reasonrt.engines.scripted import ScriptedEngine, continuing

TEXT = "<think>\nOne.\n\nTwo.\n\nThree.\n\n</think>\n\n\\boxed{7}"
WRONG = "<think>\nOne.\n\n2wo.\n\nThree.\n\n</think>\n\n\\boxed{7}"


def judge(text: str) -> float:
    return 0.0 if "2wo" in text.rstrip("\n").rpartition("\n\n")[2] else 1.0


@pytest.fixture(scope="module")
def speculating(start: Any) -> Any:
    engines = {
        "draft": ScriptedEngine("draft", continuing(WRONG), chunk_tokens=1),
        "target": ScriptedEngine("target", continuing(TEXT)),
        "reward": ScriptedEngine("reward", "", scores=judge),
    }
    return start(engines=engines)


def ask(server: Any, **fields: Any) -> Any:
    body = {"model": "rsd", "messages": [{"role": "user", "content": "?"}], "reasonrt": {"trace": True}}
    answer = server.http().post("/v1/chat/completions", json=body | fields)
    assert answer.status_code == 200
    return answer


def streamed(server: Any, **fields: Any) -> list[Any]:
    lines = ask(server, stream=True, **fields).text.splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    return [choice.get("reasonrt", {}) for chunk in chunks for choice in chunk["choices"]]


def test_a_stream_tells_what_was_thrown_away_before_the_step_in_its_place(speculating: Any) -> None:
    own = streamed(speculating)

    kinds = [next(iter(each)) for each in own if each.keys() & {"step", "event"}]
    assert kinds.index("event") < len(kinds) - 1
    rejected = next(each["event"] for each in own if each.get("event", {}).get("why") == "rejected")
    assert rejected | {"seconds": 0, "mean_logprob": 0} == {
        "kind": "discarded", "why": "rejected", "author": "draft", "text": "2wo.\n\n", "tokens": 5, "kept_tokens": 0,
        "scores": {"advantage": 1.0}, "mean_logprob": 0, "at_tokens": 13, "seconds": 0,
    }  # fmt: skip
    place = kinds.index("event")
    assert own[own.index(next(each for each in own if "event" in each)) - 1]["step"]["author"] == "draft"
    after = [each["step"] for each in own if "step" in each][place]
    assert (after["author"], after["text"]) == ("target", "Two.\n\n")
    assert after["mean_logprob"] < 0


def test_the_whole_answer_has_the_same_events(speculating: Any) -> None:
    whole = ask(speculating).json()["choices"][0]["reasonrt"]
    events = [each["event"] for each in streamed(speculating) if "event" in each]

    def rejected(events: list[Any]) -> list[Any]:
        return [(event["text"], event["at_tokens"]) for event in events if event["why"] == "rejected"]

    assert rejected(whole["events"]) == rejected(events) == [("2wo.\n\n", 13)]
    assert [step["author"] for step in whole["trace"]] == ["draft", "target", "draft", "draft", "draft"]


@pytest.mark.parametrize("stream", [False, True])
def test_without_a_trace_nothing_is_told(speculating: Any, stream: bool) -> None:
    answer = ask(speculating, reasonrt={}, stream=stream)

    assert '"events"' not in answer.text
    assert '"event"' not in answer.text


def test_choices_have_their_own_events(speculating: Any) -> None:
    choices = ask(speculating, n=2).json()["choices"]

    assert len(choices) == 2
    for choice in choices:
        assert [event["text"] for event in choice["reasonrt"]["events"] if event["why"] == "rejected"] == ["2wo.\n\n"]


def test_solve_writes_the_trace_of_a_server(speculating: Any, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    command = ["solve", "?", "--policy", "rsd", "--server", speculating.url, "--trace", str(file)]

    assert CliRunner().invoke(app, command).exit_code == 0

    value = json.loads(file.read_text())
    assert value["schema"] == "reasonrt.trace/1"
    rejected = [event["text"] for event in value["events"] if event.get("why") == "rejected"]
    assert rejected == ["2wo.\n\n"]
    steps = [event for event in value["events"] if event["kind"] == "step"]
    assert [step["author"] for step in steps] == ["draft", "target", "draft", "draft", "draft"]
    assert all(step["mean_logprob"] < 0 for step in steps)
    assert value["usage"]["draft"]["discarded"] >= 5
