"""Questions have right answers, true solutions, levels that mean something, and splits that never meet."""

import ast
import itertools
import math
import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.zoo.corpus import TRAINING_SHARES
from reasonrt.zoo.problems import FAMILIES, LEVELS, MIXTURE, SPLITS, Problem, is_split, mixture, problems, split_of
from reasonrt.zoo.traces import trace

WORDS = ("gsm_symbolic", "unsolvable")
ARITHMETIC = tuple(family for family in FAMILIES if family not in WORDS)
KINDS = [(family, level) for family in ARITHMETIC for level in LEVELS] + [(family, 1) for family in WORDS]


def draw(split: str, family: str, level: int, n: int) -> list[Problem]:
    return list(itertools.islice(problems(split, family, level), n))


# --- splits


def test_splits_share_nothing_out_and_leave_nothing_over() -> None:
    ranges = sorted((low, high) for _, low, high in SPLITS.values())

    assert [low for low, _ in ranges] == [0, *(high for _, high in ranges[:-1])]
    assert ranges[-1][1] == 100
    assert len({seed for seed, _, _ in SPLITS.values()}) == len(SPLITS)


def test_a_split_that_is_drawn_again_has_other_problems_of_the_same_split() -> None:
    first, again = draw("certify", "chain_sum", 4, 40), draw("certify-2", "chain_sum", 4, 40)

    assert not {problem.question for problem in first} & {problem.question for problem in again}
    assert not {problem.id for problem in first} & {problem.id for problem in again}
    assert {split_of(problem.question) for problem in again} == {"certify"}
    assert [is_split(name) for name in ("test", "test-2", "test-17", "test-1", "test-", "test-x", "tests")] == [
        True, True, True, False, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("family", "level"), [(*WORDS[:1], 1), ("unsolvable", 1), ("product", 1), ("sorting", 4)])
def test_every_question_is_in_its_split(split: str, family: str, level: int) -> None:
    assert {split_of(problem.question) for problem in draw(split, family, level, 40)} == {split}


@pytest.fixture(scope="module")
def bench() -> list[Problem]:
    """The first 600 problems of the bench; about 2 s."""
    return mixture("test", 600)


def test_no_test_question_is_in_training(bench: list[Problem]) -> None:
    training = [problem for key in TRAINING_SHARES if key[0] in FAMILIES for problem in draw("train", *key, 300)]
    training += mixture("train", 3000)
    unseen = {"test": bench, "router": mixture("router", 100), "certify": mixture("certify", 100)}

    seen = {problem.question for problem in training}
    assert len(seen) > 5000
    for chosen in unseen.values():
        assert not seen & {problem.question for problem in chosen}
    for a, b in itertools.combinations(unseen.values(), 2):
        assert not {problem.question for problem in a} & {problem.question for problem in b}


def test_problems_are_the_same_every_time() -> None:
    for family in FAMILIES:
        assert draw("test", family, 1, 5) == draw("test", family, 1, 5)


# --- the mixture


def test_shares_of_the_mixture_add_up() -> None:
    assert math.fsum(MIXTURE.values()) == pytest.approx(1.0)
    assert {family for family, _ in MIXTURE} == {*ARITHMETIC, "gsm_symbolic"}  # what cannot be solved is not measured


def test_every_prefix_of_the_mixture_holds_its_shares(bench: list[Problem]) -> None:
    taken: Counter[tuple[str, int]] = Counter()

    for n, problem in enumerate(bench, start=1):
        taken[problem.family, problem.level] += 1
        assert all(abs(taken[key] - share * n) < 1.5 for key, share in MIXTURE.items())


@settings(deadline=None, max_examples=15)  # about 2 s
@given(n=st.integers(0, 60))
def test_a_shorter_mixture_is_the_beginning_of_a_longer_one(bench: list[Problem], n: int) -> None:
    assert mixture("test", n) == bench[:n]


def test_no_question_comes_twice(bench: list[Problem]) -> None:
    questions = [problem.question for problem in bench]

    assert len(set(questions)) == len(questions)


def test_mixture_of_other_shares() -> None:
    chosen = mixture("test", 40, {("gcd", 1): 0.75, ("sorting", 2): 0.25})

    assert Counter(problem.family for problem in chosen) == {"gcd": 30, "sorting": 10}


def test_mixture_of_shares_that_do_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must add up to 1, got 1\.5"):
        mixture("test", 1, {("gcd", 1): 1.0, ("sorting", 2): 0.5})


# --- answers, computed from the question's words alone


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"-?\d+", text)]


def right_answer(problem: Problem) -> str:
    question = problem.question
    if problem.family == "chain_sum":
        terms = question.partition("problem: ")[2].removesuffix(" =").replace(" - ", " -").replace(" + ", " ")
        return str(sum(map(int, terms.split())))
    if problem.family == "product":
        return str(math.prod(numbers(question)))
    if problem.family == "gcd":
        return str(math.gcd(*numbers(question)))
    if problem.family == "sorting":
        return ", ".join(map(str, sorted(numbers(question), reverse="descending" in question)))
    raise AssertionError(problem.family)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", [family for family in ARITHMETIC if family != "base_conversion"])
def test_answer_is_right(family: str, level: int) -> None:
    for problem in draw("test", family, level, 200):
        assert problem.answer == right_answer(problem)


