"""The check before a cell runs: it finds what cannot work, and refuses nothing that would have run well."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest

from reasonrt.programs.language import SIGNATURES, prepare
from reasonrt.programs.sandbox.base import Ending, HostCall
from reasonrt.programs.sandbox.build import SandboxTool, build_sandbox
from reasonrt.programs.sandbox.check import Checker

DOCUMENTS = [f"Document {n}. User: {n % 3} wrote on {n + 1} May 2024: note {n}.\nScore: {n * 7}" for n in range(6)]


@pytest.fixture(autouse=True)
def patient_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that a slow machine does not end in time would refuse nothing."""
    monkeypatch.setattr("reasonrt.programs.sandbox.check.CHECK_S", 60.0)


@pytest.fixture
async def sandbox() -> AsyncIterator[SandboxTool]:
    built = build_sandbox("monty")
    yield built
    await built.aclose()


async def answer(call: HostCall) -> Any:
    """A scaffold of few words."""
    spans = [{"document": 0, "start": 0, "end": 8, "text": "Document", "line": "Document 0."}]
    replies: dict[str, Any] = {
        "FINAL": None,
        "FINAL_VAR": None,
        "SHOW_VARS": "x: int",
        "chunk": spans,
        "filter_llm": ["a"],
        "final": None,
        "grep": spans,
        "llm_query": "yes",
        "map_llm": [{"label": "a"}],
        "peek": "text",
        "vote": "a",
    }
    if call.name in ("_llm_query_each", "llm_query_batched"):
        return ["yes" for _ in call.args[0]]
    return replies[call.name]


PROGRAMS = r"""look
print(type(context), len(context))
print(context[0][:200])

## join
text = context if isinstance(context, str) else '\n'.join(context)
print(text.count('User'))

## treat as text
parts = ''.join(context).split('\n')
for i, line in enumerate(parts[:3]):
    print(i, line.strip())

## regular expression
import re
found = re.findall(r'Score: (\d+)', ' '.join(context))
print(sum(int(x) for x in found))

## match or none
import re
m = re.search(r'note (\d+)', context[1])
print(m.group(1) if m else None)

## match, unchecked
import re
print(re.search(r'note (\d+)', context[1]).group(1))

## counter
from collections import Counter, defaultdict
c = Counter(d.split('User: ')[1][0] for d in context)
print(c.most_common(1)[0][0])
by = defaultdict(list)
for d in context:
    by[len(d)].append(d)
print(len(by))

## query each
answers = [llm_query(f'Q: {d}') for d in context]
print(answers.count('yes'))

## query with joined text
s = '\n'.join(context)
r = llm_query('Summarise:\n' + s)
print(r.upper())

## batched with none
rs = llm_query_batched([d[:50] for d in context])
good = [r for r in rs if r]
print(len(good), rs[0].upper())

## batched, then query
rs = llm_query_batched(context)
print(llm_query(rs[0]), llm_query(rs[-1]))

## helpers
hits = grep('Score', max_hits=5)
print(hits[0]['start'] + 1, peek(hits[0], before=5))
for c in chunk(max_characters=100):
    print(c['text'])

## map
labels = map_llm('Label each', context, schema=['a', 'b'])
print(vote([x['label'] for x in labels]))

## filter
kept = filter_llm('about notes', context)
print(len(kept))

## final with evidence
final('42', evidence=[{'document': 0, 'start': 0, 'end': 8}])

## published protocol
answer['content'] = '42'
answer['ready'] = True

## final of a variable
result = 'x'
FINAL_VAR('result')
print(SHOW_VARS())

## final of any value
FINAL(3)
final(['a', 'b'])
final({'x': 1})
final(None)

## two types
x = 1
x = 'one'
x = [x, 2]
print(x)

## none first
best = None
for d in context:
    if best is None or len(d) > len(best):
        best = d
print(best[:5])

## bound in a branch
if len(context) > 3:
    size = 'large'
else:
    size = 'small'
print(size)

## bound in a branch only
if context:
    found = context[0]
print(found[:3])

## bound in a loop
for d in context:
    last = d
print(last[:3], d[:3])

## query what may be none
best = None
for d in context:
    if 'note 3' in d:
        best = d
print(llm_query(best))

## function before its use
def classify(text):
    return normalise(llm_query(text))
def normalise(x):
    return x.strip().lower()
print(classify('a'))

## global
total = 0
def add(n):
    global total, extra
    total += n
    extra = n
add(3)
print(total, extra)

## closure
def outer():
    n = 0
    def inner():
        nonlocal n
        n += 1
        return n
    return inner
print(outer()())

## class
class Memory:
    limit = 3
    def __init__(self):
        self.items = []
    def add(self, x):
        self.items.append(x)
        return self
m = Memory().add('a')
m.note = 'new'
print(m.items, m.note)

## dataclass
from dataclasses import dataclass, field
@dataclass
class Row:
    user: int
    tags: list = field(default_factory=list)
rows = [Row(i) for i in range(3)]
print(sum(r.user for r in rows))

## annotations
from typing import Any, Optional
counts: dict[str, int] = {}
def f(a: int = None, b: Optional[str] = None) -> str:
    return a
x: int = 'text'
print(f(), x, counts)

## json
import json
try:
    data = json.loads(llm_query('as JSON'))
except (ValueError, KeyError) as error:
    data = {}
print(data.get('x'))

## sorting
d = {'a': 2, 'b': 1}
print(sorted(d.items(), key=lambda kv: -kv[1]), max(d, key=d.get), min(d.values()))

## dates
from datetime import datetime, timedelta
ds = [datetime.strptime('1 May 2024', '%d %b %Y') + timedelta(days=n) for n in range(3)]
print(max(ds).date(), ds[1] > ds[0])

## try an absent module
try:
    import numpy as np
except ImportError:
    np = None
print(np)

## match
kind = 'a'
match kind:
    case 'a' | 'b':
        print(1)
    case other:
        print(other)

## walrus
if (n := len(context)) > 3:
    print(n)

## format
print('{:>5.1f}|{}'.format(1.25, 'a'), '%s-%d' % ('x', 2), f'{3!r:>4}')

## strings of programs
code = '''
undefined_name(1)
'''
print(len(code))

## builtins
print(list(map(str, [1])), list(zip('a', [1])), any([0]), abs(-1), getattr('a', 'x', 1), hasattr(1, 'x'))

## keyword arguments
opts = {'max_hits': 3}
print(len(grep('a', **opts)), llm_query(prompt='x'), llm_query(*['y']))

## numbers in text
print(llm_query(str(3)), llm_query(f'{3}'), llm_query('a' * 3))

## generator, del, heapq
import heapq
def parts():
    for d in context:
        yield len(d)
print(heapq.nlargest(2, parts()))
x = 1
del x
"""
RUNS_WELL = dict(part.split("\n", 1) for part in PROGRAMS.split("\n## "))


