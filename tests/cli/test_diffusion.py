"""`reasonrt solve`, `eval` and `doctor` with a diffusion engine of a configuration file; half a minute."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RUN = [sys.executable, "-c", "from reasonrt.cli.main import main; main()"]
ENVIRONMENT = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}


@pytest.fixture
def folder(diffusion_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A working folder whose `reasonrt.yaml` names a tiny model with random weights."""
    engine = f"{{kind: diffusion, model: {diffusion_folder()}, max_num_seqs: 4, decoding: {{threshold: 0.3}}}}"
    (tmp_path / "reasonrt.yaml").write_text(f"engines: {{diffusion: {engine}}}\n")
    return tmp_path


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*RUN, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False
    )


def test_solve_prints_steps_and_passes(folder: Path) -> None:
    options = ["--policy", "block_diffusion@residual=no", "--max-tokens", "64", "--json", "out.json"]

    done = run(folder, "solve", "What is 3 + 4?", *options)

    assert done.returncode == 0, done.stderr
    usage = json.loads((folder / "out.json").read_text())["usage"]["diffusion"]
    assert f"{usage['generated']} by diffusion in {usage['passes']} passes" in done.stdout
    assert usage["passes"] < usage["generated"] <= 64


def test_eval_writes_passes_and_canvas_into_the_journal(folder: Path) -> None:
    policies = ["--policy", "block_diffusion", "--policy", "block_diffusion@threshold=1.0"]

    done = run(folder, "eval", "--task", "zoo", "--limit", "2", "--max-tokens", "16", "--out", "out", *policies)

    assert done.returncode == 0, done.stderr
    lines = (folder / "out" / "journal.jsonl").read_text().splitlines()
    used = [record["usage"]["diffusion"] for line in lines if (record := json.loads(line)).get("usage")]
    assert len(used) == 4
    assert all(usage["canvas"] == 8 * usage["passes"] > 0 for usage in used)


def test_doctor_reports_a_model_that_is_not_there(folder: Path) -> None:
    (folder / "other.yaml").write_text("engines: {diffusion: {kind: diffusion, model: /no/such}}\n")

    done, wrong = run(folder, "doctor"), run(folder, "doctor", "--config", "other.yaml")

    assert "engine diffusion" in done.stdout
    assert "no model folder /no/such" in " ".join(wrong.stdout.split())
