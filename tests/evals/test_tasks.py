"""Where problems come from, and what is said of a file that holds none."""

from pathlib import Path

import pytest

from reasonrt.errors import EvalError
from reasonrt.evals.lines import ANSWER, GROUP, ID, QUESTION
from reasonrt.evals.tasks import content_hash, load_task


def test_zoo_and_its_families_are_known_by_name() -> None:
    zoo, gcd = load_task("zoo", 60), load_task("gcd:3", 5)

    assert len({problem.id for problem in zoo}) == 60
    assert {problem.group.partition("/")[0] for problem in zoo} >= {"gsm_symbolic", "gcd", "sorting"}
    assert {problem.group for problem in gcd} == {"gcd/3"}


def test_the_same_task_has_the_same_problems_and_a_prefix_stays_one() -> None:
    assert load_task("zoo", 30) == load_task("zoo", 50)[:30]
    assert content_hash(load_task("zoo", 30)) != content_hash(load_task("zoo", 31))


def test_jsonl_file_is_read_with_answers_after_hashes(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "a?", "answer": "so\\n#### 5"}\n\n{"question": "b?", "answer": 7}\n')

    assert [problem.answer for problem in load_task(str(file), 10)] == ["5", "7"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"problem": "a", "answer": 4, "solution": "long"}', ("a", "4", "")),
        ('{"Problem": "a", "Solution": "so \\\\boxed{5}", "subject": "Algebra"}', ("a", "5", "Algebra")),
        ('{"prompt": "a", "answer": "", "expected_answer": "x", "group": "g", "type": "t"}', ("a", "x", "g")),
        ('{"input": "a", "target": "6"}', ("a", "6", "")),
    ],
)
def test_the_usual_names_of_fields_are_understood(tmp_path: Path, line: str, expected: tuple[str, str, str]) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(line)
    (problem,) = load_task(str(file), 10)

    assert (problem.question, problem.answer, problem.group) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"question": "a", "answer": "1"}\n{"quest', r"line 2 is no JSON: .*at character .*; correct or remove it"),
        ('{"question": "a"}', r"line 1 needs a question \(question, .*\) and an answer \(answer, .* it is"),
        ('{"question": "a", "answer": null}', "line 1 needs a question"),
        ('{"question": " ", "answer": "1"}', "line 1 needs a question"),
        ("[" * 5000, "line 1 is no JSON"),
        ("[1]", r"line 1 must be a JSON object, it is \[1\]"),
        ("", "holds no problem"),
    ],
)
def test_bad_file_is_named_with_its_line(tmp_path: Path, content: str, expected: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(content)

    with pytest.raises(EvalError, match=expected):
        load_task(str(file), 10)


@pytest.mark.parametrize(
    ("name", "limit", "expected"),
    [
        ("nothing", 5, "unknown task 'nothing'; there are .*gcd.*zoo"),
        ("gcd:1", 5000, "gcd:1 has no more than [0-9]+ different questions in the split 'test'"),
        ("gsm_symbolic:2", 5, "gsm_symbolic has one"),
        ("gcd:9", 5, "a level is FAMILY:1 to FAMILY:6"),
        ("zoo", 0, "limit must be at least 1, got 0"),
        ("no.jsonl", 5, r"cannot read no\.jsonl: No such file"),
    ],
)
def test_what_is_not_there_is_named(name: str, limit: int, expected: str) -> None:
    with pytest.raises(EvalError, match=expected):
        load_task(name, limit)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "binary.jsonl"
    file.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(EvalError, match="is not UTF-8"):
        load_task(str(file), 1)


def test_the_page_names_the_fields() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()

    for names in (QUESTION, ANSWER, GROUP):
        assert f"| {', '.join(f'`{name}`' for name in names)} |" in page
    assert all(f"`{name}`" in page for name in ID)
