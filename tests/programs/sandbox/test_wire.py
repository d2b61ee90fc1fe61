"""What crosses between a program and the host: the same data on the other side, or an error."""

import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.programs.sandbox.plain import MAX_DEPTH, MAX_ITEMS, NotPlain, check_plain
from reasonrt.programs.sandbox.wire import (
    LENGTH_BYTES,
    MAX_FRAME_BYTES,
    Garbled,
    decode,
    encode,
    frame_length,
    pack_for_host,
    unpack_frame,
)

SCALARS = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text(max_size=20)
KEYS = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=3)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=20,
)


def _typed(value: Any) -> Any:
    """A value with the types of its parts; 1, 1.0 and True are three."""
    if isinstance(value, list | tuple):
        return (type(value), [_typed(item) for item in value])
    if isinstance(value, dict):
        return (dict, [(_typed(key), _typed(item)) for key, item in value.items()])
    return (type(value), value)


@given(PLAIN)
def test_plain_data_arrives_as_it_was(value: Any) -> None:
    check_plain(value)

    frame = pack_for_host({"kind": "call", "value": encode(value)})
    message = unpack_frame(frame[LENGTH_BYTES:])

    assert frame_length(frame[:LENGTH_BYTES]) == len(frame) - LENGTH_BYTES
    assert _typed(decode(message["value"])) == _typed(value)


def test_a_float_that_is_no_number_arrives() -> None:
    message = unpack_frame(pack_for_host({"kind": "call", "value": [float("nan"), float("-inf")]})[LENGTH_BYTES:])

    value = decode(message["value"])
    assert isinstance(value, list)
    assert math.isnan(value[0])
    assert value[1] == float("-inf")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_host(body: bytes) -> None:
    with contextlib.suppress(Garbled):
        assert isinstance(unpack_frame(body)["kind"], str)


@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)))
def test_no_json_breaks_the_host(value: Any) -> None:
    with contextlib.suppress(Garbled):
        decode(json.loads(json.dumps(value)))


def test_a_frame_has_a_largest_size() -> None:
    assert frame_length(MAX_FRAME_BYTES.to_bytes(4, "big")) == MAX_FRAME_BYTES
    with pytest.raises(Garbled, match="a frame of 8000001 bytes"):
        frame_length((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_the_largest_plain_data_is_plain() -> None:
    check_plain([0] * (MAX_ITEMS - 1))
    check_plain(_nested(MAX_DEPTH - 1))
    check_plain(2**8191)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([0] * MAX_ITEMS, "items"),
        ([[0] * 1000] * 1000, "items"),
        (dict.fromkeys(range(MAX_ITEMS), 0), "items"),
        (_nested(MAX_DEPTH + 1), "nested"),
        (2**8192, "bits"),
        (["x" * 1_000_000] * 129, "characters"),
        ("\ud800", "surrogate"),
        ({"\udfff": 1}, "surrogate"),
        (b"x", "bytes is no plain data"),
        ([{1, 2}], "set is no plain data"),
        (object(), "object is no plain data"),
        (type("Text", (str,), {})("x"), "Text is no plain data"),
    ],
    ids=range(12),
)
def test_other_data_is_not_plain(value: Any, reason: str) -> None:
    with pytest.raises(NotPlain, match=reason):
        check_plain(value)


def test_a_value_in_itself_is_not_plain() -> None:
    value: list[Any] = []
    value.append(value)

    with pytest.raises(NotPlain):
        check_plain(value)
