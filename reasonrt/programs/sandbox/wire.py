"""Frames between the host and a worker of the CPython backend: a length, then a message.

What the host sends is marshalled: the worker is the same interpreter, and believes its host. What a worker sends is
JSON that keeps Python's types, and nothing in it is believed: a frame has a largest size, and what cannot be read is
an error like any other. Imported on both sides, so it imports little.
"""

import json
import marshal

MAX_FRAME_BYTES = 8_000_000
LENGTH_BYTES = 4


class Garbled(ValueError):  # noqa: N818 (of the worker, not of the host)
    """A frame that no worker would send that still does its work."""


def pack_for_worker(message: dict[str, object]) -> bytes:
    body = marshal.dumps(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def pack_for_host(message: dict[str, object]) -> bytes:
    body = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def frame_length(header: bytes) -> int:
    """Raises: Garbled: larger than any frame of a worker."""
    length = int.from_bytes(header, "big")
    if length > MAX_FRAME_BYTES:
        raise Garbled(f"a frame of {length} bytes")
    return length


def unpack_frame(body: bytes) -> dict[str, object]:
    """Raises: Garbled: not the JSON of a message."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Garbled(f"a frame that cannot be read ({type(error).__name__})") from None
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise Garbled("a frame that is no message")
    return message


def encode(value: object) -> object:
    """Plain data as JSON: a tuple or a dict is an object that says which."""
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    return value


def decode(value: object) -> object:
    """What `encode` made.

    Raises:
        Garbled: it did not make this.
    """
    try:
        if isinstance(value, list):
            return [decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, items),) = value.items()
        if kind == "tuple":
            return tuple(decode(item) for item in items)
        if kind == "dict":
            return {decode(key): decode(item) for key, item in items}
    except (TypeError, ValueError, RecursionError):
        pass
    raise Garbled("a value that cannot be read")
