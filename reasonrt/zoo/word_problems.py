"""Word problems: `gsm_symbolic` of reasoning_gym, with its printed solutions checked and worked out further.

The templates print one calculation a line. Here each calculation is verified (a few templates are wrong) and
the hard ones get their intermediate terms: `53 * €13 = €689` becomes `53 * €13 = 530 + 159 = €689`.
"""

import random
import re
from fractions import Fraction
from functools import cache
from typing import Any

from reasonrt.zoo.solution import Solution, misread
from reasonrt.zoo.worked import running_sums, worked_product, worked_quotient, worked_scaling

_NUMBER = r"[$€£]?(\d+(?:\.\d+)?)"
_UNIT = r"((?: ?[A-Za-z%][A-Za-z%/']*){0,3})"
_EQUATION = re.compile(rf"{_NUMBER}{_UNIT} ([*/+-]) {_NUMBER}{_UNIT} = {_NUMBER}(?![\d.]* ?[*/+-])")
_BY_A_FRACTION = re.compile(r"(\d+)/(\d+) / (\d+) = (\d+)(?![.\d])")  # 13 / (2/3) = 19 as the template prints it
_LONG_SUM = re.compile(rf"{_NUMBER}{_UNIT}((?: \+ {_NUMBER}{_UNIT}){{2,}}) = {_NUMBER}")

_CLEANING = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=\d),(?=\d{3}\b)", ""),  # thousands
        (r"(\d)\.0+\b", r"\1"),  # 15.0
        (r"\b(\d+)=\1\b", r"\1"),  # "receives 48=48 emails"
        (r"×|(?<=[\d)])\s*x\s*(?=[$€£]?\d)", "*"),
        (r"÷", "/"),
        (r"(?<=[\dA-Za-z)%])\s*([*+])\s*(?=[$€£(]?\d)", r" \1 "),
        (r"(?<=\d)\s*-\s*(?=[$€£]?\d)", " - "),
        (r"(?<=\d)/(?=\d+(?:\.\d+)? ?=)", " / "),
        (r"(?<=[\w)%])\s*=\s*(?=[$€£\d(])", " = "),
        (r"^\W*(?:\d+\. )?", ""),  # bullets and numbering
    )
)


@cache
def _templates() -> list[Any]:
    """The generators of gsm_symbolic that its authors take to be right, in their order."""
    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import (
        GSMSymbolicDataset,
        GSMSymbolicDatasetConfig,
        tasks_ok,
    )

    dataset = GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=0, size=1))
    return [dataset.generators[index] for index in tasks_ok]


def gsm_symbolic(rng: random.Random, level: int) -> tuple[str, Solution] | None:
    """A word problem with its solution, or None where the printed solution does not check. One level only."""
    drawn = rng.choice(_templates())(rng, 1.0)
    lines = [_clean(line) for line in str(drawn["metadata"]["answer_cot"]).split("\n")]
    answer = _plain(str(drawn["answer"]))
    steps = [line for line in lines if re.search(r"\d", line) and not line.startswith("####")]
    if steps and steps[0].startswith("Let's"):
        steps = steps[1:]
    if answer is None or not steps or any("." in step and re.search(r"\.\d{3}", step) for step in steps):
        return None
    equations = [match for step in steps for match in _EQUATION.finditer(step)]
    if any(int(a) * int(c) != int(b) * int(d) for step in steps for a, b, c, d in _BY_A_FRACTION.findall(step)):
        return None  # one template cuts halves off
    if not all(_holds(match) for match in equations) or not re.search(rf"(?<![\d.]){re.escape(answer)}\b", steps[-1]):
        return None
    worked = tuple(_work_out(step) for step in steps)
    return str(drawn["question"]), Solution(worked, answer, _checks(equations), _slip(rng, worked))


def _clean(line: str) -> str:
    if line.startswith("####"):
        return line
    for pattern, replacement in _CLEANING:
        line = pattern.sub(replacement, line)
    return line.strip()


def _plain(number: str) -> str | None:
    """`1,687.50` as `1687.5`; None for what is no number."""
    try:
        value = float(number.replace(",", ""))
    except ValueError:
        return None
    return f"{value:g}" if value < 1e6 and value != int(value) else str(int(value))


