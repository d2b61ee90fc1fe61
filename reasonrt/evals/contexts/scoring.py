"""How right an answer to a question about a long context is.

An answer is read strictly by its kind, and only up to a length: who hands the context back has answered nothing.
"""

import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

from reasonrt.answers import find_answer, holds_answer, normal_form
from reasonrt.evals.contexts.problem import ContextProblem, Kind

MAX_TEXT_CHARACTERS = 2_000
"""Of everything that is handed in, beside twice the length of the right answer."""
MAX_ANSWER_CHARACTERS = 64
"""Of the answer in it, beside twice the length of the right one."""
_COUNT_BASE = 0.75
_MARK = re.compile(r"\b(?:final )?answer(?: is)?\s*[:=]", re.IGNORECASE)
_PAIR = re.compile(r"[(\[]?\s*['\"]?(\d+)['\"]?\s*[,-]\s*['\"]?(\d+)['\"]?\s*[)\]]?")
_QUOTES = "'\"`*“”‘’ \n\t"

Value = Fraction | str | frozenset[str] | frozenset[tuple[str, str]]


def score(problem: ContextProblem, answer: str) -> float:
    """1 for the right value, else 0."""
    value = read_answer(answer, problem)
    return float(value is not None and value == read_value(problem.answer, problem.kind))


def count_score(problem: ContextProblem, answer: str) -> float:
    """As OOLONG scores: 0.75 to the power of a number's distance from the right one; other kinds are right or wrong."""
    value, gold = read_answer(answer, problem), read_value(problem.answer, problem.kind)
    if not isinstance(value, Fraction) or not isinstance(gold, Fraction):
        return score(problem, answer)
    return math.pow(_COUNT_BASE, abs(value - gold))


def f1_score(problem: ContextProblem, answer: str) -> float:
    """Harmonic mean of precision and recall of sets and pairs; other kinds are right or wrong."""
    value, gold = read_answer(answer, problem), read_value(problem.answer, problem.kind)
    if not isinstance(value, frozenset) or not isinstance(gold, frozenset):
        return score(problem, answer)
    return 2 * len(value & gold) / (len(value) + len(gold))


SCORES: Mapping[str, Callable[[ContextProblem, str], float]] = {
    "exact": score,
    "count": count_score,
    "f1": f1_score,
}
"""Each is in [0, 1]. The first one is what accuracies are made of."""


def read_answer(answer: str, problem: ContextProblem) -> Value | None:
    """The value that an answer states; None where it states none of the problem's kind, or at too great a length."""
    extra = 2 * len(problem.answer)
    if len(answer) > MAX_TEXT_CHARACTERS + extra:
        return None
    stated = find_answer(answer) or "" if holds_answer(answer) else _MARK.split(answer)[-1]
    stated = stated.strip(_QUOTES)
    return read_value(stated, problem.kind) if len(stated) <= MAX_ANSWER_CHARACTERS + extra else None


def read_value(text: str, kind: Kind) -> Value | None:
    """A value that is equal for equal answers of this kind; None where the text is no such value."""
    match kind:
        case "number":
            value = normal_form(text)
            return value if isinstance(value, Fraction) else None
        case "choice" | "text":
            return _word(text) or None
        case "set":
            words = [_word(part) for part in re.split(r"[,;\n]", text.strip("[](){} "))]
            return frozenset(word for word in words if word) or None
        case "pairs":
            left = _PAIR.sub("", text).strip("[]{}() ,;\n.")
            pairs = frozenset(tuple(sorted(pair)) for pair in _PAIR.findall(text))
            return pairs if pairs and not left else None


def _word(text: str) -> str:
    return " ".join(text.strip(_QUOTES).rstrip(".").strip(_QUOTES).split()).casefold()
