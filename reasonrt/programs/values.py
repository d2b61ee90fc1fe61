"""When two answers are the same: each is read as a typed value, and equal answers are those of equal values.

An answer's value depends on that answer and the kind alone, so equality is an equivalence, and an answer that comes
later changes nothing about those before it. Nothing is ever equal because one text contains the other. What cannot be
read as its kind is a text; of two readings that would both do, as for 05/03/2021, none is taken.
"""

import json
import re
import unicodedata
from collections.abc import Hashable, Iterator
from datetime import date
from fractions import Fraction
from typing import Any, Final, Literal, get_args

Kind = Literal["auto", "choice", "number", "date", "set", "span", "text"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
Value = Hashable

_LONGEST = 100_000  # characters; a longer answer is a text
_LONGEST_NUMBER = 1000  # characters; Python refuses to read numbers far beyond
_LARGEST_EXPONENT = 400
_QUOTES = {"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "‚": "'", "`": "'", "´": "'"}
_TO_STRAIGHT = str.maketrans(_QUOTES)
_PAIRS = {'"': '"', "'": "'", "`": "`", "*": "*", "“": "”", "„": "“", "‘": "’", "«": "»"}
_OPENING, _CLOSING = "([{", ")]}"
_NUMBER = re.compile(
    r"(?P<before>[$€£¥])?\s?(?P<sign>[-+−]?)\s?(?P<currency>[$€£¥])?"
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:e(?P<exponent>[-+]?\d{1,4}))?(?:/(?P<below>\d+))?"
    r"(?:\s?(?P<unit>[%°$€£¥µ²³/^\w]*[^\W\d_][²³/^\w]*|[%°$€£¥]))?",
    re.ASCII | re.IGNORECASE,
)
_NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
_LABEL = re.compile(r"\(?([a-z])\)?[.:)]?", re.IGNORECASE)
_CHOICE = re.compile(r"(?:(?:answer|option|choice)\s*:?\s*)?\(?([a-z]|\d{1,2})\)?[.:)]?", re.IGNORECASE)
_BULLET = re.compile(r"\s*(?:[-*•]|\d{1,3}[.)])\s+")
_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTH = r"(?P<month>[a-z]{3,9})\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{4})"
_SPELT_DATES = tuple(
    re.compile(rf"(?:(?P<weekday>[a-z]{{6,9}}),?\s)?{form}", re.ASCII)
    for form in (rf"{_DAY}(?:\sof)?\s{_MONTH},?\s{_YEAR}", rf"{_MONTH}\s{_DAY},?\s{_YEAR}")
)
_MONTH_OF_YEAR = re.compile(rf"{_MONTH},?\s{_YEAR}", re.ASCII)
_YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})", re.ASCII)
_YEAR_LAST = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})", re.ASCII)
_ASKS_FOR_ORDER = re.compile(
    r"\b(?:in (?:\w+ ){0,3}order\b|order (?:of|in which)\b|in sequence\b|rank(?:ed|ing)?\b|sort(?:ed)?\b|"
    r"chronological|alphabetical|(?:first|earliest|oldest|smallest|lowest|last|latest|largest|highest|most) to )",
    re.IGNORECASE,
)


def kind_of(question: str) -> Kind:
    """How to read the answers of a question, where its asker does not say.

    A question that asks for an order gets `text`, so that a list stays as it is written; any other gets `auto`.
    """
    return "text" if _ASKS_FOR_ORDER.search(question[-_LONGEST:]) else "auto"


