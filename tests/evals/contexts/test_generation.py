"""Contexts: the same for the same seed, of the length that was asked for, with answers that can be read off them."""

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.errors import EvalError
from reasonrt.evals.contexts import SEMANTIC_TASKS, ContextProblem, generate, keyword_baseline, score, task_names
from reasonrt.evals.contexts.grammar import LABELS, OUTCOMES, WISHES
from reasonrt.types import Document

LITERAL_TASKS = [task for task in task_names() if task not in SEMANTIC_TASKS]
PRINT_HASH = """
import hashlib
from reasonrt.evals.contexts import generate, task_names
problems = [problem for task in task_names() for problem in generate(task, 2, 6000, 3)]
print(hashlib.sha256(repr(problems).encode()).hexdigest())
"""


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_the_same_in_every_process(hash_seed: str) -> None:
    """Two processes of about a second: Python's own hashes differ between them."""
    here = [problem for task in task_names() for problem in generate(task, 2, 6000, 3)]

    there = subprocess.run(
        [sys.executable, "-c", PRINT_HASH],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert there.strip() == hashlib.sha256(repr(here).encode()).hexdigest()


@pytest.mark.parametrize("task", task_names())
def test_more_problems_leave_the_first_ones_as_they_are(task: str) -> None:
    problems = generate(task, 3, 5000, 1)

    assert problems[:1] == generate(task, 1, 5000, 1)
    assert len({problem.documents for problem in problems}) == 3
    assert problems[0].documents != generate(task, 1, 5000, 2)[0].documents
    assert len({problem.id for problem in problems}) == 3


@settings(max_examples=150)
@given(task=st.sampled_from(task_names()), characters=st.integers(4_000, 40_000), seed=st.integers(0, 10**9))
def test_length_is_what_was_asked_for(task: str, characters: int, seed: int) -> None:
    (problem,) = generate(task, 1, characters, seed)

    assert problem.num_characters == sum(len(document.text) for document in problem.documents)
    assert abs(problem.num_characters - characters) <= 0.02 * characters


@pytest.mark.slow  # about ten seconds in all
@pytest.mark.parametrize("task", task_names())
def test_four_million_characters(task: str) -> None:
    (problem,) = generate(task, 1, 4_000_000, 0, with_labels=task in SEMANTIC_TASKS)

    assert abs(problem.num_characters - 4_000_000) <= 0.02 * 4_000_000
    assert score(problem, keyword_baseline(problem)) == 1.0


@pytest.mark.parametrize("task", task_names())
def test_no_two_documents_are_alike(task: str) -> None:
    (problem,) = generate(task, 1, 300_000, 4)

    assert len(problem.documents) > 10
    assert len({document.text for document in problem.documents}) == len(problem.documents)
    assert len({document.name for document in problem.documents}) == len(problem.documents)
    lengths = [len(document.text) for document in problem.documents]
    assert max(lengths) - min(lengths) < 0.1 * max(lengths)


@settings(max_examples=60)
@given(task=st.sampled_from(LITERAL_TASKS), characters=st.integers(4_000, 60_000), seed=st.integers(0, 10**9))
def test_reading_every_line_gives_the_answer(task: str, characters: int, seed: int) -> None:
    (problem,) = generate(task, 1, characters, seed)

    assert score(problem, keyword_baseline(problem)) == 1.0


@settings(max_examples=60)
@given(task=st.sampled_from(SEMANTIC_TASKS), characters=st.integers(4_000, 60_000), seed=st.integers(0, 10**9))
def test_reading_every_written_label_gives_the_answer(task: str, characters: int, seed: int) -> None:
    (problem,) = generate(task, 1, characters, seed, with_labels=True)

    assert score(problem, keyword_baseline(problem)) == 1.0


@settings(max_examples=25)
@given(task=st.sampled_from(SEMANTIC_TASKS), characters=st.integers(4_000, 20_000), seed=st.integers(0, 10**9))
def test_understanding_every_message_gives_the_answer(task: str, characters: int, seed: int) -> None:
    (problem,) = generate(task, 1, characters, seed)

    understood = replace(problem, documents=tuple(map(understand, problem.documents)))

    assert score(understood, keyword_baseline(understood)) == 1.0


@pytest.mark.parametrize("task", ["needle_words", "needle_uuids", "variables"])
def test_needles_are_anywhere(task: str) -> None:
    places = [place_of_answer(problem) for problem in generate(task, 120, 6000, 5)]

    fifths = [int(place * 5) for place in places]
    assert min(fifths.count(fifth) for fifth in range(5)) >= 10  # 24 are expected; fewer than 10 once in 2,000 runs


@pytest.mark.parametrize("task", ["where_person", "who_has", "where_object"])
def test_what_decides_in_a_world_is_anywhere(task: str) -> None:
    places = [place_of_decision(problem) for problem in generate(task, 120, 40_000, 6)]

    fifths = [int(place * 5) for place in places]
    assert min(fifths.count(fifth) for fifth in range(5)) >= 5


def test_needles_have_one_value_each() -> None:
    for problem in generate("needle_words", 5, 50_000, 0):
        needles = re.findall(r"of ([\w-]+) is (\d+)\.", text_of(problem))

        assert len(dict(needles)) == len(needles)
        assert len({value for _, value in needles}) == len(needles)


def test_four_fifths_of_the_messages_are_by_a_fifth_of_the_users() -> None:
    users = re.findall(r"User: (\d+)", text_of(generate("label_counts", 1, 400_000, 0)[0]))

    counts = sorted((users.count(user) for user in set(users)), reverse=True)

    assert sum(counts[: len(counts) // 5]) / len(users) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("task", SEMANTIC_TASKS)
def test_halves_share_no_clause(task: str) -> None:
    halves = [
        {clause_of(line) for line in lines_of(generate(task, 1, 40_000, 0, split=split)[0])}
        for split in ("train", "test")
    ]

    assert not halves[0] & halves[1]


def test_answers_vary() -> None:
    answers = [problem.answer for problem in generate("label_counts", 120, 8_000, 0) if problem.kind == "choice"]

    assert {label: answers.count(label) >= 10 for label in LABELS} == dict.fromkeys(LABELS, True)


@pytest.mark.parametrize(
    ("task", "num", "characters", "with_labels", "reason"),
    [
        ("nonsense", 1, 5000, False, "unknown task 'nonsense'; there are needle_words"),
        ("variables", 0, 5000, False, "num must be at least 1, got 0"),
        ("variables", 1, 3999, False, r"characters must be in \[4000, 4000000\], got 3999"),
        ("variables", 1, 4_000_001, False, "got 4000001"),
        ("variables", 1, 5000, True, "has no labels"),
    ],
)
def test_what_cannot_be_generated_is_refused(
    task: str, num: int, characters: int, with_labels: bool, reason: str
) -> None:
    with pytest.raises(EvalError, match=reason):
        generate(task, num, characters, 0, with_labels=with_labels)


def text_of(problem: ContextProblem) -> str:
    return "".join(document.text for document in problem.documents)


def lines_of(problem: ContextProblem) -> list[str]:
    return [line.partition("Instance: ")[2] for line in text_of(problem).splitlines()]


def place_of_answer(problem: ContextProblem) -> float:
    text = text_of(problem)
    return text.index(problem.answer[:5]) / len(text)  # of variables: the first name


def place_of_decision(problem: ContextProblem) -> float:
    """Of the first place from which on a reader who forgets all that is before still finds the answer."""
    text = text_of(problem)
    sentences = [match.start() for match in re.finditer(r"[^.]+\.", text)]
    known, unknown = 0, len(sentences)
    while unknown - known > 1:
        middle = (known + unknown) // 2
        rest = replace(problem, documents=(Document(text[sentences[middle] :]),))
        known, unknown = (middle, unknown) if keyword_baseline(rest) == problem.answer else (known, middle)
    return sentences[known] / len(text)


def understand(document: Document) -> Document:
    """With the label of each line written at its end, found by the clauses themselves."""
    lines = [f"{line} || Label: {label_of(line.partition('Instance: ')[2])}\n" for line in document.text.splitlines()]
    return Document("".join(lines), document.name)


def label_of(text: str) -> str:
    wanted, happened = (sense_of(text, pairs) for pairs in (WISHES, OUTCOMES))
    names = {(0, 0): "satisfaction", (0, 1): "disappointment", (1, 0): "distress", (1, 1): "relief"}
    return names[wanted, happened]


def clause_of(text: str) -> str:
    return next(pair[0] for pair in OUTCOMES if any(pattern_of(clause).search(text) for clause in pair))


def sense_of(text: str, pairs: tuple[tuple[str, str], ...]) -> int:
    (sense,) = {index for pair in pairs for index, clause in enumerate(pair) if pattern_of(clause).search(text)}
    return sense


def pattern_of(clause: str) -> re.Pattern[str]:
    return re.compile(r"\b" + re.sub(r"\{\w+\}", r"[\\w -]+?", clause) + r"\b", re.IGNORECASE)
