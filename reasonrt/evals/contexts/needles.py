"""One sentence among many of its kind: which value has this key? (RULER's multi-key needle in a haystack)"""

from random import Random
from uuid import UUID

from reasonrt.evals.contexts.filling import documents_of, fill
from reasonrt.evals.contexts.problem import Draft
from reasonrt.evals.contexts.words import keys

_SHORTEST_NEEDLE = 50  # characters


def word_needles(rng: Random, characters: int) -> Draft:
    """Keys of three words, values of seven digits."""
    names = iter(keys(rng, characters // _SHORTEST_NEEDLE + 64))
    numbers = iter(rng.sample(range(1_000_000, 10_000_000), characters // _SHORTEST_NEEDLE + 64))
    needles = fill(characters, lambda: (next(names), str(next(numbers))), lambda needle: len(_number_line(*needle)))
    key, value = rng.choice(needles)
    question = (
        f"Each line of the text gives the access number of one item. What is the access number of {key}? "
        "Answer with the number only."
    )
    return Draft(question, documents_of((_number_line(*needle) for needle in needles), "items"), value, "number")


def uuid_needles(rng: Random, characters: int) -> Draft:
    """Keys and values of 32 hexadecimal digits."""
    needles = fill(characters, lambda: (_uuid(rng), _uuid(rng)), lambda needle: len(_uuid_line(*needle)))
    key, value = rng.choice(needles)
    question = f"Each line of the text gives the token of one record. What is the token of {key}? Answer with it only."
    return Draft(question, documents_of((_uuid_line(*needle) for needle in needles), "records"), value, "text")


def _uuid(rng: Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))


def _number_line(key: str, value: str) -> str:
    return f"The access number of {key} is {value}.\n"


def _uuid_line(key: str, value: str) -> str:
    return f"The token of {key} is {value}.\n"
