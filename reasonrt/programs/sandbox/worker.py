"""The program in the child of the CPython backend: runs cells in one namespace, and asks the host on a pipe.

It runs in the wrapper's process, after everything was given up. A cell shares this process and can do to it whatever
it likes; it can reach nothing else, and the host believes nothing that comes from here.
"""

import builtins
import io
import json
import linecache
import marshal
import os
import random
import sys
import traceback
from types import TracebackType

from reasonrt.programs.sandbox.plain import NotPlain, check_plain
from reasonrt.programs.sandbox.wire import LENGTH_BYTES, MAX_FRAME_BYTES, encode, pack_for_host

MAX_ERROR_CHARACTERS = 8000
OWN_FRAMES = 40  # of the stack, below a cell


def serve() -> None:
    """Answer the host until it closes its end."""
    random.seed(0)  # a fork repeats what it did
    Worker().serve()


class Printed(io.TextIOBase):
    """Collects what a cell prints; what is too much is counted and dropped."""

    def __init__(self, max_characters: int) -> None:
        self.left = max_characters
        self.parts: list[str] = []
        self.num_cut = 0

    def write(self, text: str) -> int:
        kept = text[: self.left]
        self.left -= len(kept)
        self.num_cut += len(text) - len(kept)
        if kept:
            self.parts.append(kept)
        return len(text)

    def writable(self) -> bool:
        return True


class Worker:
    """The state between two frames."""

    def __init__(self) -> None:
        self.namespace: dict[str, object] = {"__name__": "__main__"}
        self.stubs: dict[str, object] = {}
        self.max_characters = 0
        self.num_cells = 0

    def serve(self) -> None:
        while True:
            message = receive()
            kind = message["kind"]
            if kind == "open":
                self.open(message)
            elif kind == "run":
                send(self.run(str(message["code"])))
            else:
                send({"kind": "value", **self.value(str(message["name"]))})

    def open(self, message: dict[str, object]) -> None:
        values = message["values"]
        assert isinstance(values, dict)  # noqa: S101 (from the host)
        self.namespace.update(values)
        functions = message["functions"]
        assert isinstance(functions, list)  # noqa: S101
        self.stubs = {name: stub(name) for name in functions}
        self.namespace.update(self.stubs)
        self.max_characters = int(str(message["output_characters"]))
        send({"kind": "ready"})
        sys.setrecursionlimit(int(str(message["max_recursion"])) + OWN_FRAMES)

    def run(self, code: str) -> dict[str, object]:
        printed = Printed(self.max_characters)
        sys.stdout = sys.stderr = printed
        ending, error = self.execute(code)
        self.namespace.update(self.stubs)  # a cell that rebinds one deceives nobody but itself
        return {
            "kind": "end",
            "ending": ending,
            "error": error[:MAX_ERROR_CHARACTERS],
            "output": "".join(printed.parts),
            "num_cut": printed.num_cut,
        }

    def execute(self, code: str) -> tuple[str, str]:
        self.num_cells += 1
        name = f"<cell {self.num_cells}>"
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        try:
            program = compile(code, name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            return "refused", "".join(traceback.format_exception_only(error))
        try:
            exec(program, self.namespace)  # noqa: S102 (it is what this process is for)
        except MemoryError:
            return "memory", ""
        except BaseException as error:  # noqa: BLE001 (SystemExit too: it ends the cell, and nothing else)
            return "raised", "".join(traceback.format_exception(type(error), error, _below(error)))
        return "done", ""

    def value(self, name: str) -> dict[str, object]:
        value = self.namespace.get(name)
        try:
            check_plain(value)
            encoded = encode(value)
            return {"value": encoded if len(json.dumps(encoded)) < MAX_FRAME_BYTES - 1000 else None}
        except NotPlain:
            return {"value": None}


def stub(name: str) -> object:
    """The function of a program's that asks the host."""

    def ask(*args: object, **kwargs: object) -> object:
        try:
            check_plain([*args, kwargs])
        except NotPlain as error:
            raise TypeError(f"{name}: {error}") from None
        frame = pack_for_host({"kind": "call", "name": name, "args": encode(list(args)), "kwargs": encode(kwargs)})
        if len(frame) > MAX_FRAME_BYTES:
            raise TypeError(f"{name}: more than {MAX_FRAME_BYTES} characters cannot be handed over")
        _write(frame)
        reply = receive()
        if reply["kind"] == "return":
            return reply["value"]
        kind = getattr(builtins, str(reply["error"]), RuntimeError)
        raise kind(reply["message"])

    ask.__name__ = ask.__qualname__ = name
    return ask


def receive() -> dict[str, object]:
    """The host's next frame; ends this process where there is none."""
    length = int.from_bytes(_read(LENGTH_BYTES), "big")
    message = marshal.loads(_read(length))  # noqa: S302 (from the host)
    assert isinstance(message, dict)  # noqa: S101 (from the host)
    return message


def send(message: dict[str, object]) -> None:
    _write(pack_for_host(message))


def _read(size: int) -> bytes:
    parts = []
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            os._exit(0)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _below(error: BaseException) -> TracebackType | None:
    """The traceback from the cell on, without this file."""
    return error.__traceback__.tb_next if error.__traceback__ else None
