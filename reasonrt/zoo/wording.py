"""What the models that ship know: the wording of their training problems, and how like it a question is.

They are a few million parameters each and have read nothing else, so that what they answer to other words is nonsense.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

FILE = Path(__file__).parent / "wording.txt"
NUM_PROBLEMS = 4000
"""Of the split `train`, that the file is made from."""

UNLIKE = 0.6
"""Of 500 problems of the split `test` one was less like the training problems than this; 17 of 19 others were."""

EXAMPLES: Mapping[str, str] = {
    "chain_sum": "State the final answer to the following arithmetic problem: 2 + 34 =",
    "product": "Solve the following multiplication: 76 * 4. Give only the result as your final answer.",
    "gcd": "Find the Greatest Common Divisor (GCD) of these numbers: 40, 30. Give only the GCD as your final answer.",
    "sorting": "Sort these numbers in ascending order: 11, 0, 13, 16",
    "base_conversion": "Convert the base-10 number 129 to base-9. Use lowercase letters for digits above 9.",
    "gsm_symbolic": "Michael has a bag of coins with 20 inside. He tripped over stick while carrying it and dropped 15 "
    "of them. ...",
}
"""A problem of each family."""


def likeness(question: str) -> float:
    """The share of the pairs of neighbouring words in a question that stand in training problems, in [0, 1]."""
    pairs = _pairs(question)
    return sum(pair in _known() for pair in pairs) / max(1, len(pairs))


def wording_of(questions: Iterable[str]) -> str:
    """The file of all pairs of neighbouring words: on each line a word, and those that come after it."""
    after: dict[str, set[str]] = {}
    for question in questions:
        for first, second in _pairs(question):
            after.setdefault(first, set()).add(second)
    return "".join(f"{first} {' '.join(sorted(after[first]))}\n" for first in sorted(after))


def _pairs(question: str) -> list[tuple[str, str]]:
    """Numbers are left out; `^` is the beginning."""
    return list(pairwise(["^", *re.findall(r"[a-z]+|[^\sa-z0-9]", question.lower())]))


@cache
def _known() -> frozenset[tuple[str, str]]:
    lines = (line.split() for line in FILE.read_text().splitlines())
    return frozenset((first, second) for first, *seconds in lines for second in seconds)
