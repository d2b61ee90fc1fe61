"""Problems in files."""

from pathlib import Path

import pytest

from reasonrt.errors import EvalError
from reasonrt.evals.contexts import generate, read_problems, task_names, write_problems


def test_problems_come_back_as_they_were(tmp_path: Path) -> None:
    problems = [problem for task in task_names() for problem in generate(task, 1, 5_000, 0)]

    write_problems(tmp_path / "problems.jsonl", problems)

    assert read_problems(tmp_path / "problems.jsonl") == problems


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"documents": [], "id": "x"}', '{"documents": [{"a": 1}]}', "3"])
def test_a_line_that_is_no_problem_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "problems.jsonl"
    write_problems(file, generate("variables", 1, 4_000, 0))
    file.write_text(file.read_text() + line + "\n")

    with pytest.raises(EvalError, match=r"problems\.jsonl, line 2.* write problems by write_problems"):
        read_problems(file)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="cannot read"):
        read_problems(tmp_path / "none.jsonl")
    with pytest.raises(EvalError, match="cannot write"):
        write_problems(tmp_path / "none" / "none.jsonl", [])
