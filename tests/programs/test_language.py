"""Programs are refused with a reason, left alone, or rewritten into something that gives the same."""

import ast
import contextlib
import gc
import io
import statistics
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.programs.language import MAX_CHARACTERS, PROMPT, SIGNATURES, prepare, stubs
from reasonrt.programs.sandbox.base import CellLimits, Ending, HostCall
from reasonrt.programs.sandbox.build import SandboxTool, build_sandbox
from reasonrt.programs.shims import SOURCES, module_source

NAMES = frozenset({"context", "llm_query", "grep", "final", "_llm_query_each"})

REFUSED = {
    "assignment": "grep = len",
    "tuple": "(a, (context, b)) = 1, (2, 3)",
    "starred": "a, *context = [1, 2]",
    "augmented": "context += 'more'",
    "assignment of what it has computed": "context = context.strip()",
    "annotated": "context: str = 'mine'",
    "for": "for llm_query in range(3):\n    pass",
    "with": "with open('x') as context:\n    pass",
    "import": "import json as grep",
    "import of a submodule": "import grep.more",
    "import from": "from json import loads as final",
    "function": "def llm_query(p):\n    return 'yes'",
    "asynchronous function": "async def llm_query(p):\n    return 'yes'",
    "class": "class final:\n    pass",
    "walrus": "if (context := 1):\n    pass",
    "walrus in a comprehension": "[x for x in range(3) if (final := x)]",
    "walrus in a default": "def f(x=(final := 1)):\n    pass",
    "walrus in a subscript": "x[(final := 1)] = 2",
    "global": "def f():\n    global context\n    context = 1",
    "except": "try:\n    pass\nexcept ValueError as final:\n    pass",
    "match": "match x:\n    case {'a': final}:\n        pass",
    "match star": "match x:\n    case [1, *final]:\n        pass",
    "match rest": "match x:\n    case {**final}:\n        pass",
    "match as": "match x:\n    case 1 as final:\n        pass",
    "deletion": "del context",
    "nested": "if True:\n    for x in y:\n        context = x",
    "exec": "exec('context = 1')",
    "eval by another name": "e = eval\ne('1')",
    "import by name": "__import__('os')",
}


@pytest.mark.parametrize("value", ["'a made-up text'", "['one', 'two']", "{'a': 1}", "None"])
@pytest.mark.parametrize("backend", ["monty", "cpython"])
def test_a_made_up_value_for_a_name_of_the_scaffold_is_left_out(value: str, backend: str) -> None:
    prepared = prepare(f"import re\ncontext = {value}\nprint(context)", NAMES, backend)

    assert not prepared.refused
    assert prepared.code.strip() == "import re\nprint(context)"
    assert prepared.notes == ("line 2 was left out: 'context' is there already, and is not to be set",)
    assert prepare(f"context = {value}", NAMES, backend).code.strip() == "pass"


@pytest.mark.parametrize("code", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("backend", ["monty", "cpython"])
def test_what_would_change_the_scaffold_is_refused_in_one_line(code: str, backend: str) -> None:
    prepared = prepare(code, NAMES, backend)

    assert prepared.refused.startswith("line ")
    assert "\n" not in prepared.refused
    assert prepared.code == code


ALLOWED = [
    "[context for context in ['a']]",
    "{final: 1 for final in range(3)}",
    "def f(context):\n    return context",
    "def f():\n    final = 1\n    return final",
    "f = lambda grep: grep",
    "class A:\n    final = 1",
    "a.context = 1",
    "d['context'] = 1",
    "f(context=1)",
    "context[0] = 'x'",
    "model.eval()",
    "x = 'context = 1'",
    "async def f():\n    context = 1",
]


@pytest.mark.parametrize("code", ALLOWED)
def test_what_only_looks_like_it_is_left_alone(code: str) -> None:
    assert prepare(code, NAMES, "cpython") == prepare(code, NAMES)
    assert prepare(code, NAMES).code == code
    assert not prepare(code, NAMES).refused
    assert not prepare(code, NAMES).notes


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("x = (1", "SyntaxError: line 1: '(' was never closed in `x = (1`"),
        ("x = 1\n  y = 2", "IndentationError: line 2"),
        ("a\0b", "SyntaxError"),
        ("x" * (MAX_CHARACTERS + 1), "characters"),
        ("(" * 100 + ")" * 100, "brackets"),
        ("x = " + "-" * 500 + "1", "nested"),
        ("x = 1\n" * 3000, "parts"),
        (f"x = f'{'{a}' * 1001}'", "braces"),
    ],
)
def test_what_cannot_be_read_is_refused(code: str, reason: str) -> None:
    assert reason in prepare(code, NAMES).refused
    assert "\n" not in prepare(code, NAMES).refused


