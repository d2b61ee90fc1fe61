"""From a recording to weights to an answer that is given or held back, all from the command line."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from reasonrt.cli.main import app
from reasonrt.errors import ReasonRTError
from reasonrt.evals.contexts import ContextProblem, generate, read_problems
from reasonrt.programs.weights import ProgramCertificate, Weights

DRAWN = ("--task", "needle_words", "--characters", "4000", "--problems", "120", "--options", "k=3")
CONFIG = "engines: {target: {kind: plugin, name: needles}}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With the configuration of an engine that is wrong half of the time and knows when, a recording, and weights."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "reasonrt.yaml").write_text(CONFIG)
    (folder / "other.yaml").write_text(
        CONFIG.replace("name: needles", "name: needles, settings: {fingerprint: another}")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "engines" / "hosted"))
        patch.chdir(folder)
        fabricate(folder / "recorded", generate("needle_words", 120, 4000, 1_000_000, split="train"))
        done = run("calibrate", "programs", "--out", "recorded", "-o", "weights.json", "--json", "w.json", *DRAWN)
        assert done.exit_code == 0, (done.output, done.exception)
        (folder / "told.txt").write_text(done.stdout)
        yield folder


def fabricate(out: Path, problems: list[ContextProblem]) -> None:
    """Record four questions, and make of their candidates what the same engine would have made of the others."""
    assert "it takes 50" in refused(
        "calibrate", "programs", "--out", str(out), "-o", "x.json", *DRAWN, "--problems", "4"
    )
    journal = out / "journal.jsonl"
    head, *lines = journal.read_text().splitlines()
    pattern = json.loads(lines[0])
    wrong = random.Random(0)
    made = list(lines)
    for problem in problems[4:]:
        trials = []
        for trial in pattern["trials"]:
            is_wrong = wrong.random() < 0.5
            answer = str(int(problem.answer) + is_wrong)
            trials.append(trial | {"answer": answer, "confidences": [0.2 if is_wrong else 0.8]})
        own = {"problem": problem.id, "question": problem.question, "answer": problem.answer, "trials": trials}
        made.append(json.dumps(pattern | own))
    journal.write_text("\n".join([head, *made]) + "\n")


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def refused(*arguments: str) -> str:
    """The one line that `main` prints for an error of ours."""
    done = run(*arguments)
    assert isinstance(done.exception, ReasonRTError), (done.output, done.exception)
    assert "\n" not in str(done.exception)
    return str(done.exception)


def ask(problem: ContextProblem, weights: str, **options: Any) -> dict[str, Any]:
    """The details of an answer by these weights."""
    Path("problem.txt").write_text(problem.documents[0].text)
    given = ",".join(f"{name}={value}" for name, value in ({"k": 3, "direct": "never"} | options).items())
    arguments = ["problem.txt", problem.question, "--policy", f"program_search@weights={weights},{given}"]
    done = run("ask", *arguments, "--json", "answer.json", "--seed", "3")
    assert done.exit_code == 0, (done.output, done.exception)
    value = json.loads(Path("answer.json").read_text())
    return {**value["details"], "said": done.stdout.splitlines()[0]}


def test_signals_count_where_they_say_something(folder: Path) -> None:
    weights = Weights.read(Path("weights.json"))

    assert (weights.k, weights.n, weights.model, weights.task) == (3, 120, "target", "needle_words")
    assert weights.coefficients["confidence"].slope > 1
    assert weights.gate
    assert weights.gate.answer_mass > weights.gate.plurality + 0.2
    assert json.loads(Path("w.json").read_text()) == json.loads(json.dumps(asdict(weights)))
    told = (folder / "told.txt").read_text()
    assert "signals count" in told
    # direct calls are right half of the time, and so are programs: where each is better is a matter of luck
    assert f"direct calls below {weights.direct_below_tokens:,} tokens; weights in weights.json" in told


def test_served_by_its_weights_the_sure_one_is_believed(folder: Path) -> None:
    problems = generate("needle_words", 6, 4000, 5)
    details = [ask(problem, "weights.json") for problem in problems]

    right = sum(each["answer"] == problem.answer for each, problem in zip(details, problems, strict=True))
    assert right >= 4  # that one of three is right has a probability of 7 in 8
    assert {each["strategy"] for each in details} == {"answer_mass"}
    assert any(each["differs_from_plurality"] for each in details)
    for each in details:
        assert 0 < sum(each["shares"].values()) <= 1.0000001


def test_a_certificate_holds_back_what_is_too_unsure(folder: Path) -> None:
    done = run(
        "calibrate", "programs", "--out", "recorded", "-o", "certified.json", "--alpha", "0.25", *DRAWN
    )  # of the same recording: nothing is asked again
    assert done.exit_code == 0, (done.output, done.exception)
    weights = Weights.read(Path("certified.json"))
    assert weights.certificate
    assert (weights.n, weights.certificate.alpha) == (60, 0.25)
    problem = generate("needle_words", 1, 4000, 5)[0]
    certificate = ProgramCertificate(0.99999, 0.25, 0.1, 30, 1, 0.05, 0.5, stops_early=True)
    replace(weights, certificate=certificate, settled_at=None).write(Path("careful.json"))

    details = ask(problem, "careful.json")

    assert details["abstained"] is True
    assert details["answer"] is None
    assert details["said"] == "The candidates do not agree well enough for an answer."
    assert set(details["surviving"]) <= set(details["shares"])
    assert details["status"] == "final"
    # a context that fits would go to a direct call, which never abstains
    assert ask(problem, "careful.json", direct="auto")["abstained"] is True
    for another in ("direct=always", "strategy=plurality"):
        assert f"{another} would answer otherwise" in refused(
            "ask", "problem.txt", "?", "--policy", f"program_search@weights=careful.json,k=3,{another}"
        )


def rewritten(folder: Path, name: str, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> None:
    """The recording with each of its records changed."""
    head, *lines = (folder / "recorded" / "journal.jsonl").read_text().splitlines()
    (folder / name).mkdir()
    changed = [json.dumps(change(number, json.loads(line))) for number, line in enumerate(lines)]
    (folder / name / "journal.jsonl").write_text("\n".join([head, *changed]) + "\n")


def test_direct_calls_compete_with_what_is_believed_of_all_candidates(folder: Path) -> None:
    def change(number: int, record: dict[str, Any]) -> dict[str, Any]:
        gold = record["answer"]
        said = [str(int(gold) + 1), gold, gold]
        alike = record["trials"][0] | {"confidences": [0.5]}  # which ended first is another each time
        trials = [alike | {"index": index, "answer": answer} for index, answer in enumerate(said)]
        return record | {"trials": trials, "direct": gold if number % 2 else "0", "context_tokens": 4000}

    rewritten(folder, "voted", change)
    done = run("calibrate", "programs", "--out", "voted", "-o", "voted.json", *DRAWN)

    assert done.exit_code == 0, (done.output, done.exception)
    assert Weights.read(Path("voted.json")).direct_below_tokens == 0


def test_the_half_that_is_certified_on_has_no_part_in_what_is_learned(folder: Path) -> None:
    """There every direct call is right, and none of those that are learned from."""
    rewritten(
        folder,
        "halves",
        lambda number, record: (
            record | {"direct": record["answer"] if number % 2 else "none", "context_tokens": 1000 + number}
        ),
    )
    done = run("calibrate", "programs", "--out", "halves", "-o", "halves.json", "--alpha", "0.25", *DRAWN)

    assert done.exit_code == 0, (done.output, done.exception)
    assert "no direct calls: the certificate is for programs" in done.stdout
    assert (Weights.read(Path("halves.json")).direct_below_tokens or 0) < 1010


def test_weights_serve_only_what_they_were_learned_for(folder: Path) -> None:
    (folder / "text.txt").write_text("x" * 5000)
    asked = ("ask", "text.txt", "What is the access number of x?")

    assert "the weights are for 3 candidates, this is 4; take k=3" in refused(
        *asked, "--policy", "program_search@weights=weights.json,k=4"
    )
    assert "the weights are for the model 'target', this is 'another'" in refused(
        *asked, "--policy", "program_search@weights=weights.json,k=3", "--config", "other.yaml"
    )
    (folder / "edited.json").write_text((folder / "weights.json").read_text().replace('"n":120', '"n":121'))
    assert "was changed after it was made" in refused(*asked, "--policy", "program_search@weights=edited.json,k=3")


def test_bench_takes_the_recording_and_has_a_row_for_each_arm(folder: Path) -> None:
    done = run(
        "bench", "programs", "--out", "measured", "--task", "needle_words", "--characters", "4000", "--problems", "10",
        "--options", "k=3", "--weights", "weights.json", "--json", "bench.json", "--problems-file", "questions.jsonl",
    )  # fmt: skip

    assert done.exit_code == 0, (done.output, done.exception)
    value = json.loads((folder / "bench.json").read_text())
    rows = {row["arm"]: row for row in value["rows"] if row["task"] == "all"}
    assert list(rows) == [
        "direct", "rlm", "self_consistency@3", "srlm@3", "plurality, stops early", "answer_mass", "oracle@3",
        "keywords, no model",
    ]  # fmt: skip
    assert rows["answer_mass"]["accuracy"] >= rows["self_consistency@3"]["accuracy"]
    assert rows["oracle@3"]["accuracy"] == max(row["accuracy"] for arm, row in rows.items() if "@" in arm)
    assert "keywords" in done.stdout
    assert len(read_problems(folder / "questions.jsonl")) == 10


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["calibrate", "programs", "--out", "few", "-o", "x.json", *DRAWN, "--problems", "1"], "it takes 50"),
        (["calibrate", "programs", "--out", "x", "-o", "x.json", "--task", "magic"], "unknown task 'magic'"),
        (["calibrate", "programs", "--out", "x", "-o", "x.json", "--characters", "7"], "characters must be in"),
        (["calibrate", "programs", "--out", "x", "-o", "x.json", "--options", "k=0"], "k must be a whole number"),
        (["calibrate", "programs", "--out", "x", "-o", "x.json", "--model", "no"], "there is no model folder no;"),
        (["calibrate", "programs", "--out", "recorded", "-o", "x.json", *DRAWN, "--options", "k=4"], "options.k 3"),
        (["calibrate", "programs", "--out", "x", "-o", "x.json", *DRAWN, *DRAWN[:2]], "/0' is there twice; name each"),
        (["calibrate", "programs", "--out", "recorded", "-o", "x.json", "--alpha", "0", *DRAWN], "alpha"),
        (["calibrate", "programs", "--out", "recorded", "-o", "x.json", "--alpha", "0.01", *DRAWN], "record more"),
        (["calibrate", "programs", "--out", "recorded", "-o", "no/x.json", *DRAWN], "cannot write no/x.json"),
        (["bench", "programs", "--out", "x", "--weights", "absent.json", *DRAWN, "--problems", "1"], "absent.json"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: list[str], expected: str) -> None:
    assert expected in refused(*arguments)
