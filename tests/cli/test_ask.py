"""`reasonrt ask` and `reasonrt replay` from end to end: a model that says what it is told to, in the real sandbox."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from reasonrt.cli.main import app
from reasonrt.errors import ReasonRTError

PACKAGE = '''
from reasonrt.engines.scripted import ScriptedEngine


def block(code):
    return f"Look.\\n```repl\\n{code}\\n```\\n"


class Searching(ScriptedEngine):
    """Looks for a needle and answers with its colour; the question says what else it does."""

    def __init__(self, name, **settings):
        super().__init__(name, self._say, **settings)

    @staticmethod
    def _say(prompt, sampling):
        if "[system] You answer a question about a context" not in prompt:
            return "directly blue"
        question = prompt.partition("Question: ")[2].partition("\\n")[0]
        if "escape" in question:
            return block("final('[bold]red[/]\\\\x1b[2J\\\\nnext')")
        if "nothing" in question:
            return "The answer is blue."
        if "number" in question:
            return block("final(map_llm('How many?', chunk(), ['one', 'two'])[0])")
        if prompt.count("\\n[assistant] ") == 1:
            return block("hits = grep('needle is')")
        return block("final(hits[0]['text'].split()[-1], evidence=hits[:1])")
'''
OPTIONS = "program_search@direct=never,k=3"
NEEDLE = "the needle is blue"
QUESTION = "What colour is the needle?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where commands are run: a configuration with the engine of an installed package, and a file to ask about."""
    folder = tmp_path_factory.mktemp("ask")
    information = folder / "package" / "searching-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / "package" / "searching_engine.py").write_text(PACKAGE)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: searching\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[reasonrt.engines]\nsearching = searching_engine:Searching\n")
    (folder / "reasonrt.yaml").write_text("engines: {target: {kind: plugin, name: searching}}\n")
    (folder / "log.txt").write_text("".join(f"line {number}\n" for number in range(1, 100)) + NEEDLE + "\nend\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "package"))
        yield folder


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def ask(*arguments: str, policy: str = OPTIONS, stdin: str = "") -> Result:
    done = run("ask", *arguments, "--policy", policy, "--seed", "7", stdin=stdin)
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def refused(*arguments: str) -> str:
    """The one line that `main` prints for an error of ours."""
    done = run(*arguments)
    assert isinstance(done.exception, ReasonRTError), (done.output, done.exception)
    told = str(done.exception)
    assert "\n" not in told
    assert len(told) < 400
    return told


@pytest.fixture(scope="module")
def answered(folder: Path) -> Result:
    """A run that has written everything there is to write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return ask("log.txt", QUESTION, "--json", "out.json", "--trace", "deep/trace.json", "--journal", "journal.json")


def test_answer_comes_with_file_line_and_the_text_around_it(answered: Result) -> None:
    answer, place, text, votes, cost = answered.stdout.splitlines()

    assert answer == "blue"
    assert re.fullmatch(r"log\.txt:100 characters \d+-\d+", place)
    assert "line 98 line 99 the needle is blue end" in text
    assert votes == "plurality: blue 100% · candidates: 2 final · 4 programs · 0 sub-questions"
    assert re.fullmatch(r"\d+\.\d s · [\d,]+ tokens generated · stop", cost)


def test_progress_is_a_line_for_each_candidate_on_standard_error(answered: Result) -> None:
    first, second = answered.stderr.splitlines()

    assert "1 of 2 candidates ended" in first
    assert "2 of 2 candidates ended" in second
    assert second.endswith("so far: blue ×2")
    assert "candidates ended" not in answered.stdout


def test_json_has_the_answer_what_it_rests_on_and_what_it_cost(folder: Path, answered: Result) -> None:
    value = json.loads((folder / "out.json").read_text())

    assert value["details"]["answer"] == "blue"
    (evidence,) = value["details"]["evidence"]
    text = (folder / "log.txt").read_text()
    assert text[evidence["start"] : evidence["end"]] == evidence["text"] == NEEDLE
    assert (evidence["name"], evidence["line"]) == ("log.txt", 100)
    assert value["usage"]["target"]["generated"] > 0
    assert not {"trace", "journal"} & set(value["details"])


def test_trace_is_what_the_page_shows(folder: Path, answered: Result) -> None:
    value = json.loads((folder / "deep/trace.json").read_text())

    assert value["schema"] == "reasonrt.program_trace/1"
    assert [trial["answer"] for trial in value["trials"]] == ["blue"] * 2
    assert value["trials"][0]["turns"][0]["code"] == "hits = grep('needle is')"


def test_standard_input_and_several_files_are_one_context() -> None:
    done = ask("-", "log.txt", "Where is green?", stdin="another needle is green\n")

    assert done.stdout.splitlines()[:2] == ["green", "standard input:1 characters 0-23"]


@pytest.mark.parametrize("question", [QUESTION, "By which number is it?"])
def test_replay_of_a_journal_is_the_same_run(folder: Path, question: str) -> None:
    ask("log.txt", question, "--journal", "recorded.json", "--trace", "trace.json")

    again = run("replay", "recorded.json", "--trace", "again.json")

    assert again.exit_code == 0, (again.output, again.exception)
    assert "the same trace" in again.stdout
    recorded, replayed = (json.loads((folder / name).read_text()) for name in ("trace.json", "again.json"))
    assert recorded["trace_hash"] == replayed["trace_hash"]
    assert recorded["trace_hash"] in again.stdout
    assert recorded["answer"] == replayed["answer"]


def changed(folder: Path, answered: Result, change: Any) -> str:
    """A journal in which something was changed, by its name."""
    value = json.loads((folder / "journal.json").read_text())
    change(value)
    (folder / "changed.json").write_text(json.dumps(value))
    return "changed.json"


def test_replay_of_what_the_model_did_not_say_is_another_trace(folder: Path, answered: Result) -> None:
    def change(value: Any) -> None:
        """The model was surer than it said."""
        sure = [0.0] * 9 + [1.0]
        value["replies"] |= {key: [sure] for key, said in value["replies"].items() if isinstance(said[0], list)}

    done = run("replay", changed(folder, answered, change))

    assert done.exit_code == 1
    assert "another trace" in done.stdout


def test_replay_of_other_documents_or_another_question_is_one_line(folder: Path, answered: Result) -> None:
    assert "another course" in refused(
        "replay", changed(folder, answered, lambda value: value.update(question="Else?"))
    )
    assert "another course" in refused(
        "replay", changed(folder, answered, lambda value: value["documents"][0].update(text="x"))
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(schema="another/1"),
        lambda value: value.pop("nonce"),
        lambda value: value.update(documents=7),
        lambda value: value.update(documents=[{"text": 7}]),
        lambda value: value.update(replies=[]),
        lambda value: value.update(seed="x"),
        lambda value: value.update(options={"k": 0}),
        lambda value: value.update(options=[]),
        lambda value: value.update(order=["x"]),
        lambda value: value.update(order=[99]),
        lambda value: value.update(weights="{}"),
        lambda value: value.update(weights=7),
        lambda value: value.update(replies=dict.fromkeys(value["replies"], 7)),
        lambda value: value.update(replies={key: [] for key in value["replies"]}),
        lambda value: value.update(replies={key: [{"text": 7}] for key in value["replies"]}),
    ],
)
def test_journal_that_somebody_has_spoilt_is_one_line(folder: Path, answered: Result, change: Any) -> None:
    assert refused("replay", changed(folder, answered, change))


def test_file_that_is_no_journal_is_one_line(folder: Path) -> None:
    (folder / "null.json").write_text("null")

    assert "null.json is no journal" in refused("replay", "null.json")
    assert "log.txt is no JSON" in refused("replay", "log.txt")
    assert "cannot read absent.json" in refused("replay", "absent.json")


def test_text_of_models_and_documents_never_acts_on_the_terminal() -> None:
    done = ask("log.txt", "Answer with an escape.")

    assert "\x1b" not in done.stdout + done.stderr
    assert "[bold]red[/]" in done.stdout
    assert len(done.stderr.splitlines()) == 2


def test_context_that_fits_is_asked_directly_and_no_trace_is_made_up(folder: Path) -> None:
    done = ask(
        "log.txt", QUESTION, "--trace", "no/trace.json", "--journal", "no/x.json", policy="program_search@direct=always"
    )

    assert done.stdout.splitlines()[0] == "directly blue"
    assert "no programs were run" in done.stdout
    assert not (folder / "no").exists()


def test_run_without_an_answer_says_so(folder: Path) -> None:
    done = ask("log.txt", "Say nothing by code.", "--json", "out.json")

    assert done.stdout.splitlines()[0] == "No program gave an answer."
    assert json.loads((folder / "out.json").read_text())["details"]["status"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ask", QUESTION], "name at least one file before the question"),
        (["ask", "absent.txt", QUESTION], "there is no file absent.txt"),
        (["ask", "log.txt", " "], "the prompt is empty"),
        (["ask", "log.txt", "What is \udcff?"], "the question is not UTF-8 text"),
        (["ask", "log.txt", QUESTION, "--model", "no-model"], "there is no model folder no-model"),
        (["ask", "log.txt", QUESTION, "--config", "no.yaml"], "cannot read no.yaml"),
        (["ask", "log.txt", QUESTION, "--policy", "program_search@k=0"], "k must be a whole number in [1, 32], got 0"),
        (["ask", "log.txt", QUESTION, "--policy", "program_search@strategy=best"], "strategy"),
        (["ask", "log.txt", QUESTION, "--policy", "program_search@weights=no.json"], "no.json"),
        (["ask", "log.txt", QUESTION, "--policy", "target"], "reads no context"),
        (["ask", "log.txt", QUESTION, "--policy", "magic"], "unknown policy 'magic'"),
        (["ask", "log.txt", QUESTION, "--deadline", "0"], "deadline_s must be positive"),
        (["ask", "log.txt", QUESTION, "--policy", OPTIONS, "--trace", "log.txt/x.json"], "log.txt/x.json"),
        (["ask", "log.txt", QUESTION, "--policy", "program_search@engine=draft"], "draft"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: list[str], expected: str) -> None:
    assert expected in refused(*arguments)