HOSTILE = {
    "sum": "1+" * 9999 + "1",
    "parentheses": "(" * 19999,
    "not": "not " * 4999 + "1",
    "minus": "-" * 19999 + "1",
    "attributes": "a" + ".b" * 9500,
    "subscripts": "a" + "[0]" * 6000,
    "calls": "f" + "()" * 9500,
    "elif": "if a:\n b\n" + "elif a:\n b\n" * 1600,
    "lambda": "lambda:" * 2500 + "1",
    "f-string": "f'" + "{a}" * 6000 + "'",
    "statements": "a=b;" * 4999,
    "triple quotes": '"""\\' * 4999,
    "quotes": '"' * 19999,
    "power": "2**" * 6000 + "1",
    "comparison": "a<" * 9999 + "a",
    "ternary": "a if b else " * 1600 + "c",
    "decorators": "@a\n" * 6000 + "def f(): pass",
    "comprehension": "[a " + "for a in b " * 1800 + "]",
    "imports": "import heapq\n" * 1500,
    "batches": "[llm_query(a) for a in b]\n" * 760,
    "nested batches": "for a in b:\n o.append(llm_query(a))\n" * 500,
    "generators": "def f():yield 1\n" * 1200,
    "nested functions": "".join(" " * i + "def f():\n" for i in range(50)) + " " * 50 + "a=b;" * 4000,
    "backslashes": "\\\n" * 9999,
    "digits": "9" * 19999,
    "indentation": "".join(" " * i + "if a:\n" for i in range(99)) + " " * 99 + "b",
}


@pytest.mark.parametrize("code", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_costs_little(code: str) -> None:
    """Counted in readings of a plain program as large as one may be, one beside the other; processor time, medians."""
    plain = "a=b;" * 990

    ratios = [
        _seconds(lambda: prepare(code, NAMES)) / _seconds(lambda: ast.unparse(ast.parse(plain))) for _ in range(9)
    ]

    assert statistics.median(ratios) < 8


def _seconds(work: Callable[[], object]) -> float:
    gc.disable()  # what it takes hangs on all that other tests have left
    began = time.process_time()
    work()
    spent = time.process_time() - began
    gc.enable()
    return spent


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="()[]{}'\"\\#\n\t :=,.abf@*-+0é\0", max_size=200))
def test_no_text_makes_it_fail(code: str) -> None:
    prepared = prepare(code, NAMES)

    assert prepared.refused or ast.parse(prepared.code) is not None


_NUMBERS = st.integers(0, 99).map(str) | st.sampled_from(["x", "y", "len(items)", "items[0]"])
_EXPRESSIONS = st.recursive(
    _NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda e: f"sum([{e} + i for i in range(3)])"),
        st.tuples(inner, inner).map(lambda t: f"max({t[0]}, {t[1]})"),
        inner.map(lambda e: f"({e} if x > y else y)"),
    ),
    max_leaves=8,
)
_STATEMENTS = st.recursive(
    st.one_of(
        _EXPRESSIONS.map(lambda e: f"x = {e}"),
        _EXPRESSIONS.map(lambda e: f"items.append({e})"),
        _EXPRESSIONS.map(lambda e: f"print(x, {e})"),
    ),
    lambda inner: st.tuples(_EXPRESSIONS, st.lists(inner, min_size=1, max_size=3)).map(
        lambda t: f"if {t[0]} > y:\n" + "\n".join(f"    {line}" for s in t[1] for line in s.split("\n"))
    ),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_STATEMENTS, min_size=1, max_size=6))
def test_programs_without_such_features_are_left_as_they_are(statements: list[str]) -> None:
    code = "\n".join(["x, y, items = 1, 2, [3]", *statements])

    for backend in ("monty", "cpython"):
        assert prepare(code, NAMES, backend).code is code


