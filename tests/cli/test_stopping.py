"""Certifying from the command line: what it prints, and one line for whatever cannot be done."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from reasonrt.calibration import Certificate, Fingerprints, Infeasible, TraceSet, write_traces
from reasonrt.calibration.stopping.synthetic import synthetic_traces
from reasonrt.cli.main import app
from reasonrt.errors import CalibrationError, ReasonRTError

TRACES = TraceSet(synthetic_traces("honest", 500).traces, Fingerprints(model="m"))
FAMILIES = ("--family", "deer", "--family", "dynasor")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), terminal_width=200)


def refused(*arguments: str) -> str:
    """The one line that `main` prints for an error of ours."""
    result = run(*arguments)
    assert isinstance(result.exception, ReasonRTError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture(autouse=True)
def own_state_of_each_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test's tries count for another one."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With traces, a certificate on them, and its plots."""
    folder = tmp_path_factory.mktemp("stopping")
    write_traces(folder / "traces.jsonl", TRACES)
    result = run(
        "calibrate", "stopping", "--traces", str(folder / "traces.jsonl"), "--risk", "lost_correct", "--alpha", ".05",
        "--delta", ".1", "-o", str(folder / "c.json"), "--plot", str(folder / "c.png"), *FAMILIES,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "lost_correct below 0.05, wrong with probability at most 0.1" in result.output
    return folder


def test_certificate_is_written_with_its_plots(folder: Path) -> None:
    certificate = Certificate.read(folder / "c.json")

    assert (certificate.risk, certificate.alpha, certificate.fingerprints.model) == ("lost_correct", 0.05, "m")
    assert set(certificate.splits) == {"train", "order", "certify"}
    assert certificate.saving.net > 0.1
    assert (folder / "c.png").stat().st_size > 10_000


def test_show_and_verify(folder: Path) -> None:
    shown = run("certificate", "show", str(folder / "c.json"))
    verified = run("certificate", "verify", str(folder / "c.json"), "--traces", str(folder / "traces.jsonl"))

    assert Certificate.read(folder / "c.json").sha256 in shown.output
    assert "seen, not promised" in shown.output
    assert (shown.exit_code, verified.exit_code) == (0, 0)
    assert "traces give this certificate" in " ".join(verified.output.split())


def test_without_gold_a_certificate_verifies_too(folder: Path, tmp_path: Path) -> None:
    file, traces = str(tmp_path / "c.json"), str(folder / "traces.jsonl")
    ledger = ("--ledger", str(tmp_path / "ledger.jsonl"))
    arguments = ("calibrate", "stopping", "--traces", traces, "--alpha", ".1", "-o", file, "--no-gold", *FAMILIES)

    assert run(*arguments, *ledger).exit_code == 0
    assert run("certificate", "verify", file, "--traces", traces, *ledger).exit_code == 0


def test_logs_of_others_are_certified_too(tmp_path: Path) -> None:
    log = [
        {
            "question": trace.problem_id, "gold_answer": "right", "actual_final_answer": trace.full_answer,
            "checkpoints": [
                {"tokens_used": point.tokens, "predicted_answer": point.answer, "is_correct": point.answer == "right",
                 "confidence": point.signals["confidence"]}
                for point in trace.checkpoints
            ],
        }
        for trace in TRACES if trace.checkpoints
    ]  # fmt: skip
    (tmp_path / "log.json").write_text(json.dumps(log))
    arguments = ("--traces", str(tmp_path / "log.json"), "--alpha", ".1", "-o", str(tmp_path / "c.json"))

    result = run("calibrate", "stopping", *arguments, "--layout", "conformal-thinking", "--family", "deer")

    assert result.exit_code == 0, result.output
    assert Certificate.read(tmp_path / "c.json").saving.net > 0.1


def test_several_risks(folder: Path, tmp_path: Path) -> None:
    limits = ("--risk", "early_error", "--alpha", ".25", "--risk", "premature_give_up", "--alpha", ".1")
    traces = ("--traces", str(folder / "traces.jsonl"), "--ledger", str(tmp_path / "ledger.jsonl"))

    result = run("calibrate", "stopping", *traces, *limits, "-o", str(tmp_path / "c.json"), "--family", "joint")

    assert result.exit_code == 0, result.output
    assert [finding.alpha for finding in Certificate.read(tmp_path / "c.json").findings] == [0.25, 0.1]


def words(result: Result) -> str:
    return " ".join(result.output.split())


def test_a_copy_of_the_traces_is_another_try_on_the_same_set(tmp_path: Path) -> None:
    """In another folder, under another name and in another order; and under another ledger."""
    original, copy = tmp_path / "traces.jsonl", tmp_path / "copies" / "renamed.jsonl"
    write_traces(original, synthetic_traces("honest", 200))
    header, *lines = original.read_text().splitlines()
    copy.parent.mkdir()
    copy.write_text("\n".join([header, *lines[::-1]]) + "\n")

    def certified(traces: Path, family: str, *ledger: str) -> str:
        out = ("--alpha", ".2", "-o", str(tmp_path / f"{family}.json"), "--family", family)
        return words(run("calibrate", "stopping", "--traces", str(traces), *out, *ledger))

    assert "try 1 on these problems" in certified(original, "dynasor")
    assert "try 2 on these problems, all of whose certificates hold together; tested at 0.025 of" in certified(
        copy, "budget"
    )
    assert "try 2 on these problems" in certified(original, "budget")  # the same, again
    assert "try 2 on these problems" in certified(copy, "budget", "--ledger", str(tmp_path / "another.jsonl"))
    first = run("certificate", "verify", str(tmp_path / "dynasor.json"), "--traces", str(copy))
    assert "try 1 on these problems" in words(first)  # the ledger in the folder of the copy knows of it


def test_levels_are_certified_together(folder: Path, tmp_path: Path) -> None:
    traces = ("--traces", str(folder / "traces.jsonl"), "--ledger", str(tmp_path / "ledger.jsonl"))
    levels = ("--alpha", ".001", "--alpha", ".05", "--alpha", ".1")

    result = run("calibrate", "stopping", *traces, *levels, "-o", str(tmp_path / "c.json"), "--family", "dynasor")

    assert isinstance(result.exception, Infeasible)
    assert "lost_correct below 0.001 at delta 0.0167 takes at least" in str(result.exception)
    certificates = [Certificate.read(tmp_path / f"c-{alpha}.json") for alpha in ("0.05", "0.1")]
    assert [certificate.alpha for certificate in certificates] == [0.05, 0.1]
    assert words(result).count("tested at 0.0167 of delta 0.1, with 2 other levels") == 2
    assert run("certificate", "verify", str(tmp_path / "c-0.1.json"), *traces).exit_code == 0


def test_growing_traces_are_certified_again_as_one_try(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "traces.jsonl").read_text().splitlines()
    write_traces(tmp_path / "learn.jsonl", synthetic_traces("honest", 60, seed=1))
    fixed = ("--learn", str(tmp_path / "learn.jsonl"), "--alpha", ".2", "-o", str(tmp_path / "c.json"))
    outputs = []
    for size in (100, 200):
        grown = tmp_path / f"{size}.jsonl"
        grown.write_text("\n".join(lines[: size + 1]) + "\n")
        arguments = ("--traces", str(grown), *fixed, "--family", "dynasor", "--ledger", str(tmp_path / "ledger.jsonl"))
        outputs.append(words(run("calibrate", "stopping", *arguments, "--growing")))

    assert all("tested at 0.05 of delta 0.1, and may be certified again" in output for output in outputs)
    assert Certificate.read(tmp_path / "c.json").num_problems == 200
    assert "p-values that hold at any time (growing=True, --growing)" in refused("calibrate", "stopping", *arguments)
    assert "--growing needs --learn" in refused(
        "calibrate", "stopping", "--traces", str(grown), "--alpha", ".1", "--growing"
    )


def test_plan_says_how_many(tmp_path: Path) -> None:
    plan = ("calibrate", "plan", "--alpha", ".05", "--delta", ".1", "--json", str(tmp_path / "plan.json"))
    least = {}
    for more in ((), ("--try", "2"), ("--growing",)):
        assert "takes at least" in run(*plan, *more).output
        least[more] = json.loads((tmp_path / "plan.json").read_text())["least_n"]

    assert least == {(): 59, ("--try", "2"): 72, ("--growing",): 74}


def edit(file: Path, changes: dict[str, object]) -> str:
    file.with_name("edited.json").write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(file.with_name("edited.json"))


def with_traces(folder: Path, name: str, traces: Sequence[object], header: int = 1) -> str:
    lines = (folder / "traces.jsonl").read_text().splitlines()[:header]
    (folder / name).write_text("\n".join([*lines, *map(json.dumps, traces)]) + "\n")
    return str(folder / name)


def test_bad_input_is_one_line(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "traces.jsonl").read_text().splitlines()[1:]]
    nan = json.loads(json.dumps(lines[0]).replace(str(lines[0]["checkpoints"][0]["signals"]["confidence"]), "NaN", 1))
    bare = [line | {"gold": None} for line in lines]

    def stopping(file: str, *arguments: str) -> str:
        return refused("calibrate", "stopping", "--traces", file, "--alpha", ".05", *FAMILIES, *arguments)

    assert "needs the right answer of every problem" in stopping(
        with_traces(folder, "bare.jsonl", bare), "--risk", "early_error"
    )
    assert "signal 'confidence' is nan at 128 tokens" in stopping(with_traces(folder, "nan.jsonl", [nan, *lines[1:]]))
    assert "is in the traces twice" in stopping(with_traces(folder, "twice.jsonl", [*lines, lines[0]]))
    assert "takes at least 59 problems" in stopping(with_traces(folder, "few.jsonl", lines[:60]))
    assert "does not begin with the schema" in stopping(with_traces(folder, "none.jsonl", lines, header=0))
    assert "unknown family 'magic'" in stopping(str(folder / "traces.jsonl"), "--family", "magic")
    assert "2 risks have 1 alphas" in stopping(
        str(folder / "traces.jsonl"), "--risk", "lost_correct", "--risk", "early_error"
    )
    assert "cannot read" in refused("certificate", "show", str(folder / "nothing.json"))
    assert "was changed after it was made" in refused("certificate", "show", edit(folder / "c.json", {"delta": 0.5}))
    assert "no n certifies a rule" in refused("calibrate", "plan", "--alpha", ".05", "--expected-risk", ".06")


def test_verify_with_other_traces_says_so(folder: Path) -> None:
    others = TraceSet(tuple(replace(trace, problem_id=f"x{trace.problem_id}") for trace in TRACES))
    write_traces(folder / "others.jsonl", others)

    message = refused("certificate", "verify", str(folder / "c.json"), "--traces", str(folder / "others.jsonl"))

    assert "not the traces that the certificate was made from" in message


@pytest.mark.slow  # half a minute
def test_bench_writes_its_rows(tmp_path: Path) -> None:
    arguments = ("--part", "tightness", "--draws", "200", *FAMILIES, "--json", str(tmp_path / "bench.json"))
    result = run("bench", "stopping", *arguments)

    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert result.exit_code == 0, result.output
    assert {row["population"] for row in rows} == {"honest", "wavering", "hopeless"}
    assert {row["part"] for row in rows} == {"tightness"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--part", "speed"), "unknown part 'speed'"), (("--part", "live"), "record some with `calibrate traces`")],
)
def test_bench_refuses_what_it_cannot_do(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        CliRunner().invoke(app, ["bench", "stopping", *arguments], catch_exceptions=False)
