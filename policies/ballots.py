"""What a sample votes for, and which votes count together.

A plain text votes for the answer in it, which equals others as `reasonrt.answers` says. Calls of tools and answers that
have a structure vote for what they say as values, exactly.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from reasonrt.answers import find_answer, first_same
from reasonrt.files import parse_json
from reasonrt.types import ParsedAnswer, Request


@dataclass(frozen=True, slots=True)
class Value:
    """A value, as text: equal for values that are equal in JSON, however they were spelt."""

    text: str


Ballot = str | Value

_TEXTS = frozenset({"choice", "regex", "grammar"})  # structures whose answers are no JSON


def ballot_of(answer: ParsedAnswer, request: Request) -> Ballot | None:
    """What `answer`, which is complete, votes for; None where it says nothing that could be counted."""
    if answer.tool_calls:
        return _value([[call.name, _read(call.arguments)] for call in answer.tool_calls])
    structure = request.structure if request.answer_structure is None else request.answer_structure
    if not structure:
        found = find_answer(answer.content)
        return "" if found is None and request.tools else found  # to call nothing is an answer, too
    text = answer.content.rstrip()
    if not structure.keys().isdisjoint(_TEXTS):
        return Value(text)
    try:
        return _value(parse_json(text))
    except ValueError:  # beside tools, an answer may be any text
        return Value(text) if request.tools else None


def count_votes(ballots: Iterable[Ballot | None]) -> Counter[Ballot]:
    """How many vote for each answer, spelt as it first came."""
    votes = Counter[Ballot]()
    for ballot in ballots:
        if isinstance(ballot, Value):
            votes[ballot] += 1
        elif ballot is not None:
            votes[first_same(ballot, [other for other in votes if isinstance(other, str)])] += 1
    return votes


def _value(value: Any) -> Value:
    return Value(json.dumps(_plain(value), sort_keys=True))


def _read(arguments: str) -> Any:
    try:
        return parse_json(arguments)
    except ValueError:
        return arguments


def _plain(value: Any) -> Any:
    """JSON, with numbers that are equal spelt alike."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
