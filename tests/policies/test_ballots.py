"""Equal values count together however they are spelt, and others do not."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.policies.ballots import Value, ballot_of, count_votes
from reasonrt.types import FunctionTool, ParsedAnswer, Request, ToolCall

TOOLS = (FunctionTool("f"),)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
LISTS = st.lists(SCALARS, max_size=3)
JSON = SCALARS | LISTS | st.dictionaries(st.text(max_size=3), SCALARS | LISTS, max_size=3)
OBJECTS = st.dictionaries(st.text(max_size=3), JSON, max_size=3)


def ballot(answer: ParsedAnswer | str, **structure: Any) -> Any:
    said = ParsedAnswer(answer) if isinstance(answer, str) else answer
    return ballot_of(said, Request.ask("?", structure=structure))


def calling(name: str, arguments: str) -> ParsedAnswer:
    return ParsedAnswer("", (ToolCall("a", name, arguments),))


def spelt_otherwise(value: Any) -> str:
    """Keys backwards, other white space, other escapes, and whole numbers as fractions of 1."""

    def changed(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: changed(inner) for name, inner in reversed(part.items())}
        if isinstance(part, list):
            return [changed(inner) for inner in part]
        is_exact = type(part) is int and abs(part) < 2**53
        return float(part) if is_exact else part

    return json.dumps(changed(value), indent=3, ensure_ascii=False)


@settings(max_examples=100, deadline=None)
@given(value=OBJECTS, other=OBJECTS)
@pytest.mark.parametrize("of", [lambda text: calling("f", text), str])
def test_ballot_is_of_the_value_however_it_is_spelt(of: Any, value: dict[str, Any], other: dict[str, Any]) -> None:
    first = ballot(of(json.dumps(value)), json_object=True)

    assert first == ballot(of(spelt_otherwise(value)), json_object=True)
    if json.loads(json.dumps(other)) != value:
        assert first != ballot(of(json.dumps(other)), json_object=True)


def test_calls_of_two_tools_differ_and_so_does_their_order() -> None:
    one, two = calling("f", "{}"), calling("g", "{}")
    both = ParsedAnswer("", one.tool_calls + two.tool_calls)

    assert len({ballot(one), ballot(two), ballot(both), ballot(ParsedAnswer("", both.tool_calls[::-1]))}) == 4


@pytest.mark.parametrize(
    ("first", "second"),
    [("true", "1"), ("null", "0"), ("false", "0"), ('"1"', "1"), ("[]", "{}"), ("1", "1.5"), ("[1, 2]", "[2, 1]")],
)
def test_what_is_of_another_type_is_another_value(first: str, second: str) -> None:
    schema: dict[str, Any] = {"json": {}}

    assert ballot(first, **schema) != ballot(second, **schema)


@pytest.mark.parametrize("structure", [{"choice": ["1", "1.0"]}, {"regex": "[0-9.]+"}, {"grammar": "root ::= 1"}])
def test_answers_that_are_no_json_are_texts(structure: dict[str, Any]) -> None:
    assert ballot("1", **structure) == ballot("1\n", **structure) == Value("1")
    assert ballot("1.0", **structure) == Value("1.0")


@pytest.mark.parametrize("text", ["", "{", '{"a": 1, "a": 2}', "[" * 5000, "9" * 5000 + "x"])
def test_json_that_is_none_has_no_vote(text: str) -> None:
    assert ballot(text, json_object=True) is None


def test_text_beside_tools_has_a_vote_whatever_it_is() -> None:
    request = Request.ask("?", tools=TOOLS, structure={"structural_tag": "{}"}, answer_structure={"json_object": True})

    assert ballot_of(ParsedAnswer("Hello."), request) == Value("Hello.")
    assert ballot_of(ParsedAnswer("[1.0 ]"), request) == ballot_of(ParsedAnswer("[1]"), request)


def test_structure_of_calls_is_not_that_of_an_answer_without_any() -> None:
    held = Request.ask("?", tools=TOOLS, structure={"structural_tag": "{}"}, answer_structure={})
    free = Request.ask("?", tools=TOOLS)

    for text in ("7", r"It is \boxed{7}.", "Hello.", "[1]"):
        assert ballot_of(ParsedAnswer(text), held) == ballot_of(ParsedAnswer(text), free)


def test_votes_of_values_and_of_answers_are_never_one() -> None:
    votes = count_votes([Value("1"), "1", None, "1.0", Value("1"), "one"])

    assert votes == {Value("1"): 2, "1": 2, "one": 1}
