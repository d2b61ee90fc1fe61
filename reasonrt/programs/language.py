"""The language of programs: what a model is told of it, what is checked before a cell runs, and what is rewritten."""

import ast
import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from reasonrt.programs.rewrites import QUERY, Batching, Subset, can_batch, imported_modules
from reasonrt.programs.shims import SOURCES

MAX_CHARACTERS = 20_000
MAX_BRACKETS = 60
MAX_DEPTH = 60
MAX_NODES = 5000
MAX_BRACES = 1000  # each may be a program inside a string
NO_CALLS_OF = frozenset({"exec", "eval", "compile", "__import__"})

PROMPT: Mapping[str, str] = {
    "monty": (
        "Programs are written in a subset of Python 3 without files, network, threads or packages."
        " There is no inheritance (raise built-in exceptions), no property, staticmethod or classmethod, no exec or"
        " eval, no globals(), vars(), dir(), callable() or input(), and no `__len__` or `__lt__` of your own classes."
        " A generator runs to its end at once, so it must be finite."
        " Modules: re, json, math, collections, itertools, functools, datetime, random, time, typing, dataclasses,"
        " bisect, copy, hashlib, base64, unicodedata, csv, decimal; the common part of "
        + ", ".join(sorted(SOURCES))
        + ". `map(llm_query, ...)` and `llm_query` as a sort key do not work: write a list comprehension."
        " In a long text with other letters than ASCII, indexing by position is slow: work on lines or documents."
    ),
    "cpython": (
        "Programs are written in Python 3 with its standard library, without files, network, threads, processes or"
        " packages, and without exec and eval."
    ),
}
"""By backend: the sentences about the language that the model is told."""

SIGNATURES: Mapping[str, str] = {
    "FINAL": "(answer: Any) -> None",
    "FINAL_VAR": "(name: str) -> None",
    "SHOW_VARS": "() -> str",
    "_llm_query_each": "(prompts: list[str]) -> list[str]",
    "chunk": "(max_characters: int = 8000, document: int | None = None) -> list[dict[str, Any]]",
    "filter_llm": "(instruction: str, items: list[Any]) -> list[Any]",
    "final": "(answer: Any, evidence: Any = None) -> None",
    "grep": (
        "(pattern: str, document: int | None = None, max_hits: int = 1000, ignore_case: bool = False)"
        " -> list[dict[str, Any]]"
    ),
    "llm_query": "(prompt: str) -> str",
    "llm_query_batched": "(prompts: list[str]) -> list[str | None]",
    "map_llm": "(instruction: str, items: list[Any], schema: Any = None) -> list[Any]",
    "peek": "(span: Any, before: int = 0, after: int = 0) -> str",
    "rlm_query": "(question: str, text: str) -> str",
    "vote": "(values: list[Any]) -> Any",
}
"""Of the scaffold's functions, by name."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A program that may be handed to a sandbox, or the reason why not.

    Attributes:
        code: the program, rewritten where `notes` say so; as it came where there are none.
        notes: one line for each rewrite, for the model.
        refused: one line; empty where the program may run.
    """

    code: str
    notes: tuple[str, ...] = ()
    refused: str = ""


def stubs(functions: Mapping[str, str]) -> str:
    """Stub declarations for a type checker, from the name of a function to its signature without `def`."""
    return "from typing import Any\n" + "".join(
        f"def {name}{signature}: ...\n" for name, signature in sorted(functions.items())
    )


def prepare(code: str, names: Collection[str], backend: str = "monty") -> Prepared:
    """Check a program and rewrite what its interpreter lacks.

    Refused are: what is no Python, or too large or nested to be read in bounded time; binding a name of the scaffold
    outside a function (inside one it is a variable of its own); and `exec`, `eval` and their like. A program that
    queries for each item of a list does so in one call of `_llm_query_each`, which the scaffold has to offer where
    `llm_query` is one of `names`.

    Args:
        names: of the scaffold.
        backend: `monty`, or `cpython`, which lacks nothing.
    """
    if reason := _too_large(code):
        return Prepared(code, refused=reason)
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        return Prepared(code, refused=_syntax(error))
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        return Prepared(code, refused=f"SyntaxError: {_cut(str(error))}; write it simpler")
    if reason := _too_complex(tree):
        return Prepared(code, refused=reason)
    tree, invented = _without_invented(tree, names)
    if reason := _refusal(tree, names):
        return Prepared(code, refused=reason)
    return _rewrite(code, tree, names, backend, invented)


def names_bound(code: str) -> set[str] | None:
    """The names that a cell may leave bound at its top; None where it cannot be read."""
    if _too_large(code):
        return None
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return None if _too_complex(tree) else {name for name, _ in _bindings([*ast.walk(tree)])}


def _without_invented(tree: ast.Module, names: Collection[str]) -> tuple[ast.Module, list[str]]:
    """The program without statements at its top that give a scaffold's variable a made-up value, and a note for each.

    Weak models begin with `context = "..."`, a copy of what they have been shown; the name already has its value.
    """
    notes = [
        f"line {statement.lineno} was left out: {target!r} is there already, and is not to be set"
        for statement in tree.body
        if (target := _invents(statement, names))
    ]
    if not notes:
        return tree, []
    kept = [statement for statement in tree.body if not _invents(statement, names)]
    return ast.Module(kept or [ast.Pass(lineno=1, col_offset=0)], []), notes


