"""Arithmetic and symbolic families with levels of difficulty, each solved in steps by a solver of its own.

Every family is a function `(rng, level) -> (question, Solution)`. Levels 1-4 are what the zoo is measured on,
5 and 6 go beyond what its models can do.
"""

import random
from collections.abc import Callable
from itertools import pairwise

from reasonrt.zoo.solution import Solution, misread
from reasonrt.zoo.worked import column_difference, column_sum, places, running_sums, worked_product, worked_quotient

Drawn = tuple[str, Solution]
Family = Callable[[random.Random, int], Drawn | None]


def _number(rng: random.Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10**digits)


def _sum_step(a: int, b: int) -> tuple[str, int]:
    """One addition of a signed term: directly while both are below 1000, by columns above."""
    value = a + b
    equation = f"{a} {'-' if b < 0 else '+'} {abs(b)}"
    if max(abs(a), abs(b)) < 1000:
        return f"{equation} = {value}", value
    low, high = sorted((abs(a), abs(b)))
    same_sign = (a < 0) == (b < 0)
    columns = column_sum(high, low) if same_sign else column_difference(high, low)
    return f"{equation}: {columns}. So {equation} = {value}", value


def chain_sum(rng: random.Random, level: int) -> Drawn:
    """Terms added and subtracted in turn; 2-3 terms of up to 2 digits, up to 8 terms of 6 digits."""
    terms_low, terms_high, digits = ((2, 3, 2), (3, 4, 2), (3, 5, 3), (4, 5, 4), (5, 7, 5), (6, 8, 6))[level - 1]
    terms = [_number(rng, rng.randint(max(1, digits - 1), digits)) for _ in range(rng.randint(terms_low, terms_high))]
    signed = [terms[0], *(term if rng.random() < 0.6 else -term for term in terms[1:])]
    expression = str(signed[0]) + "".join(f" {'-' if t < 0 else '+'} {abs(t)}" for t in signed[1:])
    steps, values = [], [signed[0]]
    for term in signed[1:]:
        step, value = _sum_step(values[-1], term)
        steps.append(step)
        values.append(value)
    at = rng.randrange(len(steps))
    wrong = misread(values[at + 1], rng.random())
    back, _ = _sum_step(values[-1], -signed[-1])
    return (
        f"State the final answer to the following arithmetic problem: {expression} =",
        Solution(
            tuple(steps),
            str(values[-1]),
            (f"Going back from the end: {back}",),
            (at, steps[at].rpartition("= ")[0] + f"= {wrong}"),
        ),
    )


def product(rng: random.Random, level: int) -> Drawn:
    """Two factors: 2 x 1 digits at level 1, 3 x 3 at level 4, 5 x 4 at level 6."""
    digits_a, digits_b = ((2, 1), (2, 2), (3, 2), (3, 3), (4, 3), (5, 4))[level - 1]
    a, b = _number(rng, digits_a), _number(rng, digits_b)
    if rng.random() < 0.5:
        a, b = b, a
    long, short = max(a, b), min(a, b)
    rows = [(place, long * place) for place in places(short)]
    steps = []
    if len(rows) > 1:
        steps.append(f"{a} * {b} = " + " + ".join(f"{long} * {place}" for place, _ in rows))
    for place, value in rows:
        steps.append(" = ".join([f"{long} * {place}", *worked_product(long, place), str(value)]))
    total = rows[0][1]
    for _, value in rows[1:]:
        step, total = _sum_step(total, value)
        steps.append(step)
    at = rng.randrange(1 if len(rows) > 1 else 0, len(steps))
    wrong = misread(int(steps[at].rpartition("= ")[2]), rng.random())
    last = a % 10 * (b % 10)
    return (
        f"Solve the following multiplication: {a} * {b}. Give only the result as your final answer.",
        Solution(
            tuple(steps),
            str(a * b),
            (f"The last digits give {a % 10} * {b % 10} = {last}, and {a * b} ends in {last % 10} too.",),
            (at, steps[at].rpartition("= ")[0] + f"= {wrong}"),
        ),
    )


