"""`solve --trace` writes what happened, and `reasonrt trace` shows it to this machine alone."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from reasonrt.cli.main import app
from reasonrt.cli.trace import trace_server
from reasonrt.engines.scripted import ScriptedEngine, continuing

TEXT = "<think>\nOne.\n\nTwo.\n\n</think>\n\n\\boxed{7}"
WRONG = "<think>\nOne.\n\n2wo.\n\n</think>\n\n\\boxed{7}"


def judge(text: str) -> float:
    return 0.0 if "2wo" in text.rstrip("\n").rpartition("\n\n")[2] else 1.0


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = {
        "draft": ScriptedEngine("draft", continuing(WRONG)),
        "target": ScriptedEngine("target", continuing(TEXT)),
        "reward": ScriptedEngine("reward", "", scores=judge),
    }
    monkeypatch.setattr("reasonrt.engines.build.build_engines", lambda config, roles=None: engines)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_solve_writes_what_happened(scripted: None, tmp_path: Path) -> None:
    done = run("solve", "What?", "--policy", "rsd", "--trace", str(tmp_path / "trace.json"))

    assert done.exit_code == 0, done.output
    value = json.loads((tmp_path / "trace.json").read_text())
    assert (value["schema"], value["question"], value["policy"]) == ("reasonrt.trace/1", "What?", "rsd")
    steps = [event for event in value["events"] if event["kind"] == "step"]
    assert [step["author"] for step in steps] == ["draft", "target", "draft", "draft"]
    assert all(step["mean_logprob"] < 0 for step in steps)
    assert [step["seconds"] for step in steps] == sorted(step["seconds"] for step in steps)
    (rejected,) = [event for event in value["events"] if event.get("why") == "rejected"]
    assert (rejected["text"], rejected["at_tokens"]) == ("2wo.\n\n", steps[0]["tokens"])
    lost = sum(event["tokens"] for event in value["events"] if event["kind"] == "discarded")
    assert value["usage"]["draft"]["discarded"] == lost
    assert value["answer"] == "\\boxed{7}"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    file = tmp_path / "trace.json"
    file.write_text(json.dumps({"schema": "reasonrt.trace/1", "question": "What?", "events": []}))
    return file


@pytest.fixture
def address(written: Path) -> Iterator[str]:
    with trace_server(written.read_bytes()) as (server, address):
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield address
        server.shutdown()
        serving.join()


def test_the_page_and_the_trace_are_served_to_who_knows_the_address(written: Path, address: str) -> None:
    url, _, secret = address.partition("#")

    page, trace = httpx.get(url), httpx.get(f"{url}trace/{secret}")

    assert "<title>reasonrt</title>" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert trace.text == written.read_text()
    assert httpx.get(f"{url}page/main.js").status_code == 200
    for path in ("trace/", "trace/x", "page/../trace.py", "v1/models"):
        assert httpx.get(url + path).status_code == 404
    for path in ("", f"trace/{secret}"):  # a page elsewhere that leads its own name to this machine
        assert httpx.get(url + path, headers={"host": "elsewhere.example:80"}).status_code == 404


@pytest.mark.parametrize("flag", ["--open", "--no-open"])
def test_the_command_prints_the_address_and_opens_it(written: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)

    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", interrupted)
    done = run("trace", str(written), flag)

    assert done.exit_code == 0
    (printed,) = re.findall(r"is shown on (http://127\.0\.0\.1:\d+/#[\w-]{22}); Ctrl-C ends it", done.stdout)
    for thread in threading.enumerate():
        if thread.name == "opens the page":
            thread.join()
    assert opened == ([printed] if flag == "--open" else [])


def test_a_port_that_is_taken_is_named(written: Path, address: str) -> None:
    port = httpx.URL(address).port

    done = run("trace", str(written), "--no-open", "--port", str(port))

    assert f"cannot listen on port {port}: " in str(done.exception)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": 3}', '{"schema": "other/1"}'])
def test_what_is_no_trace_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)

    done = run("trace", str(file), "--no-open")

    assert "x.json is no trace" in str(done.exception)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "No such file" in str(run("trace", str(tmp_path / "none.json")).exception)