SAME = {
    "a generator": (
        "def count(n):\n    for i in range(n):\n        if i == 3:\n            return\n        yield i\n    yield 99\n"
        "print(list(count(2)), [x for x in count(5)], next(count(1)), sum(count(3)))"
    ),
    "a generator of parts": (
        "def words(lines):\n    for line in lines:\n        yield from line.split()\n    yield\n"
        "for w in words(['a b', 'c']):\n    print(w)"
    ),
    "a generator that ends by itself": (
        "def read():\n    n = 0\n    while True:\n        n += 1\n        if n > 3:\n            break\n"
        "        yield n\n"
        "print(list(read()))"
    ),
    "a generator in a class": (
        "class A:\n    def parts(self, text):\n        for x in text:\n            yield x\n"
        "print(list(A().parts('ab')))"
    ),
    "deletions": (
        "x = 1\nd = {'a': 1, 'b': 2}\nitems = [1, 2, 3, 4]\ndel x, d['a'], items[0]\ndel items[1:]\nprint(d, items)\n"
        "try:\n    del d['zz']\nexcept KeyError as error:\n    print('no', error)"
    ),
    "an exception": (
        "class TooLong(ValueError):\n    '''Why.'''\n"
        "try:\n    raise TooLong('x')\nexcept TooLong as error:\n    print(error)"
    ),
    "an empty exception": (
        "class Missing(Exception):\n    pass\ntry:\n    raise Missing\nexcept Missing:\n    print('caught')"
    ),
    "a class of object": "class A(object):\n    n = 1\nprint(A().n)",
    "re.sub with a lambda": "import re\nprint(re.sub(r'\\d+', lambda m: str(int(m.group(0)) * 2), 'a1 b22 c'))",
    "re.sub with a function, count and flags": (
        "import re\ndef up(m):\n    return m.group(1).upper()\n"
        "print(re.sub(r'(B)', up, 'bbb', 2, re.I), re.sub('(a)', up, 'aaa', count=1))"
    ),
    "re.sub with a string in a name": "import re\nto = r'<\\1>'\nprint(re.sub('(a)', to, 'banana'))",
    "sub of a pattern": "import re\np = re.compile('an')\nprint(p.sub(lambda m: '[' + m.group() + ']', 'banana'))",
    "next": (
        "xs = [1, 2, 3]\nprint(next((x for x in xs if x > 1), None), next((x for x in xs if x > 9), 'none'))\n"
        "print(next(x * 2 for x in xs))"
    ),
    "a method as a key": (
        "d = {'a': 1, 'b': 3}\nxs = ['b', 'A', 'b']\n"
        "print(max(d, key=d.get), max(set(xs), key=xs.count), sorted(xs, key=str.lower), list(map(str.upper, xs)))"
    ),
    "string": "import string\nprint(string.ascii_letters, string.punctuation, string.digits, string.capwords('a b c'))",
    "heapq": (
        "import heapq\nh = []\nfor x in [5, 1, 4, 1, 3]:\n    heapq.heappush(h, x)\n"
        "print([heapq.heappop(h) for _ in range(5)], heapq.nlargest(2, ['aa', 'b', 'ccc'], key=len))\n"
        "g = [3, 1, 2]\nheapq.heapify(g)\nprint(g[0], heapq.heappushpop(g, 0), heapq.heapreplace(g, 9), sorted(g))\n"
        "print(list(heapq.merge([1, 4], [2, 3])), heapq.nsmallest(2, [3, 1, 2]))"
    ),
    "statistics": (
        "from statistics import mean, median, mode, stdev, pstdev, variance, multimode, fmean, median_low\n"
        "xs = [1, 2, 2, 5]\nprint(mean(xs), median(xs), mode(xs), round(stdev(xs), 9), round(pstdev(xs), 9))\n"
        "print(round(variance(xs), 9), multimode('aabb'), fmean([1, 2]), median_low(xs), mean([1, 3]))\n"
        "try:\n    mean([])\nexcept ValueError:\n    print('empty')"
    ),
    "operator": (
        "from operator import itemgetter, attrgetter\nimport operator as op\n"
        "print(sorted([(1, 'b'), (0, 'c')], key=itemgetter(1)), itemgetter(0, 1)('xy'), op.add(1, 2), op.not_(0))"
    ),
    "textwrap": (
        "import textwrap\nt = '  the quick brown fox  jumps over the extraordinarily lazy dog'\n"
        "print(textwrap.wrap(t.strip(), 12), textwrap.fill('a b c', 3), textwrap.shorten(t, 20))\n"
        "print(textwrap.dedent('  a\\n    b\\n\\n  c'), textwrap.indent('a\\n\\nb', '> '))"
    ),
    "collections.abc": (
        "from collections.abc import Mapping, Sequence\n"
        "print(isinstance({}, Mapping), isinstance([], Sequence), isinstance(1, Sequence), isinstance('', Sequence))"
    ),
    "a batch": "print([llm_query(f'{x}!') for x in ['a', 'b', ''] if x], llm_query('alone'))",
    "a batch of two loops": "print([llm_query(a + b) for a in 'xy' for b in 'pq'])",
    "a batch of a loop": "out = ['first']\nfor part in ['a', 'b']:\n    out.append(llm_query('q' + part))\nprint(out)",
    "a batch in a function": "def ask(xs):\n    return [llm_query(x) for x in xs]\nprint(ask(['a', 'b']))",
    "an empty batch": "print([llm_query(x) for x in []])",
}


