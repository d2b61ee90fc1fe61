"""Messages: their label is in no word, and their halves are apart."""

import math
import re
from collections import Counter
from random import Random

import pytest

from reasonrt.evals.contexts.grammar import LABELS, OUTCOMES, WISHES, Split, clauses, message, num_frames


@pytest.mark.parametrize("twins", [*WISHES, *OUTCOMES], ids=lambda twins: twins[0][:40])
def test_a_clause_and_its_opposite_are_made_of_the_same_words(twins: tuple[str, str]) -> None:
    one, other = (sorted(re.findall(r"[\w{}]+", clause)) for clause in twins)

    assert one == other
    assert twins[0] != twins[1]


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_word_belongs_to_one_label(split: Split) -> None:
    rng = Random(0)
    words = {
        label: Counter(
            word for _ in range(3000) for word in set(re.findall(r"\w+", message(rng, label, split).text.lower()))
        )
        for label in LABELS
    }

    for word in set().union(*words.values()):
        counts = [words[label][word] for label in LABELS]
        # the greatest of some 400 differences between four Poisson counts of the same mean
        assert max(counts) - min(counts) <= 7 * math.sqrt(max(counts)), word


def test_there_are_many_frames_and_the_halves_share_none() -> None:
    assert num_frames("train") >= 200
    assert num_frames("test") >= 200
    assert len(set(WISHES)) == len(WISHES)
    assert len(set(OUTCOMES)) == len(OUTCOMES)
    for kind in range(2):
        assert not set(clauses("train")[kind]) & set(clauses("test")[kind])


def test_sentences_begin_with_capitals() -> None:
    rng = Random(1)
    for label in LABELS:
        for _ in range(200):
            text = message(rng, label).text
            assert not re.search(r"(?:^|[.?] )[a-z]", text)
            assert not re.search(r"[{}]|\.\.|\s\s", text)