def _invents(statement: ast.stmt, names: Collection[str]) -> str:
    """The scaffold's name that a statement sets to a constant; empty for any other statement."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return ""
    target = statement.targets[0]
    if not isinstance(target, ast.Name) or target.id not in names:
        return ""
    try:
        ast.literal_eval(statement.value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ""
    return target.id


def _rewrite(
    code: str, tree: ast.Module, names: Collection[str], backend: str, invented: Collection[str] = ()
) -> Prepared:
    notes: list[str] = [*invented]
    prelude: list[str] = []
    if QUERY in names and can_batch(tree):
        batching = Batching(tree, names)
        tree = batching.visit(tree)
        notes += batching.notes
    if backend == "monty":
        subset = Subset(imported_modules(tree))
        tree = subset.visit(tree)
        notes += subset.notes
        prelude += subset.prelude.values()
    if not notes:
        return Prepared(code)
    for node in ast.walk(tree):  # of a location, `unparse` reads the line of statements alone
        if isinstance(node, ast.stmt):
            node.lineno = getattr(node, "lineno", 0)
    return Prepared("\n".join([*prelude, ast.unparse(tree)]) + "\n", tuple(notes))


def _refusal(tree: ast.Module, names: Collection[str]) -> str:
    nodes = [*ast.walk(tree)]
    for name, node in _bindings(nodes):
        if name in names:
            return f"line {node.lineno}: {name!r} belongs to the scaffold and cannot be bound; use another name"
    for used in nodes:
        if isinstance(used, ast.Name) and isinstance(used.ctx, ast.Load) and used.id in NO_CALLS_OF:
            return f"line {used.lineno}: {used.id} is not available; write the program itself"
    return ""


def _bindings(
    nodes: Sequence[ast.AST],
) -> Iterator[tuple[str, ast.stmt | ast.expr | ast.pattern | ast.excepthandler]]:
    """Each binding of a name in the scope of the module, with where it is; a function has a scope of its own.

    Args:
        nodes: all of the program, the module first.
    """
    declared = {
        name: node for node in nodes if isinstance(node, ast.Global) for name in node.names
    }  # a function may only bind what it declares
    yield from declared.items()
    left: list[ast.AST] = [nodes[0]]
    while left:
        node = left.pop()
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node
                left.extend(_walrus_of(node))
                continue
            case ast.Lambda():
                continue
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                targets = {id(x) for part in node.generators for x in ast.walk(part.target)}
                left.extend(x for x in ast.walk(node) if isinstance(x, ast.NamedExpr) and id(x) not in targets)
                continue
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                yield name, node
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                for alias in aliases:
                    yield alias.asname or alias.name.split(".")[0], node
            case ast.ExceptHandler(name=str(name)):
                yield name, node
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                yield name, node
        left.extend(ast.iter_child_nodes(node))


def _walrus_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> list[ast.AST]:
    """What of a definition is computed outside of it: decorators, defaults, bases."""
    outside: list[ast.AST] = [*node.decorator_list]
    if isinstance(node, ast.ClassDef):
        return [*outside, *node.bases, *node.keywords]
    return [*outside, *node.args.defaults, *(default for default in node.args.kw_defaults if default)]


def _too_complex(tree: ast.AST) -> str:
    """Judged once it is parsed, before anything walks it in a way that depends on its shape; empty where it is not."""
    num_nodes = 0
    left = [(tree, 0)]
    while left:
        node, depth = left.pop()
        num_nodes += 1
        if depth > MAX_DEPTH:
            return f"the program is nested deeper than {MAX_DEPTH} levels; use names for its parts"
        if num_nodes + len(left) > MAX_NODES:
            return f"the program has more than {MAX_NODES} parts; put data in variables, or write two cells"
        left.extend((child, depth + 1) for child in ast.iter_child_nodes(node))
    return ""


def _too_large(code: str) -> str:
    """Judged before anything is parsed, in one pass; empty where it is not."""
    if len(code) > MAX_CHARACTERS:
        return f"the program has {len(code)} characters, at most {MAX_CHARACTERS} are read; put data in variables"
    if code.count("{") > MAX_BRACES:
        return f"the program has more than {MAX_BRACES} braces; put data in variables"
    depth, position = 0, 0
    while position < len(code):
        letter = code[position]
        if letter in "([{":
            depth += 1
            if depth > MAX_BRACKETS:
                return f"the program nests more than {MAX_BRACKETS} brackets; use names for its parts"
        elif letter in ")]}":
            depth -= 1
        elif letter == "#":
            position = _found(code, "\n", position)
        elif letter in "'\"":
            position = _end_of_string(code, position)
        position += 1
    return ""


def _end_of_string(code: str, start: int) -> int:
    """The position of the last quote of the string that starts here, or the end of the code."""
    quote = code[start] * 3 if code.startswith(code[start] * 3, start) else code[start]
    position = start + len(quote)
    while position < len(code):
        if code[position] == "\\":
            position += 1
        elif code.startswith(quote, position):
            return position + len(quote) - 1
        elif code[position] == "\n" and len(quote) == 1:
            return position
        position += 1
    return position


def _found(code: str, text: str, start: int) -> int:
    position = code.find(text, start)
    return len(code) if position < 0 else position


def _syntax(error: SyntaxError) -> str:
    line = f" in `{_cut(error.text.strip())}`" if error.text else ""
    return f"{type(error).__name__}: line {error.lineno}: {_cut(error.msg)}{line}"


def _cut(text: str) -> str:
    return " ".join(text.split())[:120]


def similar(name: str, names: Collection[str]) -> str:
    """A hint at what was meant by a name that nobody defined; empty without one."""
    found = difflib.get_close_matches(name, names, 1, 0.75)
    return f"; did you mean {found[0]!r}?" if found else ""
