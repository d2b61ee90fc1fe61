"""What messages say of values from outside: one short line, whatever these are."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reasonrt import errors
from reasonrt.errors import ReasonRTError, in_one_line, shown

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ReasonRTError)]
TEXTS = st.text(st.sampled_from("a \n\r\t\x00\x1b\x7f\x9b\u2028\u202e\ud800é'\"\\"), max_size=300)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(max_size=200),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
)


@given(st.sampled_from(KINDS), TEXTS, st.integers(0, 3))
def test_message_is_one_short_line_whatever_is_put_into_it(kind: type[ReasonRTError], text: str, power: int) -> None:
    message = str(kind(f"the value {text * 100**power} is wrong; the way out"))

    assert message.isprintable()
    assert len(message) <= 1000
    assert message.startswith("the value ")
    assert message.endswith("is wrong; the way out")


@given(VALUES)
def test_shown_value_is_short_and_printable(value: Any) -> None:
    assert len(shown(value)) <= 80
    assert shown(value).isprintable()


def test_huge_values_are_cut() -> None:
    for value in ("x" * 900_000, ["x"] * 900_000, {"x" * 900_000: "y"}, 10**100_000, b"x" * 900_000):
        assert len(shown(value)) <= 80


def test_values_without_end_are_cut() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    circle: list[Any] = []
    circle.append(circle)

    assert shown(deep) == "[[[[[...]]]]]"
    assert len(shown(circle)) <= 80


def test_small_values_are_whole() -> None:
    assert [shown(value) for value in ("a", 1, 1.5, None, {"a": [1]})] == ["'a'", "1", "1.5", "None", "{'a': [1]}"]
    assert in_one_line("a\n  b\x1b[31m") == "a b\\x1b[31m"
