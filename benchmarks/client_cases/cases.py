"""What the scripts beside this file have in common: each case is a function, and its outcome one line of JSON.

A script runs in a virtual environment with one client and without us: `python openai_cases.py URL MODEL TOOL_MODEL`.
"""

import asyncio
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

URL, MODEL, TOOL_MODEL = sys.argv[1:4]
KEY = os.environ.setdefault("OPENAI_API_KEY", "none")
QUESTION = "What is 3 + 4?"
_cases: dict[str, Callable[[], Any]] = {}


def case(call: Callable[[], Any]) -> Callable[[], Any]:
    """A function that raises where the client is not served as it should be."""
    _cases[call.__name__.replace("_", " ").strip()] = call
    return call


def run(package: str = "") -> None:
    """Run every case, and say how each ended; without a package there is no version to name."""
    for name, call in _cases.items():
        row = {"version": version(package) if package else "", "case": name, "ok": True, "error": ""}
        try:
            found = call()
            if inspect.isawaitable(found):
                asyncio.run(found)  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001 (also what a client ends the process with)
            traceback.print_exc()
            said = str(error).strip() or traceback.format_exc().strip().splitlines()[-1]
            row |= {"ok": False, "error": f"{type(error).__name__}: {said}"[:300]}
        print(json.dumps(row), flush=True)


def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def require(holds: object, seen: object) -> None:
    if not holds:
        raise AssertionError(f"got {seen!r:.200}")