@pytest.mark.parametrize("level", LEVELS)
def test_base_conversion_is_right(level: int) -> None:
    for problem in draw("test", "base_conversion", level, 200):
        match = re.match(r"Convert the base-(\d+) number ([0-9a-f]+) to base-(\d+)\.", problem.question)
        assert match
        source, written, target = int(match[1]), match[2], int(match[3])
        assert int(problem.answer, target) == int(written, source)
        assert problem.answer == problem.answer.lower().lstrip("0")
        assert source != target


def test_word_problem_keeps_question_and_answer_of_its_template() -> None:
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import (
        GSMSymbolicDataset,
        GSMSymbolicDatasetConfig,
        tasks_ok,
    )

    dataset = GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=0, size=1))
    templates = [dataset.generators[index] for index in tasks_ok]
    seed, _, _ = SPLITS["test"]

    for problem in draw("test", "gsm_symbolic", 1, 150):
        rng = random.Random(f"{seed}/gsm_symbolic/1/{problem.id.rpartition('/')[2]}")
        printed = rng.choice(templates)(rng, 1.0)
        assert problem.question == printed["question"]
        assert Fraction(problem.answer) == Fraction(str(printed["answer"]).replace(",", ""))
        assert problem.answer in problem.solution.steps[-1]


def test_unsolvable_problem_lacks_a_number_and_an_answer() -> None:
    for problem in draw("train", "unsolvable", 1, 100):
        assert problem.answer == ""
        assert "some" in problem.question
        assert problem.solution.steps[0] == "One of the numbers is missing here."


# --- what the solutions say is true

OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
EXPRESSION = r"([-(]*\d[\d.+\-*/() ]*)"
UNITS = re.compile(r"(?<=\d)(?: [A-Za-z][A-Za-z']*(?:/[A-Za-z]+)?){1,3}(?= [-+*/=] )")
BY_A_FRACTION = re.compile(r"(\d+)/(\d+) / (\d+)")  # a template's way to write 10 / (2/5)


def value(expression: str) -> Fraction:
    def of(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](of(node.left), of(node.right))
        if isinstance(node, ast.UnaryOp):
            return -of(node.operand)
        return Fraction(ast.get_source_segment(expression, node) or "")

    return of(ast.parse(expression, mode="eval").body)


def equations(text: str) -> Iterator[tuple[Fraction, Fraction, str]]:
    """Both sides of each equation in `text` that reads as one, and what was read."""
    text = re.sub(r"[$€£]", "", text).replace(" x ", " * ")
    for clause in re.split(r": |, | So |; ", UNITS.sub("", text)):
        for left, right in itertools.pairwise(clause.split("=")):
            head = re.search(rf"(?:^|[A-Za-z.?!]\s)\s*{EXPRESSION}$", left)
            tail = re.match(rf"\s*{EXPRESSION}", right)
            if head and tail:
                a, b = head[1].strip(), tail[1].strip().rstrip(".+-*/ (")
                a = BY_A_FRACTION.sub(r"\1 / (\2 / \3)", a)
                try:
                    yield value(a), value(b), f"{a} = {b}"
                except (SyntaxError, ValueError, ZeroDivisionError):
                    continue  # a sentence, not an equation


def test_equations_are_read() -> None:
    read: list[tuple[object, object]] = [
        (a, b) for a, b, _ in equations("He pays 2 coins * €3 = 4 + 2 = €7 in all: 1+1=2, so 2 pears - 1 = 1 pear")
    ]

    assert read == [(6, 6), (6, 7), (2, 2), (1, 1)]


@pytest.mark.parametrize(("family", "level"), KINDS)
def test_every_equation_in_a_solution_is_true(family: str, level: int) -> None:
    num_read = 0

    for problem in draw("train", family, level, 1500 if family == "gsm_symbolic" else 150):
        for step in (*problem.solution.steps, *problem.solution.checks):
            for left, right, read in equations(step):
                num_read += 1
                assert left == right or BY_A_FRACTION.search(step), f"{read} in {step!r}"

    assert num_read > 300 or family == "sorting"


def test_every_division_by_a_fraction_is_true() -> None:
    for problem in draw("train", "gsm_symbolic", 1, 3000):
        for step in problem.solution.steps:
            if BY_A_FRACTION.search(step):
                assert all(left == right for left, right, _ in equations(step)), step


def test_sorting_picks_the_extreme_and_leaves_the_others() -> None:
    for problem in draw("train", "sorting", 4, 100):
        left = numbers(problem.question)
        for step in problem.solution.steps:
            pick, *rest = numbers(step)
            assert pick == (max(left) if step.startswith("Largest") else min(left))
            left.remove(pick)
            assert rest == left


@pytest.mark.parametrize(("family", "level"), KINDS)
def test_a_slip_is_wrong(family: str, level: int) -> None:
    slips = [
        (problem.solution.steps[at], slip)
        for problem in draw("train", family, level, 100)
        if problem.solution.slip
        for at, slip in [problem.solution.slip]
    ]

    assert all(step != slip for step, slip in slips)
    assert slips or family in ("base_conversion", "unsolvable")


@pytest.mark.parametrize("family", ARITHMETIC)
def test_each_level_asks_for_longer_solutions(family: str) -> None:
    def length(level: int) -> float:
        rng = random.Random(0)
        chosen = draw("train", family, level, 300)
        return mean(len("".join(text for text, _ in trace(problem, rng))) for problem in chosen)

    lengths = [length(level) for level in LEVELS]

    assert lengths == sorted(lengths)
    assert lengths[-1] > 2 * lengths[0]
