"""Every task of long contexts, by name."""

from collections.abc import Callable
from random import Random

from reasonrt.errors import EvalError, shown
from reasonrt.evals.contexts.frequencies import common_words, frequent_words
from reasonrt.evals.contexts.grammar import Split
from reasonrt.evals.contexts.label_questions import label_counts, label_timeline, label_users
from reasonrt.evals.contexts.messages import Wording
from reasonrt.evals.contexts.needles import uuid_needles, word_needles
from reasonrt.evals.contexts.pairs import label_pairs
from reasonrt.evals.contexts.problem import ContextProblem, Draft
from reasonrt.evals.contexts.variables import variable_chains
from reasonrt.evals.contexts.worlds import where_object, where_person, who_has

MIN_CHARACTERS, MAX_CHARACTERS = 4_000, 4_000_000

_LITERAL: dict[str, Callable[[Random, int], Draft]] = {
    "needle_words": word_needles,
    "needle_uuids": uuid_needles,
    "variables": variable_chains,
    "common_words": common_words,
    "frequent_words": frequent_words,
    "where_person": where_person,
    "who_has": who_has,
    "where_object": where_object,
}
_SEMANTIC: dict[str, Callable[[Random, int, Wording], Draft]] = {
    "label_counts": label_counts,
    "label_users": label_users,
    "label_timeline": label_timeline,
    "label_pairs": label_pairs,
}
SEMANTIC_TASKS = tuple(_SEMANTIC)
"""Those that no search for words solves, unless the labels are written into the text."""


def task_names() -> tuple[str, ...]:
    return (*_LITERAL, *_SEMANTIC)


def generate(
    task: str, num: int, characters: int, seed: int, *, split: Split = "test", with_labels: bool = False
) -> list[ContextProblem]:
    """Problems that depend on nothing but the arguments; each of the first ones is the same for every `num`.

    Args:
        task: one of `task_names()`.
        num: >= 1.
        characters: of each context, in [4,000, 4,000,000]; kept within 2 %.
        split: which half of the clauses messages are made of; only the semantic tasks differ by it.
        with_labels: writes the labels into the text: how well a task is done when no message needs to be understood.

    Raises:
        EvalError: an unknown task, or a value out of range.
    """
    if task not in task_names():
        raise EvalError(f"unknown task {shown(task)}; there are {', '.join(task_names())}")
    if num < 1:
        raise EvalError(f"num must be at least 1, got {num}")
    if not MIN_CHARACTERS <= characters <= MAX_CHARACTERS:
        raise EvalError(f"characters must be in [{MIN_CHARACTERS}, {MAX_CHARACTERS}], got {characters}")
    if with_labels and task not in _SEMANTIC:
        raise EvalError(f"task {task!r} has no labels; leave with_labels out, or take {', '.join(_SEMANTIC)}")
    return [_problem(task, characters, seed, index, Wording(split, with_labels)) for index in range(num)]


def _problem(task: str, characters: int, seed: int, index: int, wording: Wording) -> ContextProblem:
    rng = Random(f"{task} {characters} {seed} {index} {wording.split}")  # text, as no hash of Python's own is stable
    draft = _LITERAL[task](rng, characters) if task in _LITERAL else _SEMANTIC[task](rng, characters, wording)
    name = task + ("+labels" if wording.with_labels else "") + ("" if wording.split == "test" else f"-{wording.split}")
    return ContextProblem(
        f"{name}/{characters}/{seed}/{index}",
        task,
        draft.question,
        draft.documents,
        draft.answer,
        draft.kind,
        draft.group,
        sum(len(document.text) for document in draft.documents),
    )
