"""What a person expects of every command line: a version, completion, lists, and JSON on standard output."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reasonrt.cli.common import complete_model, complete_policy, complete_task
from reasonrt.cli.main import app
from reasonrt.config import Config
from reasonrt.errors import ConfigError
from reasonrt.policies.registry import policy_names
from reasonrt.runtime import Runtime


def _run(*arguments: str) -> tuple[str, str]:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"}, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout, done.stderr


def test_the_version_is_printed() -> None:
    assert _run("--version") == (f"reasonrt {version('reasonrt')}\n", "")


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

    out, error = _run("zoo", "list", "--json", "-")

    assert {"nano-draft"} <= {model["name"] for model in json.loads(out)["models"]}
    assert "nano-draft" in error
    assert not list(tmp_path.iterdir())
    assert "nano-draft" in _run("zoo", "list")[0]


def test_an_engine_that_no_one_has_configured_is_named_beside_those_that_are() -> None:
    config = Config.model_validate({"engines": {"draft": {"kind": "vllm", "model": "zoo:nano-draft"}}})

    with pytest.raises(ConfigError, match="no engine has the role 'target'; there are draft: add it"):
        Runtime.of(config, policies=[("arbitrage", {})])
