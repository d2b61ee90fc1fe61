r"""What answers are worth: `\frac{\sqrt{2}}{2}` is `\frac{1}{\sqrt{2}}`, however it is written.

A reader of the algebra that answers are made of, in LaTeX or plain. Numbers are exact while they are rational.
Variables stand for fixed fractions, so that two expressions are equal where their values are: of different polynomials
that is true of one pair in millions (Schwartz 1980, Journal of the ACM 27(4)).

No text takes long, whoever has written it: its length, its nesting and the size of each number are bounded, and what
goes beyond is compared as words.
"""

import cmath
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, reduce
from hashlib import blake2b

_MAX_CHARACTERS = 300
_MAX_NESTING = 24
_MAX_BITS = 4096
_MAX_FACTORIAL = 200
_POINTS = 2  # values that a variable takes in turn

Number = Fraction | complex
Value = tuple[Number, ...]
"""[_POINTS]"""


@dataclass(frozen=True, slots=True)
class Parts:
    """A list, tuple, interval, set or union.

    Attributes:
        kind: its brackets; "" without any, "u" of a union.
    """

    kind: str
    parts: "tuple[Value | Parts, ...]"


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read an answer; `12 m` is a length, and a product.

    Attributes:
        value: words where it is no algebra.
        unit: "" where none is named.
    """

    value: Value | Parts | str
    unit: str = ""


def have_common(a: Sequence[Reading], b: Sequence[Reading]) -> bool:
    """Whether one reading of each is the same; a unit that only one of them names is no difference."""
    return any(_is_same(x.value, y.value) and (x.unit == y.unit or not (x.unit and y.unit)) for x in a for y in b)


def are_alike(a: Sequence[Reading], b: Sequence[Reading]) -> bool:
    """Whether each reading of either is one of the other, unit included: then what is the same as one is as both."""
    return all(
        any(x.unit == y.unit and _is_same(x.value, y.value) for y in others)
        for readings, others in ((a, b), (b, a))
        for x in readings
    )


def readings(answer: str) -> tuple[Reading, ...]:
    """Every way to read an answer, at least one."""
    text = _plain(answer[: _MAX_CHARACTERS + 1])
    if max(len(answer), len(text)) > _MAX_CHARACTERS:
        return (Reading(_words(answer)),)
    is_choice = re.fullmatch(r"\(?([A-Za-z ]+)\)?", text)
    known = [Reading(_words(is_choice[1]))] if is_choice else []  # (B) is b
    known += _readings(text)
    if ends := _UNIT.search(text):
        unit = _words("".join(ends.groups("")))
        known += [Reading(reading.value, unit) for reading in _readings(text[: ends.start()])]
    return tuple(known) or (Reading(_words(text) or answer),)


def constant(x: Number) -> Value:
    return (x,) * _POINTS


def _readings(text: str) -> Iterator[Reading]:
    text = _NAME_OF_RESULT.sub("", text.strip())
    if (value := _read(text.removesuffix("%"))) is None:
        return
    if text.endswith("%"):
        yield Reading(value, "%")
        if isinstance(value, tuple):
            yield Reading(tuple(x / 100 for x in value))
    else:
        yield Reading(value)


def _read(text: str) -> Value | Parts | None:
    with suppress(_Unreadable, ArithmeticError, ValueError):
        return _Reader(text).all()
    return None


def _is_same(a: Value | Parts | str, b: Value | Parts | str) -> bool:
    if isinstance(a, Parts) and isinstance(b, Parts):
        if a.kind == b.kind == "{}":
            return all(any(_is_same(x, y) for y in others.parts) for own, others in ((a, b), (b, a)) for x in own.parts)
        is_kind = a.kind == b.kind or {a.kind, b.kind} == {"", "()"}
        return is_kind and len(a.parts) == len(b.parts) and all(map(_is_same, a.parts, b.parts))
    if isinstance(a, tuple) and isinstance(b, tuple):
        return all(map(_is_close, a, b))
    return isinstance(a, str) and a == b != ""


def _is_close(a: Number, b: Number) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    with suppress(OverflowError):  # of a fraction beyond all floating-point numbers
        return cmath.isclose(complex(a), complex(b), rel_tol=1e-9, abs_tol=1e-12)
    return False


_UNICODE = str.maketrans(
    {"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ", "∪": r"\cup ",
     "²": "^2", "³": "^3", "±": r"\pm ", "°": r"^\circ ", "$": " ", "€": " ", "£": " ", "~": " "}
)  # fmt: skip
_REPLACED = (
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])|\\[$()]|\\!"), ""),
    (re.compile(r"\\[,;:> ]"), " "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\{,\}|(?<=\d),(?=\d{3}(?!\d))"), ""),  # the comma that parts thousands
    (re.compile(r"\s*\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}"), r" \1"),
)
_UNIT = re.compile(
    r"(?:\s([A-Za-z]{2,}(?:[ /][A-Za-z]+)*|[mghsLNJWVKCF])\s*(\^\s*\{?\d\}?)?|\^\s*\{?\s*(\\circ)\s*\}?)\s*\.?$"
)
_NAME_OF_RESULT = re.compile(r"^[A-Za-z](?:_\{?\w\}?)?(?:\([a-z]\))?\s*=(?=[^=]*$)")
_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*|\.\d+)|(\\[A-Za-z]+|\\.)|([A-Za-z]+)|(\S))")


def _plain(text: str) -> str:
    text = text.translate(_UNICODE)
    for pattern, by in _REPLACED:
        text = pattern.sub(by, text)
    return text.strip().rstrip(".")


def _words(text: str) -> str:
    return ("" if "\\" in text else " ").join(text.split()).casefold()  # in LaTeX, spaces say nothing


class _Unreadable(Exception):  # noqa: N818 (most words are)
    """It is no algebra, or too much of it."""


def _each(function: Callable[..., Number]) -> Callable[..., Value]:
    """`function` at each point, its results within bounds."""

    def of(*values: Value) -> Value:
        return tuple(_bounded(function(*point)) for point in zip(*values, strict=True))

    return of


def _bounded(x: Number | float) -> Number:
    if isinstance(x, Fraction):
        is_small = max(x.numerator.bit_length(), x.denominator.bit_length()) <= _MAX_BITS
    else:
        x = complex(x)
        is_small = cmath.isfinite(x)
    if not is_small:
        raise _Unreadable
    return x


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        root = _root(base, exponent.denominator)
        if root is not None:
            times = abs(exponent.numerator)
            if times * max(root.numerator.bit_length(), root.denominator.bit_length()) > _MAX_BITS and abs(root) != 1:
                raise _Unreadable
            return Fraction(root**exponent.numerator)
    return complex(base) ** complex(exponent)


def _root(x: Fraction, degree: int) -> Fraction | None:
    """The exact one, where there is one that is easily found."""
    if degree == 1:
        return x
    if x < 0 or degree > 16:
        return None
    parts = [math.isqrt(n) if degree == 2 else round(n ** (1 / degree)) for n in (x.numerator, x.denominator)]
    root = Fraction(*parts)
    return root if root**degree == x else None


def _factorial(x: Number) -> Number:
    if not isinstance(x, Fraction) or x.denominator != 1 or not 0 <= x <= _MAX_FACTORIAL:
        raise _Unreadable
    return Fraction(math.factorial(int(x)))


def _binomial(n: Number, k: Number) -> Number:
    return _factorial(n) / (_factorial(k) * _factorial(n - k))


_add, _multiply, _divide = _each(lambda a, b: a + b), _each(lambda a, b: a * b), _each(lambda a, b: a / b)
_raise, _negative = _each(_power), _each(lambda a: -a)
_FUNCTIONS: Mapping[str, Callable[..., Value]] = {
    "sin": _each(cmath.sin),
    "cos": _each(cmath.cos),
    "tan": _each(cmath.tan),
    "ln": _each(cmath.log),
    "exp": _each(cmath.exp),
    "log": _each(cmath.log10),
}
_CONSTANTS: Mapping[str, Number] = {"e": complex(math.e), "i": 1j, "pi": complex(math.pi)}
_PRODUCT = ("*", r"\cdot", r"\times")
_QUOTIENT = ("/", r"\div")


@lru_cache(maxsize=1024)
def _variable(name: str) -> Value:
    drawn = (blake2b(f"{name} {point}".encode(), digest_size=3).digest() for point in range(_POINTS))
    return tuple(Fraction(int.from_bytes(digest) + 1, 1 << 20) for digest in drawn)


class _Reader:
    """One text, from left to right."""

    def __init__(self, text: str) -> None:
        self._tokens = [next(filter(None, found.groups())) for found in _TOKEN.finditer(text)]
        self._place = self._nesting = 0

    def all(self) -> Value | Parts:
        whole = self._list("")
        if self._next:
            raise _Unreadable
        return whole

    @property
    def _next(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _take(self, *expected: str) -> str:
        token = self._next
        if not token or (expected and token not in expected):
            raise _Unreadable
        self._place += 1
        return token

    def _takes(self, *expected: str) -> bool:
        if self._next in expected and self._next:
            self._place += 1
            return True
        return False

    def _list(self, kind: str) -> Value | Parts:
        """Parts with commas between them; one alone is itself, unless it is a set."""
        parts = [self._union()]
        while self._takes(",", ";"):
            parts.append(self._union())
        return parts[0] if len(parts) == 1 and kind != "{}" else Parts(kind, tuple(parts))

    def _union(self) -> Value | Parts:
        parts = [self._bracketed() or self._sum()]
        while self._takes(r"\cup"):
            parts.append(self._bracketed() or self._sum())
        return parts[0] if len(parts) == 1 else Parts("u", tuple(parts))

    def _bracketed(self) -> Parts | None:
        """A tuple, an interval or a set; None, and nothing is taken, where none stands here."""
        begin = self._place
        opening = self._next
        if opening in ("(", "[", r"\{"):
            with suppress(_Unreadable), self._nested():
                self._place += 1
                found = self._list("{}" if opening == r"\{" else opening)
                closing = self._take(r"\}") if opening == r"\{" else self._take(")", "]")
                if isinstance(found, Parts):
                    return Parts("{}" if opening == r"\{" else opening + closing, found.parts)
        self._place = begin
        return None

    def _nested(self) -> "_Nested":
        return _Nested(self)

    def _sum(self) -> Value:
        signs = ("+", "-", r"\pm")
        total = constant(Fraction(0)) if self._next in signs else self._product()
        while self._next in signs:
            sign, term = self._take(), self._product()
            if sign == r"\pm":
                term = _multiply(_variable(sign), term)
            total = _add(total, _negative(term) if sign == "-" else term)
        return total

    def _product(self) -> Value:
        is_whole = self._next.isdigit()
        product = self._factor()
        while True:
            if self._takes(*_PRODUCT):
                product = _multiply(product, self._factor())
            elif self._takes(*_QUOTIENT):
                product = _divide(product, self._factor())
            elif is_whole and self._next == r"\frac":
                part = self._factor()
                is_mixed = all(isinstance(x, Fraction) and 0 <= x < 1 for x in part) and len(set(part)) == 1
                product = (_add if is_mixed else _multiply)(product, part)
            elif self._next and (self._next[0].isalpha() or self._next in ("(", "[", "{") or self._is_command):
                product = _multiply(product, self._factor())
            else:
                return product
            is_whole = False

    @property
    def _is_command(self) -> bool:
        return self._next[:1] == "\\" and self._next not in (r"\pm", r"\cup", r"\}", *_PRODUCT, *_QUOTIENT)

    def _factor(self) -> Value:
        with self._nested():
            if self._takes("-"):
                return _negative(self._factor())
            base = self._primary()
            if self._takes("^"):
                base = _raise(base, self._argument())
            while self._takes("!"):
                base = _each(_factorial)(base)
            return base

    def _primary(self) -> Value:
        token = self._take()
        if token[0].isdigit() or token[0] == ".":
            return constant(Fraction(token))
        if token in ("(", "[", "{"):
            inner = self._sum()
            self._take({"(": ")", "[": "]", "{": "}"}[token])
            return inner
        name = token.removeprefix("\\")
        if name == "frac":
            return _divide(self._argument(), self._argument())
        if name in ("binom", "dbinom"):
            return _each(_binomial)(self._argument(), self._argument())
        if name == "sqrt":
            degree = self._degree()
            return _raise(self._argument(), _divide(constant(Fraction(1)), degree))
        if name in _FUNCTIONS:
            return self._applied(name)
        if name in _CONSTANTS:
            return constant(_CONSTANTS[name])
        if len(name) == 1 or token[0] == "\\":
            if not name.isalpha():
                raise _Unreadable
            return _variable(name + (self._take() if self._takes("_") else ""))
        if set(name) <= set("xyz"):
            return reduce(_multiply, map(_variable, name))
        raise _Unreadable  # a word

    def _degree(self) -> Value:
        if not self._takes("["):
            return constant(Fraction(2))
        degree = self._sum()
        self._take("]")
        return degree

    def _applied(self, name: str) -> Value:
        base = self._argument() if name == "log" and self._takes("_") else None
        exponent = self._argument() if self._takes("^") else None
        value = _FUNCTIONS[name](self._factor())
        value = value if base is None else _divide(value, _FUNCTIONS[name](base))
        return value if exponent is None else _raise(value, exponent)

    def _argument(self) -> Value:
        r"""What stands in braces, or one digit or name: `\frac12` is a half."""
        token = self._next
        if token.isdigit() and len(token) > 1:
            self._tokens[self._place] = token[1:]
            return constant(Fraction(token[0]))
        with self._nested():
            return _negative(self._argument()) if self._takes("-") else self._primary()


class _Nested:
    """Counts how deep a reader is."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader

    def __enter__(self) -> None:
        self._reader._nesting += 1
        if self._reader._nesting > _MAX_NESTING:
            raise _Unreadable

    def __exit__(self, *_: object) -> None:
        self._reader._nesting -= 1