@pytest.fixture(scope="module", params=["monty", "cpython"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def sandbox(backend: str) -> AsyncIterator[SandboxTool]:
    built = build_sandbox(backend)
    yield built
    await built.aclose()


@pytest.mark.parametrize("name", SAME)
async def test_a_rewritten_program_gives_what_the_original_gives(sandbox: SandboxTool, backend: str, name: str) -> None:
    code = SAME[name]
    prepared = prepare(code, NAMES, backend)
    assert not prepared.refused
    assert prepared.notes or backend == "cpython"
    assert all("\n" not in note for note in prepared.notes)

    session = await sandbox.open({}, ["llm_query", "_llm_query_each"])
    cell = await session.run(prepared.code, _host)
    await session.aclose()

    assert (cell.ending, cell.error) == (Ending.DONE, "")
    assert cell.output == _original(code)
    if "batch" in name:
        assert cell.num_calls == 1 + ("alone" in code)


async def _host(call: HostCall) -> Any:
    if call.name == "llm_query":
        return _answer(*call.args)
    return [_answer(prompt) for prompt in call.args[0]]


def _answer(prompt: str) -> str:
    return f"<{prompt}>"


def _original(code: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "original", "exec"), {"llm_query": _answer})  # noqa: S102 (of this file)
    return printed.getvalue()


NOT_BATCHED = [
    "out = []\nfor x in 'ab':\n    out.append(llm_query(x))\nprint(x)",
    "out = []\nfor x in 'ab':\n    out.append(llm_query(x + str(len(out))))",
    "out = []\nfor x in 'ab':\n    print(x)\n    out.append(llm_query(x))",
    "out = []\nfor x in 'ab':\n    out.append(llm_query(x))\nelse:\n    print('end')",
    "[llm_query(llm_query(x)) for x in 'ab']",
    "[llm_query(x) for x in grep('a')]",
    "[llm_query(x) for x in 'ab' if llm_query(x) == 'yes']",
    "[llm_query(x, 'more') for x in 'ab']",
    "[llm_query(prompt=x) for x in 'ab']",
    "[llm_query(x).upper() for x in 'ab']",
    "[llm_query((y := x)) for x in 'ab']",
    "def f(llm_query):\n    return [llm_query(x) for x in 'ab']",
    "def f():\n    llm_query = str\n    return [llm_query(x) for x in 'ab']",
    "(llm_query(x) for x in 'ab')",
]


@pytest.mark.parametrize("code", NOT_BATCHED)
def test_calls_that_depend_on_each_other_are_not_batched(code: str) -> None:
    prepared = prepare(code, NAMES, "cpython")

    assert (prepared.code, prepared.notes, prepared.refused) == (code, (), "")


def test_each_rewrite_names_its_line() -> None:
    prepared = prepare("x = 1\ndel x\nimport heapq", NAMES)

    assert prepared.notes == ("line 2: `del x` became `x = None`", "line 3: the module heapq is a small stand-in")
    assert not prepare("x = 1\ndel x\nimport heapq", NAMES, "cpython").notes


@pytest.mark.parametrize("loop", ["while True", "while 1", "for i in count()", "for i in itertools.cycle('ab')"])
def test_a_generator_without_an_end_is_left_to_the_interpreter(loop: str) -> None:
    code = f"def f():\n    {loop}:\n        yield 1"

    assert prepare(code, NAMES).code == code


@pytest.mark.parametrize("name", SOURCES)
def test_each_stand_in_defines_what_the_module_has(name: str) -> None:
    module = __import__(name, fromlist=["*"])
    namespace: dict[str, Any] = {}
    exec(module_source(name), namespace)  # noqa: S102 (of this package)
    made = namespace[f"_make_{name.replace('.', '_')}"]()

    assert vars(made)
    assert not [attribute for attribute in vars(made) if not hasattr(module, attribute)]
    assert all(line.startswith(("class _", "def _", " ")) for line in module_source(name).splitlines() if line)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=20), st.integers(0, 5))
