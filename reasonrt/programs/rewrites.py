"""Rewrites of a program that keep its meaning: what Monty's Python lacks, and many sub-calls made into one.

A rewrite is applied only where the form of the code is enough to know that it is safe; everything else stays as it
is, and the interpreter says what it does not know. Each one that was applied is said in a line.
"""

import ast
import builtins
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import cast

from reasonrt.programs.shims import SOURCES, maker, module_source

EACH = "_llm_query_each"
QUERY = "llm_query"
_RE_SUB = """def _re_sub(pattern, repl, string, count=0, flags=0):
    import re
    if isinstance(repl, str):
        return re.sub(pattern, repl, string, count=count, flags=flags)
    parts = []
    end = 0
    for number, match in enumerate(re.finditer(pattern, string, flags) if flags else re.finditer(pattern, string)):
        if count and number == count:
            break
        parts.append(string[end:match.start()])
        parts.append(repl(match))
        end = match.end()
    return ''.join(parts) + string[end:]"""


class Batching(ast.NodeTransformer):
    """`[llm_query(E) for x in xs if C]`, and a loop that appends `llm_query(E)` and does nothing else, as one call.

    The prompts are all made before the first is asked. One failed item raises, as it would have.

    Args:
        tree: the whole program.
        names: of the scaffold: a prompt that calls one of these is left alone, for its order of calls would change.
    """

    def __init__(self, tree: ast.AST, names: Collection[str]) -> None:
        self.notes: list[str] = []
        self._called = {name for name in names if name not in ("context", "answer")}
        self._reads = Counter(_reads(tree))

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        self.generic_visit(node)
        prompt = self._prompt(node.elt)
        clauses: list[ast.AST] = [*node.generators]
        if prompt is None or any(self._asks(part) for part in clauses) or any(gen.is_async for gen in node.generators):
            return node
        self.notes.append(f"line {node.lineno}: the {QUERY} calls of a list were made in one batch")
        return _call(EACH, ast.ListComp(prompt, node.generators))

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.For(
                target=ast.Name(id=item),
                iter=items,
                body=[ast.Expr(ast.Call(ast.Attribute(ast.Name(id=out), "append"), [asked], []))],
                orelse=[],
            ):
                prompt = self._prompt(asked)
            case _:
                return node
        inside = {name.id for part in (prompt, items) if part for name in ast.walk(part) if isinstance(name, ast.Name)}
        if prompt is None or self._asks(items) or out in inside or out == item:
            return node
        if self._reads[item] > Counter(_reads(node))[item]:  # its last value is used after the loop
            return node
        self.notes.append(f"line {node.lineno}: the {QUERY} calls of a loop were made in one batch")
        generator = ast.comprehension(ast.Name(item, ast.Store()), items, [], 0)
        extend = ast.Attribute(ast.Name(out, ast.Load()), "extend", ast.Load())
        return ast.Expr(ast.Call(extend, [_call(EACH, ast.ListComp(prompt, [generator]))], []))

    def _prompt(self, node: ast.AST) -> ast.expr | None:
        match node:
            case ast.Call(ast.Name(id="llm_query"), [prompt], []) if not self._asks(prompt):
                return None if isinstance(prompt, ast.Starred) else prompt
        return None

    def _asks(self, node: ast.AST) -> bool:
        unsafe = (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)
        return any(isinstance(x, unsafe) or (isinstance(x, ast.Name) and x.id in self._called) for x in ast.walk(node))