def value_of(answer: str, kind: Kind = "auto") -> Value | None:
    """The value of an answer; None for an answer of white space only.

    Args:
        answer: of any length; work is linear in it.
        kind: how to read it.
            choice: the letter or number of an option, however it is decorated; else its words.
            number: an exact number and its unit; 12, 12 cm and 12 % are three. Units are compared as they are
                written, but for a plural s: whether 1 m is 100 cm is for the question.
            date: a day, a month of a year, or a year, in the usual spellings; two numbers that could both be the
                month leave a text.
            set: a list by commas, semicolons or lines, or in JSON, without its order and repetitions.
            span: words, without quotes, case and white space.
            text: words, without case, white space, the quotes around them and a full stop after them.
            auto: decided by the answer alone, the first that fits of: the letter of an option, number, date, set (JSON
                or brackets, lines, semicolons, and commas with a space), text. Digits that begin with 0, as of an
                identifier, are a text.
    """
    if not answer or answer.isspace():
        return None
    if len(answer) > _LONGEST:
        return ("text", _folded(answer))
    text = _trimmed(answer)
    match kind:
        case "choice":
            found = _CHOICE.fullmatch(text)
            return ("choice", found[1].casefold()) if found else ("text", _folded(text))
        case "number":
            return _number(text) or _number_word(text) or ("text", _folded(text))
        case "date":
            return _date(text) or _year(text) or ("text", _folded(text))
        case "set":
            one = _single(text)
            return (None if one else _set(text, bare_commas=True)) or ("set", frozenset([one or _scalar(text)]))
        case "span":
            return ("span", _folded(_trimmed(text.translate(_TO_STRAIGHT)).replace('"', "")))
        case "text":
            return ("text", _folded(text))
        case "auto":
            return _single(text) or _only(_set(text, bare_commas=False)) or ("text", _folded(text))
    raise ValueError(f"unknown kind of answer {str(kind)[:40]!r}; there are {', '.join(KINDS)}")


def _single(text: str) -> Value | None:
    if found := _LABEL.fullmatch(text):
        return ("choice", found[1].casefold())
    return (None if _is_identifier(text) else _number(text)) or _date(text)


def _scalar(text: str) -> Value:
    text = _trimmed(text)
    return _single(text) or ("text", _folded(text))


def _folded(text: str) -> str:
    """Without case, composition of characters and white space; the same again for what it gives."""
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())
    return " ".join(unicodedata.normalize("NFC", text).split())


def _trimmed(text: str) -> str:
    """Without white space and pairs of quotes around it, and one full stop after it; never empty."""
    start, end = 0, len(text)
    while start < end:
        before = (start, end)
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if end - start > 1 and text[end - 1] == "." and text[end - 2] != ".":
            end -= 1
        elif end - start > 2 and _PAIRS.get(text[start]) == text[end - 1]:
            start, end = start + 1, end - 1
        if (start, end) == before:
            break
    return text[start:end] or text


def _is_identifier(text: str) -> bool:
    return len(text) > 1 and text[0] == "0" and text[1].isdigit()


def _number(text: str) -> Value | None:
    found = _NUMBER.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
    if found is None:
        return None
    exponent, below = found["exponent"] or "0", int(found["below"] or 1)
    units = [unit for unit in (found["before"], found["currency"], found["unit"]) if unit]
    if abs(int(exponent)) > _LARGEST_EXPONENT or not below or len(units) > 1:
        return None
    sign = "-" if found["sign"] in ("-", "−") else ""
    value = Fraction(f"{sign}{found['digits'].replace(',', '')}e{exponent}")
    return ("number", value / below if below > 1 else value, _unit(units[0]) if units else "")


def _unit(unit: str) -> str:
    if len(unit) <= 3:  # m and ms, MB and Mb are units each
        return "percent" if unit == "%" else unit
    unit = unit.casefold()
    return unit.removesuffix("s") if unit != "celsius" else unit


def _number_word(text: str) -> Value | None:
    word = text.casefold()
    return ("number", Fraction(_NUMBER_WORDS.index(word)), "") if word in _NUMBER_WORDS else None


