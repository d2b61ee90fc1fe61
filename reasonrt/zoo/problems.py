"""What a zoo problem is, which splits there are, and the mixture that models and policies are compared on.

A problem has a worked solution: the steps that lead to the answer, and the steps that check it another way.
`traces.py` makes training text of it; evaluation reads question and answer only.
"""

import hashlib
import itertools
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from reasonrt.errors import EvalError, shown
from reasonrt.zoo import arithmetic, word_problems
from reasonrt.zoo.solution import Solution

FAMILIES = {
    "gsm_symbolic": word_problems.gsm_symbolic,
    "chain_sum": arithmetic.chain_sum,
    "product": arithmetic.product,
    "gcd": arithmetic.gcd,
    "base_conversion": arithmetic.base_conversion,
    "sorting": arithmetic.sorting,
    "unsolvable": word_problems.unsolvable,
}
LEVELS = range(1, 7)  # the zoo's models train on 1-4; 5 and 6 are beyond them

MIXTURE: dict[tuple[str, int], float] = {("gsm_symbolic", 1): 0.30} | {
    (family, level): share / 4
    for family, share in {
        "chain_sum": 0.20,
        "product": 0.15,
        "gcd": 0.10,
        "base_conversion": 0.10,
        "sorting": 0.15,
    }.items()
    for level in range(1, 5)
}
"""The task `zoo`: (family, level) to its share. Word problems come in one level."""

SPLITS = {
    # name: (seed, from, to): a question belongs to the split whose percentiles hold its hash
    "train": (11, 0, 88),
    "router": (22, 88, 92),
    "certify": (33, 92, 96),
    "test": (44, 96, 100),
}
"""The splits, disjoint in two ways: by the generator's seed, and by the hash of the question's words.

A split is drawn again, with other seeds, as `NAME-2`, `NAME-3` and so on.
"""


_MOST_DRAWS = 2000  # repeats in a row after which a level counts as exhausted


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its answer (empty where none can be had) and its worked solution."""

    id: str
    family: str
    level: int
    question: str
    solution: Solution

    @property
    def answer(self) -> str:
        return self.solution.answer


def split_of(question: str) -> str:
    """The one split that may contain `question`."""
    percentile = int.from_bytes(hashlib.blake2b(question.encode(), digest_size=8).digest()) % 100
    return next(name for name, (_, low, high) in SPLITS.items() if low <= percentile < high)


def is_split(split: str) -> bool:
    """Whether there is one of this name, as it is in `SPLITS` or drawn again."""
    return bool(re.fullmatch(rf"({'|'.join(SPLITS)})(-[2-9]|-[1-9]\d{{1,5}})?", split))


def problems(split: str, family: str, level: int) -> Iterator[Problem]:
    """The endless, reproducible sequence of one family's problems at one level (1-6) in one split."""
    name, again, draw = split.partition("-")
    seed = f"{SPLITS[name][0]}{again}{draw}"
    for index in itertools.count():
        rng = random.Random(f"{seed}/{family}/{level}/{index}")
        drawn = FAMILIES[family](rng, level)
        if drawn is None:  # a word problem whose printed solution does not check
            continue
        question, solution = drawn
        if split_of(question) == name:
            yield Problem(f"{split}/{family}/{level}/{index}", family, level, question, solution)


def mixture(split: str, n: int, shares: dict[tuple[str, int], float] | None = None) -> list[Problem]:
    """`n` different problems of `split` in the shares of the bench mixture, well mixed.

    The first m of n problems are the same for every n, and hold the shares as closely as m allows. The easiest
    levels know only some thousands of questions: `n` is meant to be well below that.

    Raises:
        ValueError: the shares do not add up to one.
    """
    shares = shares or MIXTURE
    if not math.isclose(total := math.fsum(shares.values()), 1.0):
        raise ValueError(f"the shares of a mixture must add up to 1, got {total}")
    streams = {key: problems(split, *key) for key in shares}
    taken = dict.fromkeys(shares, 0)
    chosen: list[Problem] = []
    seen: set[str] = set()
    while len(chosen) < n:
        # the family that is furthest below its share is next
        key = max(shares, key=lambda key: shares[key] * (len(chosen) + 1) - taken[key])
        taken[key] += 1
        drawn = itertools.islice(streams[key], _MOST_DRAWS)
        problem = next((problem for problem in drawn if problem.question not in seen), None)
        if problem is None:
            raise EvalError(
                f"{key[0]}:{key[1]} has no more than {taken[key] - 1} different questions in the split {shown(split)}, "
                f"which is enough for {len(chosen)} problems; ask for no more"
            )
        seen.add(problem.question)
        chosen.append(problem)
    return chosen