class Subset(ast.NodeTransformer):
    """What Monty's Python lacks, in what it has."""

    def __init__(self, modules: Collection[str] = ()) -> None:
        self.notes: list[str] = []
        self.prelude: dict[str, str] = {}
        self._modules = modules

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        yields = _own_yields(node)
        if yields and _can_be_list(node, yields):
            self._note(node, f"the generator {node.name} runs to its end before its first item is used")
            node = _ListBuilder().build(node)
        self.generic_visit(node)
        return node

    def visit_Delete(self, node: ast.Delete) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        statements = [_deleted(target) for target in node.targets]
        if not all(statements):
            return node
        made = [ast.fix_missing_locations(x) for x in statements if x]
        self._note(node, f"`{ast.unparse(node)}` became `{'; '.join(map(ast.unparse, made))}`")
        return made

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.ClassDef(bases=[ast.Name(id="object")], keywords=[]):
                self._note(node, f"the class {node.name} needs no base")
                node.bases = []
            case ast.ClassDef(bases=[ast.Name(id=base)], keywords=[], decorator_list=[]) if _is_exception(base):
                if all(_says_nothing(statement) for statement in node.body):
                    self._note(node, f"the exception {node.name} is {base} itself")
                    return ast.Assign([ast.Name(node.name, ast.Store())], ast.Name(base, ast.Load()))
        return node

    def visit_Import(self, node: ast.Import) -> ast.AST | list[ast.stmt]:
        if not any(alias.name in SOURCES for alias in node.names):
            return node
        made: list[ast.stmt] = []
        for alias in node.names:
            if alias.name in SOURCES and (alias.asname or "." not in alias.name):
                made += self._module(node, alias.name, alias.asname or alias.name)
            else:
                made.append(ast.Import([alias]))
        return made

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | list[ast.stmt]:
        if node.module is None or node.module not in SOURCES or any(alias.name == "*" for alias in node.names):
            return node
        holder = f"_{node.module.replace('.', '_')}"
        made = self._module(node, node.module, holder)
        for alias in node.names:
            value = ast.Attribute(ast.Name(holder, ast.Load()), alias.name, ast.Load())
            made.append(ast.Assign([ast.Name(alias.asname or alias.name, ast.Store())], value))
        return made

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.Call(ast.Attribute(ast.Name(id="re"), "sub"), [_, repl, _, *_]) if _may_be_function(repl):
                return self._re_sub(node, node.args)
            case ast.Call(ast.Attribute(pattern, "sub"), [ast.Lambda() as repl, text], []):
                return self._re_sub(node, [pattern, repl, text])
            case ast.Call(ast.Name(id="next"), [ast.GeneratorExp() as items, *_], []):
                self._note(node, "`next` of a generator expression computes all of its items")
                node.args[0] = _call("iter", ast.ListComp(items.elt, items.generators))
            case ast.Call(ast.Name(id="map" | "filter"), [ast.Attribute() as method, _, *_], []):
                node.args[0] = self._wrapped(method)
        for keyword in node.keywords:
            if keyword.arg == "key" and isinstance(keyword.value, ast.Attribute):
                keyword.value = self._wrapped(keyword.value)
        return node

    def _wrapped(self, method: ast.Attribute) -> ast.expr:
        """A method as a value, which Monty has not for its own types, in a lambda."""
        if not isinstance(method.value, ast.Name) or method.value.id in self._modules:
            return method
        item = ast.Name("_item", ast.Load())
        is_type = method.value.id in ("str", "list", "dict", "tuple", "set", "bytes", "int", "float")
        owner: ast.expr = item if is_type else method.value
        called = ast.Call(ast.Attribute(owner, method.attr, ast.Load()), [] if is_type else [item], [])
        self._note(method, f"`{ast.unparse(method)}` as a value became a lambda")
        arguments = ast.arguments([], [ast.arg("_item")], None, [], [], None, [])
        return ast.Lambda(arguments, called)

    def _re_sub(self, node: ast.Call, arguments: list[ast.expr]) -> ast.AST:
        self.prelude["re.sub"] = _RE_SUB
        self._note(node, "`re.sub` with a function is done by a loop over `re.finditer`")
        return ast.Call(ast.Name("_re_sub", ast.Load()), arguments, node.keywords)

    def _module(self, node: ast.AST, name: str, bound_to: str) -> list[ast.stmt]:
        self._note(node, f"the module {name} is a small stand-in")
        self.prelude[name] = module_source(name)
        return [ast.Assign([ast.Name(bound_to, ast.Store())], _call(maker(name)))]

    def _note(self, node: ast.AST, text: str) -> None:
        line = getattr(node, "lineno", 0)
        self.notes.append(f"line {line}: {text}" if line else text)


