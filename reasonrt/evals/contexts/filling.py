"""Contexts of a given length: pieces until there is no room left, cut into documents between pieces."""

from collections.abc import Callable, Iterable
from itertools import accumulate, combinations
from random import Random
from typing import TypeVar

from reasonrt.types import Document

T = TypeVar("T")

DOCUMENT_CHARACTERS = 16_000
_LAST_DRAWS = 6
_REFITTED = 3


def fill(room: int, draw: Callable[[], T], size: Callable[[T], int]) -> list[T]:
    """Pieces that together have about `room` characters; the last ones are the best fit of a few."""
    pieces: list[T] = []
    while size(piece := draw()) < room:
        pieces.append(piece)
        room -= size(piece)
    last = [pieces.pop() for _ in pieces[-_REFITTED:]]
    room += sum(map(size, last))
    pool = [*last, piece, *(draw() for _ in range(_LAST_DRAWS))]
    endings = [ending for num in range(_REFITTED + 3) for ending in combinations(pool, num)]
    return [*pieces, *min(endings, key=lambda ending: abs(room - sum(map(size, ending))))]


def hide(rng: Random, hidden: list[str], among: list[str]) -> list[str]:
    """All of `among` with `hidden` at random places between them; both keep their order."""
    total = len(hidden) + len(among)
    places = set(rng.sample(range(total), len(hidden)))
    first, second = iter(hidden), iter(among)
    return [next(first) if place in places else next(second) for place in range(total)]


def documents_of(pieces: Iterable[str], name: str) -> tuple[Document, ...]:
    """Documents of nearly equal length, each of whole pieces, named in the order in which they are read."""
    pieces = list(pieces)
    ends = list(accumulate(map(len, pieces)))
    num = max(1, round(ends[-1] / DOCUMENT_CHARACTERS))
    texts: list[list[str]] = [[] for _ in range(num)]
    for piece, end in zip(pieces, ends, strict=True):
        texts[(end - 1) * num // ends[-1]].append(piece)
    digits = len(str(num))
    return tuple(
        Document("".join(text), f"{name}-{index:0{digits}}.txt") for index, text in enumerate(texts, 1) if text
    )
