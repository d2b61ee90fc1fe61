"""Equal values are equal however they are written, others are not, and no text takes long."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.answers import same_answer, same_in_every_way

EQUAL = [
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("12", "12 cm"),
    ("0.5", r"50\%"),
    ("50", r"50\%"),
    (r"\frac12", "1/2"),
    (r"\frac12", r"\dfrac12"),
    ("5", r"5\text{ cm}"),
    (r"1{,}000", "1000"),
    (r"\text{(A)}", "A"),
    (r"1\frac{1}{2}", "3/2"),
    (r"\sqrt[3]{8}", "2"),
    (r"\sqrt{50}", r"5\sqrt 2"),
    (r"\frac{1+\sqrt{5}}{2}", r"\frac{2}{\sqrt{5}-1}"),
    (r"2\pi r", r"2 \cdot \pi \cdot r"),
    ("2^{10}", "1024"),
    (r"\frac{x^2-1}{x-1}", "x+1"),
    ("5!", "120"),
    (r"\binom{5}{2}", "10"),
    (r"\log_{2} 8", "3"),
    (r"\sin^2 x + \cos^2 x", "1"),
    (r"e^{i\pi}", "-1"),
    ("x = 5", "5"),
    ("f(x) = x^2", "x^2"),
    (r"90^\circ", "90"),
    (r"12\text{ cm}^2", "12 cm^2"),
    (r"12\,\text{apples}", "12"),
    (r"10{,}000", "10000"),
    (r"\$12.50", "12.5"),
    (r"\left( 1, \frac{1}{2} \right)", "(1, 0.5)"),
    ("(1, 2)", "1, 2"),
    (r"(-\infty, 3]", r"(-\infty,3]"),
    (r"[0,1) \cup (2,3]", r"[0, 1)\cup(2, 3]"),
    (r"\{1, 2\}", r"\{2, 1, 1\}"),
    (r"1 \pm \sqrt{3}", r"1\pm 3^{1/2}"),
    (r"\text{Yes}", "yes"),
    (r"\text{(B)}", "b"),
    ("−3", "-3"),
    ("a_1 + a_2", "a_2 + a_1"),
]
DIFFERENT = [
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{2}"),
    ("x^2+2x+1", "(x-1)^2"),
    ("12 cm", "12 kg"),
    ("12 cm", "13 cm"),
    ("0.5", r"5\%"),
    ("1/3", "0.3333333333"),
    ("f9", "9f"),
    ("ab", "ba"),
    ("9f", "9"),
    ("1e5", "100000"),
    ("x_1", "x_2"),
    ("(1, 2)", "(2, 1)"),
    ("(1, 2)", "[1, 2]"),
    (r"\{1, 2\}", r"\{1, 3\}"),
    ("(1, 2, 3)", "(1, 2)"),
    (r"1 \pm 2", "3"),
    ("yes", "no"),
    ("12345678901234567890", "12345678901234567891"),
    (r"\frac{1}{0}", r"\frac{2}{0}"),
    ("x", "X + 0"),
]
HOSTILE = [
    "9^{9^{9^{9}}}",
    "(" * 280,
    "(1+" * 90 + "1" + ")" * 90,
    "-" * 299,
    "√" * 299,
    r"\frac" * 59,
    r"\sqrt{" * 50,
    "199!^199!",
    "(x+y)^99^99",
    "9" * 299 + "^" + "9" * 50,
    r"\binom{199}{99}" * 18,
    "[" * 100 + "1," * 50,
    r"\{" * 140,
    "(1,2)*(3,4)",
    "10^" + "(10^" * 60,
    "1/(1/(1/(1/(1/" * 19,
    "\x00" * 200,
    "12 " + "m/" * 140,
    "a" * 100_000,
    "1," * 50_000,
]


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_equal_values_are_equal_however_they_are_written(a: str, b: str) -> None:
    assert same_answer(a, b)
    assert same_answer(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_values_are_different(a: str, b: str) -> None:
    assert not same_answer(a, b)
    assert not same_answer(b, a)


@pytest.mark.parametrize(("a", "b"), [("2 + 1", "3"), ("x+x", "2x"), ("12", "12 cm"), ("0.5", "50%")])
def test_exact_answers_are_met_by_no_algebra(a: str, b: str) -> None:
    assert same_answer(a, b)
    assert not same_answer(a, b, is_exact=True)


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12])
def test_no_text_takes_long(text: str) -> None:
    began = time.thread_time()

    assert same_answer(text, text)
    assert not same_answer(text, "7")
    assert time.thread_time() - began < 0.5  # milliseconds; a parser that does not end takes for ever


LETTERS = "0123456789+-*/^(){}[],.;=%!_ \\xyzabcm√π"
TEXTS = st.lists(
    st.sampled_from([*LETTERS, r"\frac", r"\sqrt", r"\pi", r"\cup", r"\{", r"\}", " cm", r"\text{", r"\pm"]),
    max_size=24,
).map("".join)
KNOWN = st.sampled_from([text for pair in (*EQUAL, *DIFFERENT) for text in pair])


@given(TEXTS)
def test_any_text_is_read_and_is_itself(text: str) -> None:
    assert same_answer(text, text) == same_in_every_way(text, text) == bool(text.strip())


@given(KNOWN | TEXTS, KNOWN | TEXTS, KNOWN | TEXTS)
def test_what_is_the_same_in_every_way_can_stand_for_the_other(a: str, b: str, c: str) -> None:
    """So that whoever keeps the full answer in every way keeps it right: the promise without labels rests on this."""
    if same_in_every_way(a, b) and same_answer(b, c):
        assert same_answer(a, c)


@pytest.mark.parametrize(("a", "b"), [("50%", "0.5"), ("50%", "50"), ("12", "12 cm")])
def test_an_ambiguous_answer_is_not_the_same_in_every_way(a: str, b: str) -> None:
    assert same_answer(a, b)
    assert not same_in_every_way(a, b)


MEANT = {  # otherwise than by math-verify
    ("12 cm", "12 kg"), (r"12\text{ cm}^2", "12 cm^2"),  # it drops units
    ("1/3", "0.3333333333"),  # it rounds
    ("f9", "9f"), ("ab", "ba"), ("x", "X + 0"),  # which are products to it, in letters of any case
    ("50", r"50\%"), ("f(x) = x^2", "x^2"), (r"e^{i\pi}", "-1"), (r"\text{(B)}", "b"),
}  # fmt: skip


def test_math_verify_says_the_same() -> None:
    """But for what is meant to be otherwise."""
    math_verify = pytest.importorskip("math_verify")

    def judged(gold: str, answer: str) -> bool:
        parsed = [math_verify.parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (gold, answer)]
        return bool(math_verify.verify(*parsed, timeout_seconds=None))

    unlike = {pair for pair in (*EQUAL, *DIFFERENT) if judged(*pair) != same_answer(*pair)}

    assert unlike <= MEANT
