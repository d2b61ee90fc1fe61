"""A task: sums of two numbers. The module itself is what the entry point names."""

import random
from collections.abc import Sequence

from reasonrt.evals.tasks import TaskProblem


def names() -> Sequence[str]:
    return ["sums"]


def load(name: str, split: str, limit: int) -> list[TaskProblem]:
    """The same problems for the same split; a smaller limit gives the first of them."""
    draw = random.Random(split)
    pairs = [(draw.randint(10, 99), draw.randint(10, 99)) for _ in range(limit)]
    return [
        TaskProblem(f"sums/{split}/{index}", f"What is {a} + {b}?", str(a + b), is_exact=True)
        for index, (a, b) in enumerate(pairs)
    ]
