"""Modules of the standard library that Monty lacks, as far as programs over text use them, in the Python that it has.

Each is the source of a module's body. What is defined here gives what the standard library gives; tests compare the
two.
"""

from collections.abc import Mapping
from functools import cache

_STRING = """
ascii_lowercase = 'abcdefghijklmnopqrstuvwxyz'
ascii_uppercase = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
ascii_letters = ascii_lowercase + ascii_uppercase
digits = '0123456789'
hexdigits = digits + 'abcdef' + 'ABCDEF'
octdigits = '01234567'
punctuation = '!"#$%&\\'()*+,-./:;<=>?@[\\\\]^_`{|}~'
whitespace = ' \\t\\n\\r\\v\\f'
printable = digits + ascii_letters + punctuation + whitespace
def capwords(s, sep=None):
    return (sep or ' ').join([word.capitalize() for word in s.split(sep)])
"""

_HEAPQ = """
def heappush(heap, item):
    heap.append(item)
    _sift_up(heap, len(heap) - 1)
def heappop(heap):
    last = heap.pop()
    if not heap:
        return last
    top = heap[0]
    heap[0] = last
    _sift_down(heap, 0)
    return top
def heapify(heap):
    for position in range(len(heap) // 2 - 1, -1, -1):
        _sift_down(heap, position)
def heappushpop(heap, item):
    if heap and heap[0] < item:
        return heapreplace(heap, item)
    return item
def heapreplace(heap, item):
    top = heap[0]
    heap[0] = item
    _sift_down(heap, 0)
    return top
def nlargest(n, iterable, key=None):
    return sorted(iterable, key=key, reverse=True)[:max(n, 0)]
def nsmallest(n, iterable, key=None):
    return sorted(iterable, key=key)[:max(n, 0)]
def merge(*iterables, key=None, reverse=False):
    items = []
    for iterable in iterables:
        items.extend(iterable)
    return iter(sorted(items, key=key, reverse=reverse))
def _sift_up(heap, position):
    while position and heap[position] < heap[(position - 1) // 2]:
        parent = (position - 1) // 2
        heap[position], heap[parent] = heap[parent], heap[position]
        position = parent
def _sift_down(heap, position):
    while 2 * position + 1 < len(heap):
        child = 2 * position + 1
        if child + 1 < len(heap) and heap[child + 1] < heap[child]:
            child += 1
        if not heap[child] < heap[position]:
            return
        heap[position], heap[child] = heap[child], heap[position]
        position = child
"""

_STATISTICS = """
def mean(data):
    values = _values(data)
    return _whole(sum(values) / len(values), values)
def fmean(data):
    values = _values(data)
    return sum([float(v) for v in values]) / len(values)
def median(data):
    values = sorted(_values(data))
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2
def median_low(data):
    values = sorted(_values(data))
    return values[(len(values) - 1) // 2]
def median_high(data):
    values = sorted(_values(data))
    return values[len(values) // 2]
def mode(data):
    return multimode(_values(data))[0]
def multimode(data):
    counts = {}
    for value in data:
        counts[value] = counts.get(value, 0) + 1
    most = max(counts.values(), default=0)
    return [value for value in counts if counts[value] == most]
def pvariance(data):
    values = _values(data)
    middle = sum(values) / len(values)
    return _whole(sum([(v - middle) ** 2 for v in values]) / len(values), values)
def variance(data):
    values = _values(data, 2)
    middle = sum(values) / len(values)
    return _whole(sum([(v - middle) ** 2 for v in values]) / (len(values) - 1), values)
def pstdev(data):
    return pvariance(data) ** 0.5
def stdev(data):
    return variance(data) ** 0.5
def _whole(result, values):
    return int(result) if all([isinstance(v, int) for v in values]) and result == int(result) else result
def _values(data, least=1):
    values = list(data)
    if len(values) < least:
        raise ValueError('not enough data points')
    return values
"""

_OPERATOR = """
def itemgetter(*keys):
    return lambda item: item[keys[0]] if len(keys) == 1 else tuple([item[key] for key in keys])
def attrgetter(*names):
    return lambda item: getattr(item, names[0]) if len(names) == 1 else tuple([getattr(item, name) for name in names])
def add(a, b): return a + b
def sub(a, b): return a - b
def mul(a, b): return a * b
def truediv(a, b): return a / b
def floordiv(a, b): return a // b
def mod(a, b): return a % b
def neg(a): return -a
def eq(a, b): return a == b
def ne(a, b): return a != b
def lt(a, b): return a < b
def le(a, b): return a <= b
def gt(a, b): return a > b
def ge(a, b): return a >= b
def and_(a, b): return a & b
def or_(a, b): return a | b
def not_(a): return not a
def contains(a, b): return b in a
def getitem(a, b): return a[b]
"""

_TEXTWRAP = """
def dedent(text):
    lines = ['' if not line.strip() else line for line in text.split('\\n')]
    margins = [line[:len(line) - len(line.lstrip())] for line in lines if line]
    margin = margins[0] if margins else ''
    for other in margins:
        while not other.startswith(margin):
            margin = margin[:-1]
    return '\\n'.join([line[len(margin):] if line else line for line in lines])
def indent(text, prefix, predicate=None):
    keep = predicate or (lambda line: line.strip())
    return ''.join([prefix + line if keep(line) else line for line in text.splitlines(True)])
def shorten(text, width, placeholder=' [...]'):
    words = text.split()
    if len(' '.join(words)) <= width:
        return ' '.join(words)
    while words and len(' '.join(words) + placeholder) > width:
        words.pop()
    return ' '.join(words) + placeholder if words else placeholder.lstrip()
def wrap(text, width=70):
    lines = []
    line = ''
    for word in text.split():
        while len(word) > width:
            room = width - len(line) - 1 if line else width
            if line and room < 1:
                lines.append(line)
                line = ''
                room = width
            lines.append((line + ' ' if line else '') + word[:room])
            line = ''
            word = word[room:]
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        elif word:
            line = line + ' ' + word if line else word
    return lines + [line] if line else lines
def fill(text, width=70):
    return '\\n'.join(wrap(text, width))
"""

_ABC = """
Mapping = dict
MutableMapping = dict
Sequence = (list, tuple, str, range, bytes)
MutableSequence = list
Set = (set, frozenset)
MutableSet = set
Iterable = (list, tuple, str, range, bytes, dict, set, frozenset)
Collection = Iterable
Sized = Iterable
"""

SOURCES: Mapping[str, str] = {
    "collections.abc": _ABC,
    "heapq": _HEAPQ,
    "operator": _OPERATOR,
    "statistics": _STATISTICS,
    "string": _STRING,
    "textwrap": _TEXTWRAP,
}
"""What each module defines, as the body of a module."""


def maker(name: str) -> str:
    """The function in `module_source` that makes the module."""
    return f"_make_{name.replace('.', '_')}"


@cache  # a program may import it a thousand times
def module_source(name: str) -> str:
    """A program that defines what makes a stand-in for the module `name`; its names begin with an underscore."""
    body = SOURCES[name].strip("\n").split("\n")
    defined = [line.split(" =")[0].removeprefix("def ").split("(")[0] for line in body if line[:1].strip()]
    lines = [
        "class _Module:",
        "    pass",
        f"def {maker(name)}():",
        *[f"    {line}" for line in body],
        "    module = _Module()",
        *[f"    module.{public} = {public}" for public in defined if not public.startswith("_")],
        "    return module",
    ]
    return "\n".join(lines)