@pytest.mark.parametrize("name", RUNS_WELL)
async def test_what_runs_well_is_not_refused(sandbox: SandboxTool, name: str) -> None:
    names = {"context", *SIGNATURES}
    prepared = prepare(RUNS_WELL[name], names)
    assert not prepared.refused
    session = await sandbox.open({"context": DOCUMENTS, "answer": {"content": "", "ready": False}}, list(SIGNATURES))

    cell = await session.run(prepared.code, answer)

    assert (cell.ending, cell.error) == (Ending.DONE, "")
    await session.aclose()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("x = 1\nllm_query(3)", "line 2: TypeError: Argument to function llm_query is incorrect: Expected str"),
        ("n = 3\nllm_query(n)", "line 2: TypeError"),
        ("llm_query(context)\nllm_query([d for d in ['a']])", "line 2: TypeError"),
        ("llm_query(None)", "found None"),
        ("llm_query('a', 'b')", "Too many positional arguments to function llm_query: expected 1, got 2"),
        ("llm_query()", "No argument provided for required parameter prompt"),
        ("llm_query('a', model='b')", "Argument model does not match"),
        ("grep('a', maxhits=3)", "Argument maxhits does not match"),
        ("llm_query_batched('abc')", "Expected list[str], found Literal"),
        ("llm_qury('a')", "line 1: NameError: name 'llm_qury' is not defined; did you mean 'llm_query'?"),
        ("if context:\n    print(contxt)", "line 2: NameError: name 'contxt' is not defined; did you mean 'context'?"),
        ("def f():\n    return undefined_name\n", "line 2: NameError: name 'undefined_name' is not defined"),
        ("print(re.findall('a', 'b'))", "line 1: NameError: name 're' is not defined"),
    ],
)
async def test_what_cannot_work_is_refused_before_it_runs(sandbox: SandboxTool, code: str, reason: str) -> None:
    session = await sandbox.open({"context": "text"}, list(SIGNATURES))

    cell = await session.run(f"print('ran')\n{code}", _nobody)

    assert (cell.ending, cell.output) == (Ending.REFUSED, "")
    line = reason.partition(":")[0]
    expected = reason.replace(line, f"line {int(line.split()[1]) + 1}") if line.startswith("line") else reason
    assert expected in cell.error
    assert len(cell.error.splitlines()) == 1
    await session.aclose()


async def test_names_of_earlier_cells_are_known_in_copies_too(sandbox: SandboxTool) -> None:
    states: list[bytes] = []

    async def host(call: HostCall) -> Any:
        assert call.fork
        states.append(await call.fork())

    session = await sandbox.open({"context": "text"}, ["llm_query"])
    await session.run("import re\nfirst = 1\n1 / 0", host)
    await session.run("second = llm_query('a')", host)
    copy = await sandbox.load(await session.dump())
    fork, _ = await sandbox.resume(states[0], "reply", host)

    for each in (session, copy, fork):
        assert (await each.run("print(re, first, second, context)", host)).ending is Ending.DONE
        assert (await each.run("print(third)", host)).ending is Ending.REFUSED
        await each.aclose()


class Slow:
    """A session that checks types: it starts slowly, and finds nothing."""

    def __init__(self, started: list["Slow"]) -> None:
        self._started = started
        self.num_checked = 0
        self.is_open = True

    async def __aenter__(self) -> Self:
        self._started.append(self)
        await asyncio.sleep(0.5)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.is_open = False

    async def feed_start(self, text: str) -> None:
        await asyncio.sleep(0.25)
        assert self.is_open
        self.num_checked += 1


async def test_who_waits_for_the_checker_closes_it_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    # less than the last one waits, and far more than a check takes
    monkeypatch.setattr("reasonrt.programs.sandbox.check.CHECK_S", 2.0)
    started: list[Slow] = []

    def check_out(stubs: str) -> Any:
        return Slow(started)

    checker = Checker(check_out)
    checks = [asyncio.create_task(checker.check(f"x = {number}", (), ())) for number in range(9)]
    await asyncio.sleep(0.7)

    checks.pop().cancel()

    assert await asyncio.gather(*checks) == [""] * 8
    assert [session.num_checked for session in started] == [8]
    await checker.aclose()
    assert not started[0].is_open


async def test_the_check_can_be_left_out() -> None:
    sandbox = build_sandbox("monty", check=False)
    session = await sandbox.open({})

    assert (await session.run("print(1)\nundefined", _nobody)).output == "1\n"
    await session.aclose()
    await sandbox.aclose()


async def _nobody(call: HostCall) -> Any:
    raise AssertionError(f"{call.name} was called")
