"""The worked solutions in another grammar, for a draft whose wording is not its target's.

Other phrases, summands and factors in the other order, and shorter steps; the same numbers and the same answer. What a
draft writes that has learned this is as good as what the target would have written, and hardly ever the same tokens.
"""

import re

from reasonrt.zoo.solution import Solution

_NUMBER = r"[$€£]?\d+(?:\.\d+)?"
_CALCULATION = re.compile(rf"(?:^|(?<= ))(?<![*/+-] )-?{_NUMBER}(?: [*/+-] {_NUMBER})+$")
_TERMS = re.compile(r"[\d.+\-*/() $€£]+")
_SELECTION = re.compile(r"(?:Smallest|Largest) (\S+), left (.+)")
_DIVISION = re.compile(r"(\d+) = (\d+) \* (\d+) \+ (\d+), digits (\w+)")
_COLUMNS = re.compile(r"(.*?)(-?\d+ [+-] \d+): (\d.*)\. So .* = (-?\d+)")

_PHRASES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^First find ", "Begin with "),
        (r"^Then find ", "Next comes "),
        (r"^Then ", "After that, "),
        (r"^Which means there are ", "This makes "),
        (r"^There (are|were|is) ", r"One finds that there \1 "),
        (r"^(?:So|Thus|Therefore),? (?:in total, )?", "Hence "),
        (r"^The total ", "Altogether the "),
        (r"^(Each|In) ", r"Note: \1 "),
        (r"^(He|She|They|It) ", r"As \1 "),
        (r"\bbecause\b", "since"),
        (r"\ba total of\b", "altogether"),
        (r"\bin total\b", "altogether"),
        (r"^Going back from the end: ", "Backwards: "),
        (r"^The last digits give ", "Last digits: "),
        (r"^In order: ", "The order is right: "),
    )
)


def reworded(solution: Solution) -> Solution:
    """`solution` in the other grammar; no step of it is written wrong first."""
    steps = (part for step in solution.steps for part in reword(step))
    checks = (part for check in solution.checks for part in reword(check))
    return Solution(tuple(steps), solution.answer, tuple(checks))


def reword(step: str) -> list[str]:
    """The steps, one or more, that say in the other grammar what `step` says."""
    if match := _SELECTION.fullmatch(step):
        return [f"Next comes {match[1]}", f"Remaining: {match[2]}"]
    if match := _DIVISION.fullmatch(step):
        value, base, quotient, digit, digits = match.groups()
        return [f"{quotient} * {base} + {digit} = {value}", f"Digits so far: {digits}"]
    if match := _COLUMNS.fullmatch(step):
        lead, sum_, columns, value = match.groups()
        return [f"{_phrased(lead)}{_turned(sum_)}, column by column: {columns}", f"That is {value}"]
    first, joined, second = step.partition(", and ")
    if joined and " = " in first and " = " in second:
        return [*_equation(first), *_equation(second)]
    return _equation(step)


def _equation(step: str) -> list[str]:
    """A calculation in turned order, one sign of equality a step; another sentence in other words."""
    left, *middle = step.split(" = ")
    right = middle.pop() if middle else ""
    calculation = _CALCULATION.search(left)
    if not (right and calculation) or not all(_TERMS.fullmatch(part) for part in middle):
        return [_phrased(step)]
    lead, turned = _phrased(left[: calculation.start()]), _turned(calculation[0])
    if not middle:
        is_bare = not lead and turned == calculation[0]
        return [f"{'We get ' if is_bare else lead}{turned} = {right}"]
    sides = [turned, *middle]
    return [*(" = ".join(pair) for pair in zip(sides, middle, strict=False)), f"{lead}{middle[-1]} = {right}"]


def _turned(calculation: str) -> str:
    """Summands, or factors, in the other order."""
    for sign in (" + ", " * "):
        terms = calculation.split(sign)
        if len(terms) > 1 and not any(" " in term or term.startswith("-") for term in terms):
            return sign.join(reversed(terms))
    return calculation


def _phrased(words: str) -> str:
    for pattern, replacement in _PHRASES:
        words = pattern.sub(replacement, words)
    return words
