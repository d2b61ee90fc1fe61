"""The answer in a text, and whether two answers are the same one."""

import re
from fractions import Fraction

_MARKS = (r"\boxed{", "####")  # the first one counts where both are there
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:/\d+)?")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_LONGEST_NUMBER = 1000  # characters; Python refuses to read numbers far beyond, and no answer is as long
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


def normal_form(answer: str) -> str | Fraction | tuple["str | Fraction", ...]:
    """A value that is equal for equal answers: numbers by value, lists by their parts, else the words."""
    answer = answer.strip().strip("$").rstrip(".")
    parts = [part for part in _SEPARATOR.split(answer) if part]
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


def same_answer(a: str | None, b: str | None) -> bool:
    """Whether both are answers and equal in `normal_form`; a missing answer equals nothing, not even another."""
    return a is not None and b is not None and normal_form(a) == normal_form(b)
