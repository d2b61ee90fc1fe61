"""Which words occur most often in a long list? (RULER's common words and frequent words)"""

from collections import Counter
from itertools import accumulate, chain
from random import Random
from string import ascii_lowercase

from reasonrt.evals.contexts.filling import documents_of, fill
from reasonrt.evals.contexts.problem import Draft
from reasonrt.evals.contexts.words import invented_words

NUM_COMMON = 10
COMMON_TIMES, RARE_TIMES = 30, 3
ZIPF_EXPONENT = 2.0
_ENOUGH_CHARACTERS = 8_000  # in fewer there is hardly room for the common words alone
_NUM_CODES = 2_000
_MIN_GAP = 0.02


def common_words(rng: Random, characters: int) -> Draft:
    """A numbered list in which ten words stand thirty times (a short one: fifteen) and all others three times."""
    words = iter(invented_words(rng, NUM_COMMON + characters // (RARE_TIMES * 9) + 64))
    common_times = COMMON_TIMES if characters >= _ENOUGH_CHARACTERS else COMMON_TIMES // 2
    common = [next(words) for _ in range(NUM_COMMON)]
    digits = len(str(characters // 10))
    entry = digits + len(". \n")  # numbers are padded, so that the length is known before the order
    room = characters - common_times * sum(len(word) + entry for word in common)
    rare = fill(room, lambda: next(words), lambda word: RARE_TIMES * (len(word) + entry))
    listed = common * common_times + rare * RARE_TIMES
    rng.shuffle(listed)
    lines = (f"{number:{digits}}. {word}\n" for number, word in enumerate(listed, 1))
    question = (
        f"The text is a numbered list of words, in which some occur more often than others. Which are the {NUM_COMMON} "
        "most common words? Answer with the words, separated by commas."
    )
    return Draft(question, documents_of(lines, "list"), ", ".join(sorted(common)), "set")


def frequent_words(rng: Random, characters: int) -> Draft:
    """Invented words in a Zipf distribution, of which the first rank is written as dots and means nothing."""
    words = _zipf_words(rng, characters)
    while _is_close(*(first := _ranked(words))[2:4]):
        words = _zipf_words(rng, characters)
    pieces = [word + ("\n" if rng.random() < 0.05 else " ") for word in words]
    question = (
        "The text is a coded message; dots mean nothing. Which are the three words that occur most often? Answer with "
        "the words, separated by commas."
    )
    return Draft(question, documents_of(pieces, "message"), ", ".join(sorted(word for word, _ in first[:3])), "set")


def _zipf_words(rng: Random, characters: int) -> list[str]:
    ranked = ["...", *("".join(rng.choices(ascii_lowercase, k=6)) for _ in range(_NUM_CODES))]
    weights = list(accumulate(rank**-ZIPF_EXPONENT for rank in range(1, len(ranked) + 1)))
    draws = chain.from_iterable(iter(lambda: rng.choices(ranked, cum_weights=weights, k=1024), []))
    return fill(characters, lambda: next(draws), lambda word: len(word) + 1)


def _ranked(words: list[str]) -> list[tuple[str, int]]:
    return Counter(word for word in words if word != "...").most_common(4)


def _is_close(third: tuple[str, int], fourth: tuple[str, int]) -> bool:
    return third[1] - fourth[1] < max(1, _MIN_GAP * third[1])