def _date(text: str) -> Value | None:
    if len(text) > 40:
        return None
    text = _folded(text)
    if found := _YEAR_FIRST.fullmatch(text):
        return _day(int(found[1]), int(found[3]), int(found[4]))
    if found := _YEAR_LAST.fullmatch(text):
        first, second, year = int(found[1]), int(found[3]), int(found[4])
        if first == second or first > 12:
            return _day(year, second, first)
        return _day(year, first, second) if second > 12 else None
    for form in _SPELT_DATES:
        if (found := form.fullmatch(text)) and (month := _month(found["month"])):
            return _day(int(found["year"]), month, int(found["day"]), found["weekday"])
    if (found := _MONTH_OF_YEAR.fullmatch(text)) and (month := _month(found["month"])):
        return ("date", int(found["year"]), month)
    return None


def _day(year: int, month: int, day: int, weekday: str | None = None) -> Value | None:
    try:
        found = date(year, month, day)
    except ValueError:
        return None
    if weekday is not None and weekday != _WEEKDAYS[found.weekday()]:
        return None  # it contradicts itself
    return ("date", year, month, day)


def _month(name: str) -> int | None:
    numbers = [number for number, month in enumerate(_MONTHS, 1) if name in (month, month[:3])]
    return 9 if name == "sept" else numbers[0] if numbers else None


def _year(text: str) -> Value | None:
    return ("date", int(text)) if re.fullmatch(r"\d{4}", text, re.ASCII) else None


def _set(text: str, bare_commas: bool) -> Value | None:
    """The values of a list; None where the text is no list."""
    from_json = _json_list(text)
    if from_json is not None:
        return ("set", frozenset(map(_json_value, from_json)))
    inner = text[1:-1] if _is_bracketed(text) else text
    parts = list(_parts(inner, bare_commas or inner is not text))
    if len(parts) < 2 and inner is text:
        return None
    return ("set", frozenset(_item(part) for part in parts if part.strip()))


def _only(found: Value | None) -> Value | None:
    """The one member of a set of one."""
    return next(iter(found[1])) if isinstance(found, tuple) and len(found[1]) == 1 else found


def _json_list(text: str) -> list[Any] | None:
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _json_value(value: Any) -> Value:
    if isinstance(value, str):
        return _scalar(value) if value.strip() else ("text", "")
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return ("tuple", tuple(map(_json_value, value)))
    try:
        return ("text", _folded(json.dumps(value, sort_keys=True)))
    except RecursionError:
        return ("text", "")


def _item(part: str) -> Value:
    text = _trimmed(part)
    if _is_bracketed(text) and text[0] != "{":
        return ("tuple", tuple(_scalar(inner) for inner in _parts(text[1:-1], bare_commas=True)))
    return _scalar(text)


def _is_bracketed(text: str) -> bool:
    """Whether the first character is a bracket that the last one closes."""
    if len(text) < 2 or text[0] not in _OPENING or text[-1] not in _CLOSING:
        return False
    depth = 0
    for index, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0:
            return index == len(text) - 1
    return False


def _parts(text: str, bare_commas: bool) -> Iterator[str]:
    """What stands between separators that no bracket holds; lines before semicolons before commas.

    Only one sort of separator separates: the first of these that is there.
    """
    found: dict[str, list[int]] = {"\n": [], ";": [], ",": []}
    depth = 0
    for index, character in enumerate(text):
        depth = max(0, depth + (character in _OPENING) - (character in _CLOSING))
        if character == "\n" or (depth == 0 and character in found):
            found[character].append(index)
    found[","] = [index for index in found[","] if _separates(text, index, bare_commas)]
    separator = next((sort for sort, indices in found.items() if indices), None)
    start = 0
    for index in (*(found[separator] if separator else ()), len(text)):
        part = text[start:index]
        yield _BULLET.sub("", part, count=1) if separator == "\n" and _BULLET.match(part) else part
        start = index + 1


def _separates(text: str, index: int, bare_commas: bool) -> bool:
    """Whether the comma at `index` stands between two items, and not within a number."""
    after = text[index + 1 : index + 5]
    if not after or after[0].isspace():
        return True
    return bare_commas and not re.match(r"\d{3}(?!\d)", after, re.ASCII)
