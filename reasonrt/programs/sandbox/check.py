"""What a program says that cannot work: names that nobody defined, and calls of the scaffold that do not fit.

The type checker ty, which is part of Monty, reads it in a worker of its own, where nothing runs: each text that it is
given ends in a name that is never defined. Of what it finds, only what would fail whenever it is reached counts; a
value that may be None, or a variable of two types, is the program's business.
"""

import ast
import asyncio
import builtins
import json
import re
import textwrap
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from reasonrt.programs.language import MAX_CHARACTERS, SIGNATURES, similar, stubs

if TYPE_CHECKING:
    from pydantic_monty import AsyncMontySession

CHECK_S = 1.0
NEVER_DEFINED = "_checked_and_never_run"
STUBS = stubs(SIGNATURES) + "context: str | list[str]\nanswer: dict[str, Any]\n"
ALWAYS_DEFINED = {*dir(builtins), NEVER_DEFINED}  # its own list is shorter than what the interpreter has
DECLARED = {name for name in SIGNATURES if not name.startswith("_")}  # a stub keeps the others to itself
WRONG_CALL = ("invalid-argument-type", "missing-argument", "too-many-positional-arguments", "unknown-argument")
NUMBERS = {"bool": {"bool", "int", "float"}, "int": {"int", "float"}}

CheckOut = Callable[[str], "AsyncMontySession"]


class Checker:
    """One worker with ty for all sessions of a sandbox, started at the first check and again when it was lost.

    Args:
        check_out: a session that checks types, with these stubs; not entered.
    """

    def __init__(self, check_out: CheckOut) -> None:
        self._check_out = check_out
        self._session: AsyncMontySession | None = None
        self._turn = asyncio.Lock()

    async def check(self, code: str, known: Collection[str], functions: Collection[str]) -> str:
        """What cannot work, one line each; empty where nothing was found, or the check itself failed.

        Args:
            known: variables of the session.
            functions: that the program may call.
        """
        if len(code) > MAX_CHARACTERS:
            return ""
        names = {name for name in {*known, *functions, *_globals(code)} if name not in DECLARED}
        text = f"def _cell({', '.join(sorted(names))}):\n{textwrap.indent(code, ' ')}\n {NEVER_DEFINED}\n"
        found = await self._read(text)
        lines = text.split("\n")
        problems = [_problem(item, {*names, *functions}) for item in found if not _is_spread(item, lines)]
        return "\n".join(problem for problem in problems if problem)

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session:
            await session.__aexit__(None, None, None)

    async def _read(self, text: str) -> list[dict[str, Any]]:
        from pydantic_monty import MontyError, MontyTypingError

        async with self._turn:  # who waits for it, closes nothing that another one uses
            try:
                if self._session is None:
                    self._session = await self._check_out(STUBS).__aenter__()
                async with asyncio.timeout(CHECK_S):
                    await self._session.feed_start(text)
            except MontyTypingError as error:
                return _diagnostics(error.display())
            except (MontyError, RuntimeError, TimeoutError):
                await self.aclose()
            except BaseException:
                await self.aclose()
                raise
        return []


def _diagnostics(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text)
    readable = all(item["code"] != "invalid-syntax" for item in found)
    return found if readable else []  # the interpreter says it better


def _problem(item: dict[str, Any], names: Collection[str]) -> str:
    """One line, or nothing where a program with this may run well."""
    message: str = item["message"]
    line = f"line {item['location']['row'] - 1}"
    quoted = re.findall(r"`([^`]*)`", message)
    if item["code"] == "unresolved-reference" and quoted[0] not in ALWAYS_DEFINED:
        return f"{line}: NameError: name {quoted[0]!r} is not defined{similar(quoted[0], names)}"
    function = re.search(r"function `(\w+)`", message)
    if item["code"] in WRONG_CALL and function and function[1] in SIGNATURES and _never_fits(message):
        return f"{line}: TypeError: {message.replace('`', '')}"
    return ""


def _is_spread(item: dict[str, Any], lines: list[str]) -> bool:
    """Whether it is about `*items` or `**options`, of which the parts cannot be told apart."""
    row, column = int(item["location"]["row"]), int(item["location"]["column"])
    return lines[row - 1].startswith("*", column - 1)


def _never_fits(message: str) -> bool:
    """Whether an argument's type is another one altogether; true of what is not about a type."""
    types = re.search(r"Expected `(.*)`, found `(.*)`", message)
    if types is None:
        return True
    expected, found = (set(map(_outer, re.split(r" \| (?![^\[]*\])", text))) for text in types.groups())
    if len(found) != 1 or "" in found | expected:
        return False
    (kind,) = found
    return not NUMBERS.get(kind, {kind}) & expected


def _outer(text: str) -> str:
    """The built-in class of a type as ty writes it; empty for what is none."""
    if text.startswith("Literal["):
        return type(ast.literal_eval(text.removeprefix("Literal[").removesuffix("]"))).__name__
    name = text.split("[")[0]
    return name if name in {"str", "int", "float", "bool", "list", "dict", "tuple", "set", "None"} else ""


def _globals(code: str) -> Iterator[str]:
    for names in re.findall(r"^\s*global\s+([\w, ]+)", code, re.MULTILINE):
        yield from (name.strip() for name in names.split(","))
