"""The command line from outside: exit codes, one line per error, no traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = [sys.executable, "-c", "from reasonrt.cli.main import main; main()"]


def run(*arguments: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [*RUN, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, input=stdin, timeout=240
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["solve", ""], "the prompt is empty; give a question"),
        (
            ["solve", "1 + 1", "--policy", "magic"],
            "unknown policy 'magic'; there are arbitrage, auto, block_diffusion, ",
        ),
        (["solve", "1 + 1", "--max-tokens", "-3"], "max_tokens must be in [1, 1000000], got -3"),
        (["solve", "1 + 1", "--deadline", "0"], "deadline_s must be positive, got 0"),
        (["solve", "1 + 1", "--temperature", "9"], "temperature must be in [0, 2], got 9.0"),
        (["solve", "1 + 1", "-o", "k=3"], "unknown option 'k'"),
        (["solve", "1 + 1", "-o", "k"], "options are NAME=VALUE,NAME=VALUE, got 'k'"),
        (["solve", "1 + 1", "--policy", "self_consistency", "-o", "k=0"], "k must be a whole number in [1, 64], got 0"),
        (["solve", "1 + 1", "--config", "no.yaml"], "cannot read no.yaml"),
        (["config", "show", "--config", "no.yaml"], "cannot read no.yaml"),
        (["bench", "overhead", "--streams", "2", "--config", "no.yaml"], "cannot read no.yaml"),
        (["zoo", "train", "giant"], "there is no recipe 'giant'; there are draft-diffusion, "),
        (["zoo", "measure", "nope"], "the zoo has no model 'nope'; it has nano-diffusion, "),
        (
            ["zoo", "wording", "--out", "no/x"],
            "cannot write no/x: No such file or directory; name",
        ),
        (["eval", "--task", "zoo", "--policy", "magic", "--out", "x"], "unknown policy 'magic'"),
        (["eval", "--task", "nothing", "--policy", "target", "--out", "x"], "nothing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], expected: str) -> None:
    done = run(*arguments, cwd=tmp_path)

    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_config_show_prints_what_is_in_effect(tmp_path: Path) -> None:
    served = 'serve: {api_keys: {ada: "nobody-may-see-this"}, bounds: {queued: 7}}'
    (tmp_path / "reasonrt.yaml").write_text(f"concurrency: 3\n{served}\n")

    done = run("config", "show", "--json", "config.json", cwd=tmp_path)

    assert done.returncode == 0
    assert "concurrency: 3" in done.stdout
    assert "queued: 7" in done.stdout
    assert "nobody-may-see-this" not in done.stdout + (written := (tmp_path / "config.json").read_text())
    assert json.loads(written)["concurrency"] == 3


def test_doctor_finds_this_installation_well(tmp_path: Path) -> None:
    done = run("doctor", "--json", "doctor.json", cwd=tmp_path)

    findings = json.loads((tmp_path / "doctor.json").read_text())["findings"]
    assert done.returncode == 0, done.stdout
    assert {"python", "cores", "vllm", "engine target"} <= {finding["subject"] for finding in findings}


def test_doctor_names_a_model_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "reasonrt.yaml").write_text("engines: {target: {model: /no/such}}\n")

    done = run("doctor", cwd=tmp_path)

    assert done.returncode == 1
    assert "there is no model folder /no/such" in done.stdout


def test_zoo_list_shows_what_ships(tmp_path: Path) -> None:
    done = run("zoo", "list", "--json", "zoo.json", cwd=tmp_path)

    models = json.loads((tmp_path / "zoo.json").read_text())["models"]
    assert done.returncode == 0
    assert [model["name"] for model in models] == [
        "nano-diffusion",
        "nano-diffusion-rcd",
        "nano-draft",
        "nano-reward",
        "nano-router",
        "nano-target",
        "nano-thinker",
    ]
    first = {"nano-diffusion", "nano-diffusion-rcd"}  # a first pair, to be trained longer before it is measured
    measured = [model for model in models if "recipe" in model and model["name"] not in first]
    assert all(model["accuracy"]["zoo"]["n"] >= 400 for model in measured)


def test_bench_overhead_writes_its_rows(tmp_path: Path) -> None:
    done = run("bench", "overhead", "--rounds", "10", "--json", "overhead.json", cwd=tmp_path)

    rows = json.loads((tmp_path / "overhead.json").read_text())["rows"]
    assert done.returncode == 0
    assert [row["concurrency"] for row in rows] == [1, 8, 64]
    assert all(row["overhead_ms_per_step_p50"] <= row["overhead_ms_per_step_p99"] for row in rows)


def test_bench_overhead_measures_a_server(tmp_path: Path) -> None:
    done = run("bench", "overhead", "--streams", "2", "--rounds", "1", "--json", "streams.json", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "streams.json").read_text())["rows"]
    assert (row["engine"], row["policy"], row["streams"], row["requests"]) == ("scripted", "target", 2, 4)
    assert 1 < row["cpu_us_per_token"] < 10_000
    assert f"{row['cpu_us_per_token']:.1f}" in done.stdout


def test_json_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")

    done = run("config", "show", "--json", "taken/x.json", cwd=tmp_path)

    assert done.returncode == 2
    assert "cannot write taken/x.json" in done.stderr


@pytest.mark.vllm
def test_solve_prints_steps_with_their_author_and_the_answer(tmp_path: Path) -> None:
    done = run(
        "solve", "-", "--policy", "draft", "--json", "x.json", cwd=tmp_path, stdin="Solve the following: 40 + 2."
    )

    completion = json.loads((tmp_path / "x.json").read_text())
    assert done.returncode == 0, done.stderr
    assert " draft " in done.stdout
    assert completion["usage"]["draft"]["generated"] == sum(len(step["token_ids"]) for step in completion["steps"])