def test_stand_ins_compute_what_the_modules_compute(numbers: list[int], n: int) -> None:
    import heapq
    import statistics

    ours: dict[str, Any] = {}
    exec(module_source("heapq") + "\n" + module_source("statistics"), ours)  # noqa: S102 (of this package)
    heaps, stats = ours["_make_heapq"](), ours["_make_statistics"]()
    heap = list(numbers)
    heaps.heapify(heap)

    assert [heaps.heappop(heap) for _ in numbers] == sorted(numbers)
    assert heaps.nlargest(n, numbers) == heapq.nlargest(n, numbers)
    assert stats.median(numbers) == statistics.median(numbers)
    assert stats.multimode(numbers) == statistics.multimode(numbers)
    assert stats.mean(numbers) == pytest.approx(statistics.mean(numbers))
    assert stats.pvariance(numbers) == pytest.approx(statistics.pvariance(numbers))


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab  \n", max_size=60), st.integers(1, 12))
def test_text_is_wrapped_as_by_the_module(text: str, width: int) -> None:
    import textwrap

    ours: dict[str, Any] = {}
    exec(module_source("textwrap"), ours)  # noqa: S102 (of this package)
    wrapped = ours["_make_textwrap"]()
    words = " ".join(word[:width] for word in text.split())  # words that need no cutting

    assert wrapped.wrap(words, width) == textwrap.wrap(words, width)
    assert wrapped.dedent(text) == textwrap.dedent(text)
    assert wrapped.indent(text, "> ") == textwrap.indent(text, "> ")


def test_stubs_declare_functions() -> None:
    tree = ast.parse(stubs(SIGNATURES))

    assert {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} == set(SIGNATURES)


def test_the_model_is_told_what_the_language_lacks() -> None:
    assert set(PROMPT) == {"monty", "cpython"}
    assert all(module in PROMPT["monty"] for module in SOURCES)


LACKING = {
    "inheritance": "class A:\n    pass\nclass B(A):\n    pass",
    "property": "class A:\n    @property\n    def x(self): return 1",
    "staticmethod": "class A:\n    @staticmethod\n    def x(): return 1",
    "globals()": "globals()",
    "vars()": "vars()",
    "dir()": "dir()",
    "callable()": "callable(1)",
    "input()": "input()",
    "`__len__`": "class A:\n    def __len__(self): return 3\nlen(A())",
    "`__lt__`": "class A:\n    def __lt__(self, o): return True\nA() < A()",
    "map(llm_query": "list(map(llm_query, ['a']))",
    "sort key": "sorted(['a', 'b'], key=llm_query)",
}


@pytest.mark.parametrize("what", LACKING)
async def test_what_the_model_is_told_is_true(what: str) -> None:
    """A newer Monty that has it fails here, so that the sentence goes."""
    assert what in PROMPT["monty"]
    sandbox = build_sandbox("monty")
    session = await sandbox.open({}, ["llm_query"])

    cell = await session.run(LACKING[what], _host)

    assert cell.ending in (Ending.RAISED, Ending.REFUSED)
    await session.aclose()
    await sandbox.aclose()


MODULES = (
    "re json math collections itertools functools datetime random time typing dataclasses bisect copy hashlib base64"
    " unicodedata csv decimal"
)


@pytest.mark.parametrize("module", MODULES.split())
async def test_the_modules_that_the_model_is_told_of_are_there(module: str) -> None:
    assert f" {module}," in PROMPT["monty"] or f" {module};" in PROMPT["monty"]
    sandbox = build_sandbox("monty")
    session = await sandbox.open({}, limits=CellLimits(cell_s=2))

    assert (await session.run(f"import {module}", _host)).ending is Ending.DONE
    await session.aclose()
    await sandbox.aclose()
