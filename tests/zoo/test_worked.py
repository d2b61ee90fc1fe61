"""Every chain of worked arithmetic keeps its value from one equals sign to the next."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.zoo.worked import (
    column_difference,
    column_sum,
    places,
    product_terms,
    running_sums,
    worked_product,
    worked_quotient,
    worked_scaling,
)

factors = st.integers(0, 99_999)


def total(expression: str) -> Fraction:
    """The value of sums, products and quotients with at most one pair of brackets, in front."""
    bracket = re.fullmatch(r"\(([^)]*)\)(.*)", expression)
    if bracket:
        return total(f"{total(bracket[1])}{bracket[2]}")
    value = Fraction(0)
    for term in expression.split(" + "):
        first, *rest = re.split(r" ([*/]) ", term)
        product = Fraction(first)
        for operation, number in zip(rest[::2], rest[1::2], strict=True):
            product = product * Fraction(number) if operation == "*" else product / Fraction(number)
        value += product
    return value


@given(a=factors, b=factors)
def test_product(a: int, b: int) -> None:
    assert sum(product_terms(a, b)) in (a * b, 0)
    assert {total(term) for term in worked_product(a, b)} <= {a * b}


@given(a=factors, b=factors)
def test_product_terms_are_easy_ones(a: int, b: int) -> None:
    """Each is one factor times a single digit at its place."""
    for term in product_terms(a, b):
        assert any(value and term % value == 0 and len(str(term // value).rstrip("0")) == 1 for value in (a, b))


def test_product_examples() -> None:
    assert product_terms(53, 13) == [530, 159]
    assert product_terms(316, 7) == [2100, 70, 42]
    assert product_terms(30, 40) == product_terms(123, 100) == product_terms(5, 0) == []
    assert worked_product(316, 7) == ["2100 + 70 + 42", "2170 + 42"]


@given(quotient=factors, b=st.integers(1, 9999))
def test_quotient(quotient: int, b: int) -> None:
    assert {total(term) for term in worked_quotient(quotient * b, b)} <= {quotient}


def test_quotient_examples() -> None:
    assert worked_quotient(1176, 84) == ["(840 + 336) / 84", "10 + 4"]
    assert worked_quotient(7, 2) == worked_quotient(7, 0) == []


@given(a=factors, percent=st.integers(1, 999))
def test_scaling(a: int, percent: int) -> None:
    factor = Fraction(percent, 100)

    assert {total(term) for term in worked_scaling(a, factor)} == {a * factor}


@given(value=factors)
def test_places(value: int) -> None:
    assert sum(places(value)) == value
    assert all(len(str(place).rstrip("0")) == 1 for place in places(value))


@given(terms=st.lists(factors, max_size=8))
def test_running_sums(terms: list[int]) -> None:
    written = running_sums(terms)

    assert {total(line) for line in written} <= {sum(terms)}
    assert [line.count("+") for line in written] == list(reversed(range(len(terms))))


def columns(written: str) -> list[tuple[int, int]]:
    """(what stands left of the equals sign, what stands right of it), from the right-most column on."""
    sides = (column.split("=") for column in written.split(", "))
    return [(sum(map(int, re.findall(r"(?:^|[+-])\d+", left))), int(right)) for left, right in sides]


@given(a=factors, b=factors)
def test_column_sum(a: int, b: int) -> None:
    results = columns(column_sum(a, b))

    assert all(left == right for left, right in results)
    digits = [str(right % 10) for _, right in results[:-1]] + [str(results[-1][1])]
    assert int("".join(reversed([*digits[:-1]])) or "0") + int(digits[-1]) * 10 ** (len(digits) - 1) == a + b


@given(a=factors, b=factors)
def test_column_difference(a: int, b: int) -> None:
    a, b = max(a, b), min(a, b)

    results = columns(column_difference(a, b))

    assert all(left == right and 0 <= right <= 9 for left, right in results)
    assert sum(right * 10**place for place, (_, right) in enumerate(results)) == a - b


@pytest.mark.parametrize(
    ("written", "expected"),
    [(column_sum(27, 65), "7+5=12, 2+6+1=9"), (column_difference(82, 37), "12-7=5, 8-3-1=4")],
)
def test_column_examples(written: str, expected: str) -> None:
    assert written == expected
