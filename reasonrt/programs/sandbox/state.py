"""Saved states: one line of JSON that says whose they are, then what the backend alone can read."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from reasonrt.errors import RequestError

VERSION = 1
Kind = Literal["session", "call"]


def pack(backend: str, kind: Kind, payload: bytes, header: Mapping[str, Any] | None = None) -> bytes:
    line = json.dumps({"backend": backend, "version": VERSION, "kind": kind, **(header or {})})
    return line.encode() + b"\n" + payload


def unpack(backend: str, kind: Kind, state: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the payload of a state.

    Raises:
        RequestError: it is not one of this backend, kind and version.
    """
    line, _, payload = state.partition(b"\n")
    try:
        header = json.loads(line)
        known = (header["backend"], header["version"], header["kind"]) == (backend, VERSION, kind)
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise RequestError(f"this is no state of a {backend} {kind}, version {VERSION}: {line[:80]!r}")
    return header, payload
