"""The answer in a text is found, and equal answers are equal however they are written."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.answers import find_answer, holds_answer, normal_form, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{12}", "12"),
        (r"\boxed{3} no, \boxed{ 4 }.", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{x^{2}} and more", "x^{2}"),
        (r"\boxed{}", None),
        (r"12 \boxed{4", None),  # cut off inside of the box
        ("2 + 2 = 4\n#### 1,234\n", "1,234"),
        ("####", None),
        ("it costs $1,234.50 in all.", "1234.50"),
        ("from 10-3 it went to -7", "-7"),
        ("the result of 10-3", "3"),
        ("no number", None),
        ("", None),
    ],
)
def test_find_answer(text: str, answer: str | None) -> None:
    assert find_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        (r"\boxed{4}", True),
        (r"\boxed{\frac{1}{2}} and more", True),
        ("#### 1,234", True),
        (r"\boxed{4", False),  # it may still go on
        (r"\boxed{ }", False),
        ("so 3 + 1 = 4", False),  # a number, and no word that it is the answer
        ("####", False),
        ("</think>", False),
        ("", False),
    ],
)
def test_holds_answer(text: str, holds: bool) -> None:
    assert holds_answer(text) is holds


@given(pieces=st.lists(st.sampled_from([r"\boxed{", "}", "####", "7", "x", " ", "\n", "{"]), max_size=10))
def test_a_text_that_holds_an_answer_is_read_there_and_nowhere_else(pieces: list[str]) -> None:
    text = "".join(pieces)

    if holds_answer(text):
        assert find_answer(text) == find_answer("1 2 3 " + text) is not None
    elif r"\boxed{" in text or "####" in text:  # an answer was begun: no number stands in for it
        assert find_answer(text) is None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("12", "12.0"),
        ("12", " $12. "),
        ("1,234", "1234"),
        ("1,234,567.5", "1234567.50"),
        ("0.5", "1/2"),
        (r"\frac{1}{2}", "0.50"),
        (r"\dfrac{-3}{4}", "-0.75"),
        (r"\tfrac{3}{6}", "1/2"),
        ("+7", "7"),
        ("50%", r"50\%"),
        ("€13", "13"),
        ("007", "7"),
        ("1, 2, 3", "1,2,3"),
        ("1; 2", "1, 2.0"),
        ("-1,-2", "-1, -2"),
        ("Yes", " yes."),
        ("two  apples", "Two apples"),
    ],
)
def test_equal_answers(a: str, b: str) -> None:
    assert same_answer(a, b)
    assert hash(normal_form(a)) == hash(normal_form(b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("12", "13"),
        ("1,2,3", "123"),
        ("1, 2, 3", "3, 2, 1"),
        ("1, 2", "1"),
        ("1/0", "0"),
        ("1/0", "2/0"),
        ("1e5", "100000"),  # digits of a base above 10
        ("ab", "abc"),
        ("", "0"),
    ],
)
def test_different_answers(a: str, b: str) -> None:
    assert not same_answer(a, b)


def test_no_answer_equals_nothing() -> None:
    assert not same_answer(None, "1")
    assert not same_answer("1", None)
    assert not same_answer(None, None)
    assert not same_answer(" ", "")


answers = st.text(max_size=30) | st.text("0123456789,.;/-+$% \\{}frac", max_size=30)


@given(text=answers)
def test_any_text_has_a_normal_form_and_equals_itself(text: str) -> None:
    assert normal_form(text) == normal_form(text)
    assert same_answer(text, text) == bool(text.strip())
    assert find_answer(text) != ""


def test_number_without_end_is_still_an_answer() -> None:
    assert same_answer("9" * 10_000, "9" * 10_000)


@given(a=st.fractions(), b=st.fractions())
def test_fractions_are_equal_by_value(a: Fraction, b: Fraction) -> None:
    assert same_answer(str(a), f"{a.numerator * 3}/{a.denominator * 3}")
    assert same_answer(str(a), str(b)) == (a == b)


@given(numbers=st.lists(st.integers(-5000, 5000), min_size=1, max_size=8))
def test_lists_are_equal_with_and_without_spaces(numbers: list[int]) -> None:
    spaced = ", ".join(map(str, numbers))
    reversed_ = ", ".join(map(str, reversed(numbers)))

    assert same_answer(spaced, "; ".join(map(str, numbers)))
    assert same_answer(spaced, reversed_) == (numbers == numbers[::-1])


@given(text=st.text("abc {}", max_size=10).filter(lambda text: text.count("{") == text.count("}") == 0), tail=st.text())
def test_box_is_found_before_any_tail(text: str, tail: str) -> None:
    assert find_answer(rf"so \boxed{{{text}}}" + tail.replace("\\boxed{", "")) == (text.strip() or None)
