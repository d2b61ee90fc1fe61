"""The answer in a text, and whether two answers are the same one: the one equality of tasks, risks, votes and rules."""

import re
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache

from reasonrt.algebra import Parts, Reading, are_alike, constant, have_common, readings

_MARKS = (r"\boxed{", "####")  # the first one counts where both are there
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:/\d+)?")
_LATEX_FRACTION = re.compile(r"(?<!\d)\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_LONGEST_NUMBER = 1000  # characters; Python refuses to read numbers far beyond, and no answer is as long
_LONGEST_LIST = 10_000  # characters; what is longer is compared by its words
_SEPARATOR = re.compile(r",\s+|;\s*|,(?!\d{3}(?!\d))")  # a comma, unless it separates thousands


def find_answer(text: str) -> str | None:
    r"""What stands in the last `\boxed{}`, or after the last `####`, or is the last number; None without any."""
    if any(mark in text for mark in _MARKS):
        return _marked_answer(text)
    numbers = re.findall(r"(?:(?<!\w)-)?\d[\d,]*(?:\.\d+)?", text)
    return numbers[-1].replace(",", "") if numbers else None


def holds_answer(text: str) -> bool:
    r"""Whether a text states an answer, in a `\boxed{}` or after `####`; a mere number is not enough."""
    return _marked_answer(text) is not None


def _marked_answer(text: str) -> str | None:
    box, hashes = _MARKS
    if box in text:
        return _until_closing_brace(text.rpartition(box)[2])
    if hashes in text:
        return text.rpartition(hashes)[2].strip().split("\n")[0].strip() or None
    return None


def _until_closing_brace(text: str) -> str | None:
    depth = 1
    for index, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:index].strip() or None
    return None  # the box was never closed


@lru_cache(maxsize=1 << 14)
def normal_form(answer: str) -> str | Fraction | tuple["str | Fraction", ...]:
    """A value that is equal for equal answers: numbers by value, lists by their parts, else the words."""
    answer = answer.strip().strip("$").rstrip(".")
    parts = [part for part in _SEPARATOR.split(answer) if part] if len(answer) <= _LONGEST_LIST else [answer]
    if len(parts) > 1:
        return tuple(_single_form(part) for part in parts)
    return _single_form(answer)


def _single_form(answer: str) -> str | Fraction:
    text = _LATEX_FRACTION.sub(r"\1/\2", answer).replace(",", "").replace(r"\%", "").strip(" $€£%")
    if len(text) <= _LONGEST_NUMBER and _NUMBER.fullmatch(text):
        whole, _, below = text.partition("/")
        if not below:
            return Fraction(whole)
        return Fraction(whole) / int(below) if int(below) else text
    return " ".join(answer.split()).casefold()


def is_answer(answer: str | None) -> bool:
    return bool((answer or "").strip())


def same_answer(a: str | None, b: str | None, is_exact: bool = False) -> bool:
    """Whether both are answers, and the same one in some way to read them (`reasonrt.algebra`).

    No answer, or a blank one, equals nothing, itself included. It takes tens of milliseconds at most, whatever the
    texts are. It is no equivalence: `50%` is 50 and also 0.5, and `12` is `12 cm` and also `12 kg`.

    Args:
        is_exact: there is no algebra in these answers: they are the same only in `normal_form`. To algebra, 2 + 1 is 3,
            and a number in base 16 is a product.
    """
    if a is None or b is None or not (is_answer(a) and is_answer(b)):
        return False
    return normal_form(a) == normal_form(b) if is_exact else have_common(_readings(a), _readings(b))


def same_in_every_way(a: str | None, b: str | None, is_exact: bool = False) -> bool:
    """As `same_answer`, in every way to read them: what is the same as the one is then the same as the other."""
    if a is None or b is None or not (is_answer(a) and is_answer(b)):
        return False
    return normal_form(a) == normal_form(b) if is_exact else are_alike(_readings(a), _readings(b))


def first_same(answer: str, known: Iterable[str]) -> str:
    """The first of `known` that is the same answer, else `answer` itself: one spelling for a vote to count."""
    return next((other for other in known if same_answer(answer, other)), answer)


@lru_cache(maxsize=1 << 14)
def _readings(answer: str) -> tuple[Reading, ...]:
    """Those of algebra, and the number, or the list of numbers, that it is in `normal_form`."""
    form = normal_form(answer)
    parts = form if isinstance(form, tuple) else (form,)
    numbers = tuple(constant(part) for part in parts if isinstance(part, Fraction))
    if len(numbers) < len(parts):
        return readings(answer)
    return (*readings(answer), Reading(Parts("", numbers) if isinstance(form, tuple) else numbers[0]))
