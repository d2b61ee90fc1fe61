"""Scores: strict by kind, indifferent to form, and nothing for who hands the context back."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.evals.contexts import SCORES, ContextProblem, count_score, f1_score, generate, score, task_names
from reasonrt.evals.contexts.problem import Kind


def problem_of(kind: Kind, answer: str) -> ContextProblem:
    return ContextProblem("p", "task", "?", (), answer, kind, "", 4000)


@pytest.mark.parametrize(
    ("kind", "gold", "answer", "expected"),
    [
        ("number", "12", "12", 1.0),
        ("number", "12", " Answer: 12. ", 1.0),
        ("number", "12", r"I counted. \boxed{12}", 1.0),
        ("number", "1200", "1,200", 1.0),
        ("number", "12", "13", 0.0),
        ("number", "12", "12 or 13", 0.0),
        ("number", "12", "not 12", 0.0),
        ("number", "12", "", 0.0),
        ("choice", "relief", "Relief.", 1.0),
        ("choice", "relief", "**relief**", 1.0),
        ("choice", "relief", "The final answer is: relief", 1.0),
        ("choice", "relief", "not relief", 0.0),
        ("choice", "relief", "relief or distress", 0.0),
        ("text", "ab-cd", "'ab-cd'", 1.0),
        ("text", "ab-cd", "ab-cde", 0.0),
        ("set", "A, B, C", "C, A, B", 1.0),
        ("set", "A, B, C", "['A', 'B', 'C']", 1.0),
        ("set", "A, B, C", "A\nB\nC", 1.0),
        ("set", "A, B, C", "A, B", 0.0),
        ("set", "A, B, C", "A, B, C, D", 0.0),
        ("pairs", "(1, 2), (3, 4)", "(4, 3), (2, 1)", 1.0),
        ("pairs", "(1, 2), (3, 4)", "[(1, 2), (3, 4)]", 1.0),
        ("pairs", "(1, 2), (3, 4)", "1-2; 3-4", 1.0),
        ("pairs", "(1, 2), (3, 4)", "(1, 2)", 0.0),
        ("pairs", "(1, 2)", "there is (1, 2)", 0.0),
    ],
)
def test_exact_score(kind: Kind, gold: str, answer: str, expected: float) -> None:
    assert score(problem_of(kind, gold), answer) == expected


@pytest.mark.parametrize(("answer", "expected"), [("10", 1.0), ("11", 0.75), ("8", 0.75**2), ("ten", 0.0)])
def test_count_score_falls_with_distance(answer: str, expected: float) -> None:
    assert count_score(problem_of("number", "10"), answer) == pytest.approx(expected)


def test_count_score_of_an_absurd_number_is_nothing() -> None:
    assert count_score(problem_of("number", "10"), "9" * 60) == 0.0


@pytest.mark.parametrize(
    ("answer", "expected"), [("(1, 2), (3, 4)", 1.0), ("(1, 2)", 2 / 3), ("(1, 2), (5, 6)", 0.5), ("none", 0.0)]
)
def test_f1_of_pairs(answer: str, expected: float) -> None:
    assert f1_score(problem_of("pairs", "(1, 2), (3, 4)"), answer) == pytest.approx(expected)


@pytest.mark.parametrize("task", task_names())
@pytest.mark.parametrize("name", SCORES)
def test_right_answers_score_one_and_the_context_nothing(task: str, name: str) -> None:
    for problem in generate(task, 5, 4_000, 11):
        text = "".join(document.text for document in problem.documents)

        assert SCORES[name](problem, problem.answer) == 1.0
        assert SCORES[name](problem, text) == 0.0
        assert SCORES[name](problem, f"{text}\nAnswer: {problem.answer}") == 0.0
        assert SCORES[name](problem, text[: 2 * len(problem.answer) + 100] + problem.answer) < 1.0


@given(st.sets(st.integers(10_000, 99_999), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_order_does_not_matter(numbers: set[int], rng: random.Random) -> None:
    shuffled = [str(number) for number in sorted(numbers)]
    rng.shuffle(shuffled)

    assert score(problem_of("set", ", ".join(map(str, sorted(numbers)))), ", ".join(shuffled)) == 1.0


@given(st.text(max_size=200))
def test_any_text_has_a_score(text: str) -> None:
    for kind, gold in (("number", "3"), ("choice", "a"), ("set", "a, b"), ("pairs", "(1, 2)"), ("text", "x")):
        for measure in SCORES.values():
            assert 0.0 <= measure(problem_of(kind, gold), text) <= 1.0  # type: ignore[arg-type]