class _ListBuilder(ast.NodeTransformer):
    """A generator function as one that fills a list and returns an iterator over it."""

    def build(self, node: ast.FunctionDef) -> ast.FunctionDef:
        body = [cast(ast.stmt, self.visit(statement)) for statement in node.body]
        first = ast.Assign([ast.Name("_yielded", ast.Store())], ast.List([], ast.Load()))
        node.body = [first, *body, self._end()]
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        match node.value:
            case ast.Yield(value=value):
                return self._keep("append", value or ast.Constant(None))
            case ast.YieldFrom(value=value):
                return self._keep("extend", value)
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        return self._end()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return node

    def _keep(self, how: str, value: ast.expr) -> ast.Expr:
        method = ast.Attribute(ast.Name("_yielded", ast.Load()), how, ast.Load())
        return ast.Expr(ast.Call(method, [value], []))

    def _end(self) -> ast.Return:
        return ast.Return(_call("iter", ast.Name("_yielded", ast.Load())))


def can_batch(tree: ast.AST) -> bool:
    """Whether a program queries at all, and by the scaffold's function: a function may have a variable of that name."""
    queries = False
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.arg == QUERY:
            return False
        if isinstance(node, ast.Name) and node.id == QUERY:
            if not isinstance(node.ctx, ast.Load):
                return False
            queries = True
    return queries


def imported_modules(tree: ast.AST) -> set[str]:
    """Names that a program binds to modules."""
    aliases = (alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names)
    return {alias.asname or alias.name.split(".")[0] for alias in aliases}


def _own_yields(function: ast.AST) -> list[ast.AST]:
    """The yields of a function itself, and not of what is defined in it."""
    found: list[ast.AST] = []
    left = [*ast.iter_child_nodes(function)]
    while left:
        node = left.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            found.append(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            left.extend(ast.iter_child_nodes(node))
    return found


def _can_be_list(function: ast.FunctionDef, yields: Sequence[ast.AST]) -> bool:
    """Each yield is a statement, and no loop is without an end of its own."""
    statements = {id(node.value) for node in ast.walk(function) if isinstance(node, ast.Expr)}
    endless = [node for node in ast.walk(function) if _has_no_end(node)]
    ends = (ast.Break, ast.Return, ast.Raise)
    return all(id(node) in statements for node in yields) and all(
        any(isinstance(inner, ends) for inner in ast.walk(loop)) for loop in endless
    )


def _has_no_end(node: ast.AST) -> bool:
    match node:
        case ast.While(test=ast.Constant()):
            return True
        case ast.For(iter=ast.Call(ast.Name(id=name) | ast.Attribute(attr=name))):
            return name in ("count", "cycle", "repeat", "iter")
    return False


def _deleted(target: ast.expr) -> ast.stmt | None:
    match target:
        case ast.Name(id=name):
            return ast.Assign([ast.Name(name, ast.Store())], ast.Constant(None))
        case ast.Subscript(value, ast.Slice() as part) if part.step is None:
            return ast.Assign([ast.Subscript(value, part, ast.Store())], ast.List([], ast.Load()))
        case ast.Subscript(value, key):
            return ast.Expr(ast.Call(ast.Attribute(value, "pop", ast.Load()), [key], []))
    return None


def _is_exception(name: str) -> bool:
    kind = getattr(builtins, name, None)
    return isinstance(kind, type) and issubclass(kind, Exception)


def _says_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _may_be_function(node: ast.expr) -> bool:
    return isinstance(node, ast.Lambda | ast.Name | ast.Attribute)


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), [*arguments], [])


def _reads(tree: ast.AST) -> Iterator[str]:
    return (node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
