"""The baseline that searches for words: it knows nothing of what is said in other words."""

from random import Random

import pytest

from reasonrt.evals.contexts import SEMANTIC_TASKS, generate, keyword_baseline, score
from reasonrt.evals.contexts.baseline import guess_label
from reasonrt.evals.contexts.grammar import LABELS, Split, message


def accuracy_of_guesses(split: Split) -> float:
    rng = Random(9)
    guesses = [guess_label(message(rng, label, split).text) == label for label in LABELS for _ in range(500)]
    return sum(guesses) / len(guesses)


def test_phrases_tell_the_labels_of_the_half_that_they_were_learned_from_and_not_of_the_other() -> None:
    assert accuracy_of_guesses("train") >= 0.85  # the baseline is no straw man
    assert accuracy_of_guesses("test") <= 0.35  # a guess is right in 0.25


@pytest.mark.parametrize("task", SEMANTIC_TASKS)
def test_semantic_tasks_are_not_solved_by_phrases(task: str) -> None:
    """About a second each."""
    problems = generate(task, 150, 16_000, 2)

    assert sum(score(problem, keyword_baseline(problem)) for problem in problems) / len(problems) <= 0.45


@pytest.mark.parametrize("task", SEMANTIC_TASKS)
def test_written_labels_are_the_ceiling(task: str) -> None:
    problems = generate(task, 40, 16_000, 2, with_labels=True)

    assert all(score(problem, keyword_baseline(problem)) == 1.0 for problem in problems)