def gcd(rng: random.Random, level: int) -> Drawn:
    """Greatest common divisor by Euclid's algorithm; numbers up to 50, 200, 1000, 5000, 30000, 10^6."""
    limit = (50, 200, 1000, 5000, 30_000, 1_000_000)[level - 1]
    common = rng.randint(1, max(2, limit // rng.choice((4, 12, 40))))
    a, b = (common * rng.randint(2, max(3, limit // common)) for _ in range(2))
    high, low = max(a, b), min(a, b)
    steps: list[str] = []
    wrong: tuple[int, str] | None = None
    while low:
        quotient, rest = divmod(high, low)
        multiple = quotient * low
        worked = " = ".join([f"{low} * {quotient}", *worked_product(low, quotient), str(multiple)])
        if (steps and wrong is None) or rest == 0:
            wrong = (len(steps), f"{worked}, and {high} - {multiple} = {misread(rest, rng.random())}")
        steps.append(f"{worked}, and {high} - {multiple} = {rest}")
        high, low = low, rest
    return (
        f"Find the Greatest Common Divisor (GCD) of these numbers: {a}, {b}. Give only the GCD as your final answer.",
        Solution(tuple(steps), str(high), (f"{high} * {a // high} = {a}", f"{high} * {b // high} = {b}"), wrong),
    )


_DIGITS = "0123456789abcdef"


def _in_base(value: int, base: int) -> str:
    written = ""
    while value or not written:
        value, digit = divmod(value, base)
        written = _DIGITS[digit] + written
    return written


def base_conversion(rng: random.Random, level: int) -> Drawn:
    """To ten by Horner's rule, from ten by repeated division; one leg at levels 1-2, both above."""
    limit, bases = (
        (150, range(2, 10)), (400, range(2, 10)), (400, range(2, 10)), (1000, range(2, 17)), (5000, range(2, 17)),
        (50_000, range(2, 17)),
    )[level - 1]  # fmt: skip
    value = rng.randint(limit // 8, limit)
    source, target = rng.sample([base for base in bases if base != 10], 2)
    if level <= 2:
        source, target = (source, 10) if rng.random() < 0.5 else (10, target)
    read, write = _horner(_in_base(value, source), source), _divisions(value, target)
    steps = (read if source != 10 else []) + (write if target != 10 else [])
    answer = _in_base(value, target)
    return (
        f"Convert the base-{source} number {_in_base(value, source)} to base-{target}. "
        "Use lowercase letters for digits above 9.",
        Solution(tuple(steps), answer, tuple(_horner(answer, target)) if target != 10 and len(answer) < 6 else ()),
    )


def _horner(written: str, base: int) -> list[str]:
    steps, value = [], _DIGITS.index(written[0])
    for digit in written[1:]:
        d = _DIGITS.index(digit)
        product_text = " = ".join([f"{value} * {base}", *worked_product(value, base), str(value * base)])
        steps.append(f"{product_text}, and {value * base} + {d} = {value * base + d}")
        value = value * base + d
    return steps or [f"The only digit is {value}."]


def _divisions(value: int, base: int) -> list[str]:
    steps, digits = [], ""
    while value or not digits:
        quotient, digit = divmod(value, base)
        digits = _DIGITS[digit] + digits
        steps.append(f"{value} = {base} * {quotient} + {digit}, digits {digits}")
        value = quotient
    return steps


def sorting(rng: random.Random, level: int) -> Drawn:
    """Whole numbers by repeated selection: 3-4 of one digit, up to 20 of four digits, half of them descending."""
    low, high, limit = ((3, 4, 20), (4, 5, 100), (5, 6, 300), (7, 8, 1000), (10, 12, 2000), (16, 20, 9999))[level - 1]
    numbers = rng.sample(range(-limit if level > 3 else 0, limit), rng.randint(low, high))
    descending = rng.random() < 0.5
    rest, steps = list(numbers), []
    while len(rest) > 1:
        pick = max(rest) if descending else min(rest)
        rest.remove(pick)
        steps.append(f"{'Largest' if descending else 'Smallest'} {pick}, left {', '.join(map(str, rest))}")
    ordered = sorted(numbers, reverse=descending)
    at = rng.randrange(len(steps))
    wrong = steps[at].split(",")[0].split(" ")[0] + f" {rest[0]}, left" + steps[at].partition(", left")[2]
    sign = ">" if descending else "<"
    return (
        f"Sort these numbers in {'descending' if descending else 'ascending'} order: {', '.join(map(str, numbers))}",
        Solution(
            tuple(steps),
            ", ".join(map(str, ordered)),
            (f"In order: {', '.join(f'{x} {sign} {y}' for x, y in pairwise(ordered))}",),
            (at, wrong),
        ),
    )


def drill(rng: random.Random, level: int) -> Drawn:
    """One worked operation, for training only; the arithmetic inside the word problems is learned from it."""
    kind = rng.choice("+-*/%s")
    if kind in "+-":
        a, b = _number(rng, rng.randint(1, 2 + level // 2)), _number(rng, rng.randint(1, 2 + level // 2))
        if kind == "-" and b > a and rng.random() < 0.9:
            a, b = b, a
        value = a + b if kind == "+" else a - b
        written = [f"{a} {kind} {b}", str(value)]
    elif kind == "s":
        terms = [_number(rng, rng.randint(1, 3)) for _ in range(rng.randint(3, 5))]
        written, value = running_sums(terms), sum(terms)
    elif kind == "*":
        a, b = _number(rng, rng.randint(1, 3)), _number(rng, rng.randint(1, 2))
        if rng.random() < 0.25:
            a *= 10 ** rng.randint(1, 2)
        written, value = [f"{a} * {b}", *worked_product(a, b), str(a * b)], a * b
    else:
        b, value = _number(rng, rng.randint(1, 2)), _number(rng, rng.randint(1, 3))
        written = [f"{b * value} / {b}", *worked_quotient(b * value, b), str(value)]
    text = " = ".join(written)
    return f"Work out {written[0]}", Solution((text,), str(value))
