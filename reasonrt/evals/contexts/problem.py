"""A question about a long context, with its known answer."""

from dataclasses import dataclass
from typing import Literal

from reasonrt.types import Document

Kind = Literal["number", "choice", "set", "pairs", "text"]
"""How an answer is read: one number, one of the words that the question names, several, pairs, or a span."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What a generator makes of one question; `generate` gives it its name.

    Attributes:
        documents: in the order in which they are read.
        answer: in the form that the question asks for.
        group: what per-group tables are made by, such as `count`.
    """

    question: str
    documents: tuple[Document, ...]
    answer: str
    kind: Kind
    group: str = ""


@dataclass(frozen=True, slots=True)
class ContextProblem:
    """One question about documents that no window needs to hold.

    Attributes:
        task: the generator's name.
        answer: in the form that the question asks for; `score` reads it by `kind`.
        group: what per-group tables are made by, such as `count`.
        num_characters: of all documents together.
    """

    id: str
    task: str
    question: str
    documents: tuple[Document, ...]
    answer: str
    kind: Kind
    group: str
    num_characters: int
