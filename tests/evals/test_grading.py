"""Grading: what counts as the same answer, and what a grade that never ends costs."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from reasonrt.evals.grading import Grader


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        (r"\boxed{12}", "12", True),
        (r"\boxed{12.0}", "12", True),
        (r"first \boxed{3}, no: \boxed{12}", "12", True),
        (r"\boxed{1{,}234}", "1234", True),
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        (r"\boxed{\frac{2}{4}}", "1/2", True),
        (r"\boxed{3, 5, 9}", "3, 5, 9", True),
        (r"\boxed{3,5,9}", "3, 5, 9", True),
        (r"\boxed{5, 3, 9}", "3, 5, 9", False),
        (r"\boxed{2x + x}", "3x", True),
        (r"\boxed{-918}", "918", False),
        (r"\boxed{12", "12", False),
        ("so it is 7", "7", True),
        ("", "7", False),
        ("no idea", "7", False),
        (r"\boxed{9f}", "9f", True),
    ],
)
async def test_grade(text: str, gold: str, expected: bool) -> None:
    async with Grader() as grader:
        assert await grader.grade(text, gold) is expected


@pytest.mark.parametrize(("text", "gold"), [(r"\boxed{f9}", "9f"), (r"\boxed{2 + 1}", "3")])
async def test_exact_answers_are_not_met_by_algebra(text: str, gold: str) -> None:
    async with Grader() as grader:
        assert not await grader.grade(text, gold, is_exact=True)


JUDGES = """
import os, time
def hang_on_hang(text, gold):
    while "hang" in text:
        time.sleep(0.1)
    return True
def die(text, gold):
    os._exit(3)
def trip(text, gold):
    raise RecursionError
"""


@pytest.fixture
def judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Judges that misbehave, in a module that the grader's process can import."""
    (tmp_path / "misbehaving_judges.py").write_text(JUDGES)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("misbehaving_judges")


async def test_a_grade_that_hangs_counts_as_wrong_and_the_next_one_works(judges: ModuleType) -> None:
    async with Grader(timeout_s=4, judge=judges.hang_on_hang) as grader:
        assert not await grader.grade(r"\boxed{hang}", "1")
        assert await grader.grade(r"\boxed{fine}", "1")


async def test_a_grade_that_kills_its_process_counts_as_wrong(judges: ModuleType) -> None:
    async with Grader(judge=judges.die) as grader:
        assert not await grader.grade(r"\boxed{2}", "1")
        assert await grader.grade(r"\boxed{1}", "1")


async def test_a_grade_that_trips_counts_as_wrong(judges: ModuleType) -> None:
    async with Grader(judge=judges.trip) as grader:
        assert not await grader.grade(r"\boxed{2}", "1")
