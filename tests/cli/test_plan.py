"""`reasonrt plan`: speculation where nothing is named, and diffusion's roofline: a table, words, JSON and a plot."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from reasonrt.cli.common import console
from reasonrt.cli.main import app
from reasonrt.errors import ReasonRTError

PAGE = (Path(__file__).parents[2] / "docs" / "diffusion.md").read_text()


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the width of the terminal that the tests are started from."""
    monkeypatch.setattr(console, "width", 160)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


def printed(*arguments: str) -> str:
    """What the command prints, whatever the width that it is wrapped to."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def refused(*arguments: str) -> str:
    """The one line that `main` prints for an error of ours."""
    result = run(*arguments)
    assert isinstance(result.exception, ReasonRTError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.mark.parametrize("arguments", [[], ["--problems", "7"], ["--concurrency=2"]])
def test_plan_without_a_command_plans_speculation(arguments: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    context = group.make_context("reasonrt", ["plan", *arguments])
    _, plan, below = group.resolve_command(context, [*context._protected_args, *context.args])

    context = plan.make_context("plan", below, parent=context)

    assert [*context._protected_args, *context.args] == ["speculation", *arguments]


def test_plan_lists_its_commands_and_knows_no_others() -> None:
    assert re.search(r"diffusion .*speculation ", printed("--help"))
    assert "No such command" in run("nothing").output
    assert "valid integer" in run("--problems", "x").output


def test_a_table_and_words_say_who_is_faster() -> None:
    output = printed(
        "diffusion", "--gpu", "h200", "--model", "Qwen3-8B", "--context", "1024", "--context", "16384",
        "--batch", "1", "--batch", "64", "--batch", "128",
    )  # fmt: skip

    assert "from 206 rows a pass on" in output
    assert re.search(r"1 │ 4\.00, needs 1\.0 │ 4\.00, needs 1\.0 │", output)
    assert re.search(r"64 │ 0\.58, needs 7\.6 │ does not fit │", output)
    assert (
        "context 1,024: at batch 1 diffusion with 4 tokens a pass is 4.0 times as fast as autoregressive decoding; "
        "from batch 30 on autoregressive decoding is faster, unless a pass makes 7.6 tokens at batch 64 and 12.1 "
        "tokens at batch 128."
    ) in output
    assert "context 16,384: at batch 1 diffusion with 4 tokens a pass is 4.0 times as fast" in output
    assert "it is not slower at any batch up to 51." in output


def test_words_say_where_nothing_is_enough_and_where_nothing_fits() -> None:
    output = printed("diffusion", "--context", "128", "--context", "1000000", "--batch", "64", "--batch", "128")

    assert "unless a pass makes 12.3 tokens at batch 64. From batch 128 on not even a whole block" in output
    assert "128 │ 0.21, needs no number │" in output
    assert "context 1,000,000: not one sequence fits into memory." in output


def test_residual_context_and_commits_of_their_own_cost_something() -> None:
    def ratio(batch: str, *options: str) -> float:
        output = printed("diffusion", "--batch", batch, "--context", "1024", *options)
        found = re.search(rf"{batch} │ (\d\.\d\d), needs", output)
        assert found
        return float(found[1])

    assert ratio("1") == ratio("1", "--residual", "--residual-top-k", "64") == 4.0
    assert (ratio("1", "--residual"), ratio("1", "--separate-commits")) == (3.7, 3.56)
    assert ratio("16", "--residual", "--all-rows") < ratio("16", "--residual")


def test_json_has_everything_that_was_planned(tmp_path: Path) -> None:
    file, picture = tmp_path / "plan.json", tmp_path / "plan.png"

    printed(
        "diffusion", "--gpu", "L40S", "--model", "Qwen3-4B", "--residual", "--residual-top-k", "64", "--batch", "8",
        "--batch", "1", "--context", "4096", "--bandwidth-efficiency", ".8", "--json", str(file), "--plot",
        str(picture),
    )  # fmt: skip

    plan = json.loads(file.read_text())
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert plan.keys() == {
        "gpu", "model", "bandwidth_efficiency", "compute_efficiency", "decoding", "ridge_rows", "rows", "crossings",
    }  # fmt: skip
    assert plan["gpu"] == {"name": "L40S", "bandwidth": 0.864e12, "flops": 362.05e12, "memory_bytes": 48e9}
    assert plan["model"]["name"] == "Qwen3-4B"
    assert plan["decoding"] == {
        "block_length": 32, "tokens_per_pass": 4.0, "merge_commits": True, "masked_rows_only": True, "residual": True,
        "residual_top_k": 64,
    }  # fmt: skip
    assert plan["ridge_rows"] == pytest.approx(362.05 / 0.864 / 0.8)
    assert [(row["batch"], row["context"]) for row in plan["rows"]] == [(1, 4096), (8, 4096)]
    assert plan["rows"][0].keys() == {
        "batch", "context", "fits", "autoregressive_tokens_per_s", "diffusion_tokens_per_s", "ratio",
        "autoregressive_ms_per_pass", "diffusion_ms_per_pass", "autoregressive_bound", "diffusion_bound",
        "break_even_tokens_per_pass",
    }  # fmt: skip
    assert [list(crossing) for crossing in plan["crossings"]] == [
        ["context", "most_batch", "autoregressive_from_batch"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "H300"], "unknown GPU 'H300'; there are A100-80G, "),
        (["--model", "/no/such"], "unknown model '/no/such'; there are Qwen3-0.6B, "),
        (["--gpu", "RTX 4090", "--model", "Qwen3-14B"], "Qwen3-14B does not fit: its weights are 29.5 GB"),
        (["--tokens-per-pass", "40"], "tokens_per_pass must be in [1, block_length], which is 32, got 40"),
        (["--context", "16"], "context must be at least a block, 32 tokens, got 16"),
        (["--residual-top-k", "64"], "residual_top_k must be at least 1, with residual, got 64"),
        (["--plot", "/proc/no/plot.png"], "cannot write /proc/no/plot.png"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    assert message in refused("diffusion", *arguments)


@pytest.mark.parametrize(("command", "shown"), re.findall(r"```console\n\$ reasonrt plan (.*)\n((?:.+\n)+)```", PAGE))
def test_the_page_shows_what_is_printed(command: str, shown: str) -> None:
    arguments = [part for part in shlex.split(command) if part != "plan"]

    output = printed(*arguments)

    assert "autoregressive decoding" in shown
    for sentence in shown.split("...\n"):
        assert " ".join(sentence.split()) in output


def test_the_page_names_figures_of_the_table() -> None:
    assert "```console\n$ reasonrt plan diffusion" in PAGE
    assert "256 │ 0.33, needs 15.6 │" in (output := printed("diffusion"))
    assert "7,149 c / 21,389 m" in output
    for figure in ("7,149", "21,389", "15.6"):
        assert figure in PAGE
