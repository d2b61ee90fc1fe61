"""Arithmetic written out in steps that a model of a few million parameters can take.

A transformer writes its digits from left to right and computes a fixed amount per token, so it cannot do a long
carry or a two-digit product in one step. Each function here returns the intermediate
expressions that stand between `a op b` and the result, or nothing when the operation is easy by itself.
"""

from fractions import Fraction


def product_terms(a: int, b: int) -> list[int]:
    """Partial products of `a * b`, by the digits of the factor with fewer of them, zeros left out.

    `53 * 13` gives `[530, 159]`; a factor of one significant digit splits the other one: `316 * 7` gives
    `[2100, 70, 42]`. A product of two factors with one significant digit each has no partial products, nor
    has one with a power of ten.
    """
    short, long = sorted((a, b), key=lambda value: (significant_digits(value), value))
    if str(short).strip("0") in ("", "1"):
        return []
    if significant_digits(short) > 1:
        return [long * place for place in places(short)]
    if significant_digits(long) > 1:
        return [short * place for place in places(long)]
    return []


def places(value: int) -> list[int]:
    """The non-zero digits of `value` at their places: 316 gives [300, 10, 6]."""
    digits = str(value)
    return [int(digit) * 10 ** (len(digits) - i - 1) for i, digit in enumerate(digits) if digit != "0"]


def significant_digits(value: int) -> int:
    """Digits of `value` up to its last non-zero one: 1200 has two."""
    return len(str(value).rstrip("0"))


def running_sums(terms: list[int]) -> list[str]:
    """`[16, 28, 39]` gives `["16 + 28 + 39", "44 + 39", "83"]`: one addition at a time."""
    written = []
    while terms:
        written.append(" + ".join(map(str, terms)))
        terms = [terms[0] + terms[1], *terms[2:]] if len(terms) > 1 else []
    return written


def worked_product(a: int, b: int) -> list[str]:
    """What to write between `a * b =` and its value: the sums of the partial products."""
    return running_sums(product_terms(a, b))[:-1]


def worked_quotient(a: int, b: int) -> list[str]:
    """What to write between `a / b =` and its value when b divides a: `1176 / 84` gives `10 + 4`."""
    if b == 0 or a % b:
        return []
    quotient = a // b
    if significant_digits(quotient) < 2 or significant_digits(b) < 2:
        return []
    parts = places(quotient)
    return ["(" + " + ".join(str(part * b) for part in parts) + f") / {b}", " + ".join(map(str, parts))]


def worked_scaling(a: int, factor: Fraction) -> list[str]:
    """What to write between `a * 0.85 =` and its value: a division, or a product over a hundred."""
    if factor.numerator == 1:
        return [f"{a} / {factor.denominator}"]
    percent = factor * 100
    if percent.denominator != 1:
        return []
    whole = a * percent.numerator
    return [f"{a} * {percent.numerator} / 100", f"{whole} / 100"]


def column_sum(a: int, b: int) -> str:
    """`a + b` by columns from the right, carries included: `7+5=12, 2+6+1=9`."""
    columns, carry = [], 0
    for i in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**i % 10, b // 10**i % 10
        columns.append(f"{x}+{y}" + ("+1" if carry else "") + f"={x + y + carry}")
        carry = (x + y + carry) // 10
    return ", ".join(columns)


def column_difference(a: int, b: int) -> str:
    """`a - b` for a >= b by columns from the right; a borrowed ten is written out: `12-7=5, 8-3-1=4`."""
    columns, borrow = [], 0
    for i in range(len(str(a))):
        x, y = a // 10**i % 10, b // 10**i % 10
        lent = x - y - borrow < 0
        columns.append(f"{x + 10 * lent}-{y}" + ("-1" if borrow else "") + f"={x + 10 * lent - y - borrow}")
        borrow = lent
    return ", ".join(columns)
