"""The other grammar: it says the same, in other words."""

import itertools
import random
import re
from fractions import Fraction
from functools import cache

import pytest

from reasonrt.answers import find_answer
from reasonrt.zoo.problems import FAMILIES, Problem, problems
from reasonrt.zoo.recipe import RECIPES
from reasonrt.zoo.rewording import reword, reworded
from reasonrt.zoo.traces import trace

_SIDE = r"-?[\d(](?:[\d.+\-*/() ]*[\d)])?"
_EQUATIONS = re.compile(rf"(?<![%/*+(-] )(?<![\w.%]){_SIDE}(?: = {_SIDE})+(?![\w%])")
ARITHMETIC = sorted(set(FAMILIES) - {"unsolvable", "gsm_symbolic"})


@cache
def drawn(family: str) -> list[Problem]:
    levels = [1] if family == "gsm_symbolic" else [1, 2, 3, 4]
    return [each for level in levels for each in itertools.islice(problems("train", family, level), 15)]


def wrong_equations(step: str) -> list[str]:
    """Of the calculations in figures, those that do not hold."""

    def value(side: str) -> Fraction:
        numbers = re.sub(r"\d+(?:\.\d+)?", lambda match: f"Fraction('{match[0]}')", side)
        return Fraction(eval(numbers, {"Fraction": Fraction}))  # noqa: S307 - of figures and signs alone

    found = []
    for equation in _EQUATIONS.findall(step):
        sides = [side.strip() for side in equation.split(" = ")]
        try:
            values = [value(side) for side in sides]
        except (SyntaxError, TypeError, ZeroDivisionError):  # `2(10)`, or a sentence's dash
            continue
        found += [equation] * (max(values) - min(values) > Fraction(1, 100))
    return found


def text_of(problem: Problem, wording: str) -> str:
    return "".join(text for text, _ in trace(problem, random.Random(0), wording=wording))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["gsm_symbolic", *ARITHMETIC])
def test_every_calculation_holds_and_the_answer_is_the_same(family: str) -> None:
    checked = 0
    for problem in drawn(family):
        other = reworded(problem.solution)
        assert other.answer == problem.answer
        assert find_answer(text_of(problem, "other")) == find_answer(text_of(problem, "own"))
        for step in (*problem.solution.steps, *problem.solution.checks):
            parts = reword(step)
            if not wrong_equations(step):
                assert not [wrong for part in parts for wrong in wrong_equations(part)], (step, parts)
            checked += sum(" = " in part for part in parts)
            numbers = {each.lstrip("-") for each in re.findall(r"-?\d+(?:\.\d+)?", step)}
            assert numbers == {each.lstrip("-") for part in parts for each in re.findall(r"-?\d+(?:\.\d+)?", part)}
    assert checked or family == "sorting"


def test_a_wrong_calculation_would_be_seen() -> None:
    assert wrong_equations("Tom has 3 + 4 = 8 apples")
    assert wrong_equations("3 * 4 = 6 + 6 = 13")
    assert not wrong_equations("3 * 4 = 6 + 6 = 12")


@pytest.mark.parametrize("family", ["gsm_symbolic", *ARITHMETIC])
def test_its_steps_are_others_and_no_longer(family: str) -> None:
    own = [step for problem in drawn(family) for step in problem.solution.steps]
    other = [step for problem in drawn(family) for step in reworded(problem.solution).steps]

    assert len(set(own) & set(other)) < (0.35 if family == "gsm_symbolic" else 0.1) * len(own)
    assert sum(map(len, other)) / len(other) <= 1.02 * sum(map(len, own)) / len(own)
    assert len(other) >= len(own)


@pytest.mark.parametrize(
    ("step", "parts"),
    [
        ("12 + 30 = 42", ["30 + 12 = 42"]),
        ("5 - 67 = -62", ["We get 5 - 67 = -62"]),
        ("-62 + 8 = -54", ["We get -62 + 8 = -54"]),
        ("65 * 7 = 420 + 35 = 455", ["7 * 65 = 420 + 35", "420 + 35 = 455"]),
        (
            "59 + 14: 9+4=13, 5+1+1=7. So 59 + 14 = 73",
            ["14 + 59, column by column: 9+4=13, 5+1+1=7", "That is 73"],
        ),
        ("588 * 1 = 588, and 987 - 588 = 399", ["1 * 588 = 588", "We get 987 - 588 = 399"]),
        ("484 = 7 * 69 + 1, digits 1", ["69 * 7 + 1 = 484", "Digits so far: 1"]),
        ("Smallest 52, left 109, 100", ["Next comes 52", "Remaining: 109, 100"]),
        ("Benjamin hides 9 * 12 = 90 + 18 = 108 eggs.", ["12 * 9 = 90 + 18", "Benjamin hides 90 + 18 = 108 eggs."]),
        ("Emma finds 5 eggs.", ["Emma finds 5 eggs."]),
    ],
)
def test_each_kind_of_step_has_its_words(step: str, parts: list[str]) -> None:
    assert reword(step) == parts


def test_a_recipe_learns_it() -> None:
    other, own = RECIPES["nano-draft-other"], RECIPES["nano-draft"]

    assert (other.wording, own.wording) == ("other", "own")
    assert (other.hidden, other.layers, other.tokens) == (own.hidden, own.layers, own.tokens)


def test_phrases_between_the_steps_are_others_too() -> None:
    problem = next(each for each in drawn("gcd") if each.level >= 3)
    own, other = (
        {step for step in text_of(problem, wording).split("\n\n") if not step.startswith("\\boxed")}
        for wording in ("own", "other")
    )

    assert own & other <= {"</think>"}