def _operands(match: re.Match[str]) -> tuple[Fraction, str, Fraction, Fraction]:
    a, _, op, b, _, c = match.groups()
    return Fraction(a), op, Fraction(b), Fraction(c)


def _stands_alone(match: re.Match[str]) -> bool:
    """Whether the matched calculation is neither about percentages nor the tail of a longer chain."""
    return "%" not in match.group(0) and not match.string[: match.start()].rstrip().endswith(("+", "-", "*", "/", "("))


def _holds(match: re.Match[str]) -> bool:
    """Whether `a op b = c` is true, where it stands alone; a part of a chain counts as true."""
    if not _stands_alone(match):
        return True
    a, op, b, c = _operands(match)
    if op == "/" and b == 0:
        return False
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else a}[op]
    return abs(value - c) <= Fraction(1, 100)


def _work_out(step: str) -> str:
    """`step` with the intermediate terms of its hard calculations written after their equals sign."""

    def insert(match: re.Match[str], terms: list[str]) -> str:
        head, _, tail = match.group(0).rpartition(" = ")
        return " = ".join([head, *terms, tail])

    def long_sum(match: re.Match[str]) -> str:
        terms = [Fraction(number) for number in re.findall(r"\d+(?:\.\d+)?", match.group(0).rpartition(" = ")[0])]
        if any(term.denominator != 1 for term in terms):
            return match.group(0)
        return insert(match, running_sums([int(term) for term in terms])[1:-1])

    def binary(match: re.Match[str]) -> str:
        if not _stands_alone(match):
            return match.group(0)
        a, op, b, _ = _operands(match)
        if op == "*" and a.denominator != 1 and b.denominator == 1:
            a, b = b, a
        if a.denominator != 1:
            return match.group(0)
        if op == "*":
            return insert(match, worked_product(int(a), int(b)) if b.denominator == 1 else worked_scaling(int(a), b))
        if op == "/" and b.denominator == 1:
            return insert(match, worked_quotient(int(a), int(b)))
        return match.group(0)

    return _EQUATION.sub(binary, _LONG_SUM.sub(long_sum, step))


def _checks(equations: list[re.Match[str]]) -> tuple[str, ...]:
    """Checks of the last one or two calculations of whole numbers, by their inverses."""
    undone = []
    for match in [match for match in equations if _stands_alone(match)][-2:]:
        a, op, b, c = _operands(match)
        if op in "+-" and all(value.denominator == 1 for value in (a, b, c)):
            undone.append(f"{c} {'-' if op == '+' else '+'} {b} = {a}")
        elif op == "*" and b and all(value.denominator == 1 for value in (a, b, c)):
            undone.append(" = ".join([f"{c} / {b}", *worked_quotient(int(c), int(b)), str(a)]))
    return tuple(undone)


def _slip(rng: random.Random, steps: tuple[str, ...]) -> tuple[int, str] | None:
    at = rng.randrange(len(steps))
    head, equals, tail = steps[at].rpartition(" = ")
    number = re.search(r"\d+", tail)
    if not equals or number is None:
        return None
    wrong = misread(int(number.group()), rng.random())
    return at, f"{head} = {tail[: number.start()]}{wrong}{tail[number.end() :]}"


def unsolvable(rng: random.Random, level: int) -> tuple[str, Solution] | None:
    """A word problem with one of its numbers taken out; it has no answer, and its trace guesses without end."""
    drawn = gsm_symbolic(rng, level)
    if drawn is None:
        return None
    question, _ = drawn
    numbers = list(re.finditer(r"(?<![\d.,/$€£])\b\d+\b(?![.,/%]\d|%|/)", question))
    if len(numbers) < 2:
        return None
    missing, other = rng.sample(numbers, 2)
    question = f"{question[: missing.start()]}some{question[missing.end() :]}"
    known, steps = int(other.group()), ["One of the numbers is missing here."]
    if known > 500:
        return None
    for guess in (rng.randint(2, 99) for _ in range(14)):
        op = rng.choice("+*-")
        value = {"+": guess + known, "*": guess * known, "-": guess - known}[op]
        terms = worked_product(guess, known) if op == "*" else []
        steps.append(" = ".join([f"Suppose it is {guess}. Then {guess} {op} {known}", *terms, str(value)]))
        steps.append(rng.choice(("But it could be another number.", "But nothing says that it is.", "Hmm, wait.")))
    return question, Solution(tuple(steps), "")
