"""What a person expects of every command line: a version, completion, lists, and JSON on standard output."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import pytest
from typer.testing import CliRunner

from reasonrt.cli import common, doctor
from reasonrt.cli.common import complete_model, complete_policy, complete_task
from reasonrt.cli.main import app
from reasonrt.config import ZOO_FOLDER, Config
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import ConfigError
from reasonrt.policies.registry import policy_names
from reasonrt.runtime import Runtime


def _run(*arguments: str) -> tuple[str, str]:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"}, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout, done.stderr


def test_the_version_is_printed() -> None:
    assert _run("--version") == (f"reasonrt {version('reasonrt')}\n", "")


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "reasonrt", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"reasonrt {version('reasonrt')}\n"


def test_names_are_completed() -> None:
    assert {"arbitrage", "target"} <= set(complete_policy(""))
    assert complete_policy("arb") == ["arbitrage"]
    assert "zoo" in complete_task("z")
    assert "nano-draft" in complete_model("nano-")


def test_policies_are_listed_with_what_is_missing_here(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("engines: {draft: {model: 'zoo:nano-draft'}}")

    out, _ = _run("policies", "--config", str(file), "--json", "-")

    rows = {row["policy"]: row for row in json.loads(out)["policies"]}
    assert list(rows) == policy_names()
    assert rows["draft"]["is_here"]
    assert rows["arbitrage"]["missing"] == "no engine 'target'"
    assert rows["self_consistency"]["options"]["k"] == 5


def test_json_on_standard_output_is_alone_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert json.loads(_run("config", "show", "--json", "-")[0])["concurrency"]

    out, error = _run("zoo", "list", "--json", "-")

    assert {"nano-draft"} <= {model["name"] for model in json.loads(out)["models"]}
    assert "nano-draft" in error
    assert not list(tmp_path.iterdir())
    assert "nano-draft" in _run("zoo", "list")[0]


def test_an_engine_that_no_one_has_configured_is_named_beside_those_that_are() -> None:
    config = Config.model_validate({"engines": {"draft": {"kind": "vllm", "model": "zoo:nano-draft"}}})

    with pytest.raises(ConfigError, match="no engine has the role 'target'; there are draft: add it"):
        Runtime.of(config, policies=[("arbitrage", {})])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("policies: {arbitrage: {router_file: no-such.json}}", "no-such.json"),
        ("policies: {arbitrage: {stopping: {certificate: no-such.json}}}", "no-such.json"),
        ("policies: {arbitrage: {no_such: 1}}", "unknown option 'no_such'"),
        ("serve: {efforts: {high: {policy: arbitrage, options: {router_file: no-such.json}}}}", "no-such.json"),
        ("engines: {target: {model: 'zoo:nano-target', speculative: {model: no-such}}}", "no model folder no-such"),
        ("engines: {target: {model: 'zoo:nano-target', tool_parser: hermes}}", "shows no tools"),
        ("engines: {target: {kind: remote, base_url: 'http://x', model: m, tokenizer: no-such}}", "no-such"),
    ],
)
def test_doctor_opens_every_file_that_the_configuration_names(tmp_path: Path, lines: str, expected: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(lines)

    done = CliRunner().invoke(app, ["doctor", "--config", str(file), "--json", "-"])

    problems = [found["way_out"] for found in json.loads(done.stdout)["findings"] if found["status"] == "problem"]
    assert done.exit_code == 1
    assert any(expected in problem for problem in problems), problems


@pytest.mark.parametrize(("key", "parser"), [("", "mistral"), (", tool_parser: hermes", "hermes")])
def test_doctor_names_the_parser_of_calls(tmp_path: Path, key: str, parser: str) -> None:
    model, file = shutil.copytree(ZOO_FOLDER / "nano-draft", tmp_path / "model"), tmp_path / "x.yaml"
    (model / "chat_template.jinja").write_text("{{ tools }}[TOOL_CALLS]")
    file.write_text(f"engines: {{target: {{model: {model}{key}}}}}")

    findings = json.loads(_run("doctor", "--config", str(file), "--json", "-")[0])["findings"]

    (value,) = [found["value"] for found in findings if found["subject"] == "engine target"]
    assert value == f"{model}, 1024 tokens, tool parser {parser}"


class _Server(BaseHTTPRequestHandler):
    """Gives text alone, and holds it to an expression."""

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "m", "max_model_len": 512}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._answer({"choices": [{"text": body.get("regex", "2")}]})

    def _answer(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name there)
        pass


def test_doctor_asks_a_server_what_it_cannot_do(tmp_path: Path, tokenizer_folder: Path) -> None:
    def found() -> dict[str, str]:
        findings = json.loads(_run("doctor", "--config", str(file), "--json", "-")[0])["findings"]
        (one,) = [found for found in findings if found["subject"] == "engine target"]
        return dict(one)

    file = tmp_path / "x.yaml"
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        file.write_text(
            f"engines: {{target: {{kind: remote, base_url: '{url}', model: m, tokenizer: {tokenizer_folder}}}}}"
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asked = found()
        server.shutdown()
    gone = found()

    assert (asked["value"], asked["status"]) == ("m on another server", "note")
    assert asked["way_out"] == (
        "takes no n: samples are asked for one by one; gives text alone, which is tokenized again; may ignore "
        "cache_salt: callers then share its prefix cache; gives no log-probabilities; holds no text to json, "
        "json_object, choice, grammar, structural_tag; no tools: no parser is named, or found from the chat template"
    )
    assert gone["status"] == "note"
    assert gone["way_out"].startswith(f"what it can do is not known: nothing answers at {url}")


def test_a_start_without_a_terminal_is_told_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    class Slow(ScriptedEngine):
        async def start(self) -> Self:
            async with asyncio.timeout(60):
                while len(told) < 2:
                    await asyncio.sleep(0.01)
                    told.extend(capsys.readouterr().err.splitlines())
            return self

    monkeypatch.setattr(common, "_TELL_S", 0.02)
    runtime, began = Runtime({"target": Slow("target", "")}), time.monotonic()
    with asyncio.Runner() as runner:
        runner.run(common.start(runtime))
        assert len(told) <= (time.monotonic() - began) / 0.02
        told.extend(capsys.readouterr().err.splitlines())
        runner.run(asyncio.sleep(0.1))

    assert all(re.fullmatch(r"starting target: \d+ s", line) for line in told)
    assert capsys.readouterr().err == ""


def test_the_answer_is_printed_before_the_engines_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Closing(ScriptedEngine):
        async def aclose(self) -> None:
            stdout: Any = sys.stdout
            stdout.flush()
            seen.append(stdout.buffer.getvalue().decode())

    runtime = Runtime({"target": Closing("target", "One.\n\n\\boxed{7}")})
    monkeypatch.setattr(Runtime, "of", lambda *_, **__: runtime)

    _run("solve", "?")

    assert "\\boxed{7}" in seen[0]
    assert "tokens generated" in seen[0]


def test_a_bench_tells_its_rate_or_is_quiet() -> None:
    told = _run("bench", "overhead", "--rounds", "10")[1]
    out, error = _run("bench", "overhead", "--rounds", "10", "--quiet", "--json", "-")

    assert re.search(r"^64 concurrently: 10 of 10, [\d.]+/s$", told, re.MULTILINE)
    assert [row["concurrency"] for row in json.loads(out)["rows"]] == [1, 8, 64]
    assert error == ""


def test_quiet_prints_what_is_asked_for_alone() -> None:
    assert _run("--quiet", "zoo", "list") == ("", "")
    assert _run("zoo", "list", "--quiet") == ("", "")
    out, error = _run("--quiet", "policies", "--json", "-")
    assert json.loads(out)["policies"]
    assert error == ""
    assert _run("zoo", "list")[0]


def test_what_stands_in_brackets_is_said_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich takes `[gpu]` for a tag, and shows nothing of it."""
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    monkeypatch.setattr(common.console, "width", 200)

    done = CliRunner().invoke(app, ["doctor"], env={"NO_COLOR": "1"})

    for extra in ("gpu", "ray", "programs"):
        assert f"pip install 'reasonrt[{extra}]'" in " ".join(done.stdout.split())
