"""Which pairs of users fit a condition on their labels? (OOLONG-pairs: the answer grows with the square)"""

from collections import Counter
from itertools import combinations
from random import Random

from reasonrt.errors import EvalError
from reasonrt.evals.contexts.grammar import LABELS
from reasonrt.evals.contexts.label_questions import is_clear, top
from reasonrt.evals.contexts.messages import Window, Wording, explanation, make_window
from reasonrt.evals.contexts.problem import Draft

MAX_PAIRS = 40
_USERS = (6, 16)
_CHARACTERS_PER_USER = 700
_TRIES_PER_WINDOW = 20
_WINDOWS = 50

Condition = tuple[str, frozenset[str]]
"""Words for it, and the users who meet it."""


def label_pairs(rng: Random, characters: int, wording: Wording) -> Draft:
    """Both users meet one condition, or one meets it and the other meets another."""
    num_users = min(_USERS[1], max(_USERS[0], characters // _CHARACTERS_PER_USER))
    for _ in range(_WINDOWS):
        window = make_window(rng, characters, num_users, wording)
        for _ in range(_TRIES_PER_WINDOW):
            first, second = _condition(rng, window), _condition(rng, window)
            if first is None or second is None:
                continue
            is_same = rng.random() < 0.5
            words, group = f"both users have {first[0]}", "same"
            if not is_same:
                words, group = f"one of the two users has {first[0]} and the other one has {second[0]}", "different"
            pairs = _pairs(window, first[1], first[1] if is_same else second[1])
            if 1 <= len(pairs) <= MAX_PAIRS:
                question = (
                    f"{explanation(wording.with_labels)}Which pairs of different users who wrote at least one message "
                    f"are such that {words}? Answer with all of these pairs, the lower number first, each once, in the "
                    "form (12345, 23456), (34567, 45678)."
                )
                answer = ", ".join(f"({a}, {b})" for a, b in pairs)
                return Draft(question, window.documents, answer, "pairs", group)
    raise EvalError(f"no pairs of {num_users} users fit a condition in {characters} characters; try another seed")


def _pairs(window: Window, one: frozenset[str], other: frozenset[str]) -> list[tuple[str, str]]:
    users = sorted({row.user for row in window.rows})  # all of five digits: their order is that of the numbers
    return [(a, b) for a, b in combinations(users, 2) if (a in one and b in other) or (b in one and a in other)]


def _condition(rng: Random, window: Window) -> Condition | None:
    """None where it is not clear of one of the users whether they meet it."""
    counts: dict[str, Counter[str]] = {}
    for row in window.rows:
        counts.setdefault(row.user, Counter())[row.label] += 1
    label, other = rng.sample(list(LABELS), 2)
    match rng.randrange(3):
        case 0:
            users = frozenset(user for user, labels in counts.items() if labels[label] > labels[other])
            unclear = [c for c in counts.values() if c[label] != c[other] and not _is_clear(c, label, other)]
            words = f"more messages with the label {label} than with the label {other}"
        case 1:
            if any(len(labels) > 1 and top(labels) is None for labels in counts.values()):
                return None
            users = frozenset(user for user, labels in counts.items() if top(labels) == label)
            unclear, words = [], f"{label} as the most common label of their messages"
        case _:
            least = rng.randint(1, max(1, len(window.rows) // len(counts) // 2))
            users = frozenset(user for user, labels in counts.items() if labels[label] >= least)
            unclear, words = [], f"{least} or more messages with the label {label}"
    return None if unclear else (words, users)


def _is_clear(counts: Counter[str], one: str, other: str) -> bool:
    return is_clear(max(counts[one], counts[other]), min(counts[one], counts[other]), counts.total())
