"""Questions about the labels of dated messages: counts, users, time (OOLONG's three groups).

The label histogram is drawn anew for each window. A comparison that is tied, or closer than 2 % of the messages that it
is about, is not asked.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import date, timedelta
from random import Random

from reasonrt.errors import EvalError
from reasonrt.evals.contexts.grammar import LABELS
from reasonrt.evals.contexts.messages import MONTHS, Row, Window, Wording, explanation, make_window, written
from reasonrt.evals.contexts.problem import Draft, Kind

MIN_GAP = 0.02
_CHARACTERS_PER_USER = 2_500
_MAX_USERS = 200
_TRIES_PER_WINDOW = 20
_WINDOWS = 50

Asked = tuple[str, str, Kind, str]
"""Question, answer, kind, group."""


def label_counts(rng: Random, characters: int, wording: Wording) -> Draft:
    return _ask(rng, characters, wording, (_most_common, _least_common, _more_common, _count))


def label_users(rng: Random, characters: int, wording: Wording) -> Draft:
    return _ask(rng, characters, wording, (_user_with_most, _label_of_user, _count_of_user))


def label_timeline(rng: Random, characters: int, wording: Wording) -> Draft:
    return _ask(
        rng, characters, wording, (_label_of_month, _count_between, _more_common_side, _num_months, _month_with_most)
    )


def is_clear(higher: int, lower: int, total: int) -> bool:
    """Whether a difference is worth asking for."""
    return higher - lower >= max(1, MIN_GAP * total)


def top(counts: Counter[str]) -> str | None:
    """The key with the highest count; None where it is not clear."""
    ranked = counts.most_common(2)
    if not ranked or (len(ranked) > 1 and not is_clear(ranked[0][1], ranked[1][1], counts.total())):
        return None
    return ranked[0][0]


def _ask(
    rng: Random, characters: int, wording: Wording, askers: Sequence[Callable[[Random, Window], Asked | None]]
) -> Draft:
    num_users = min(_MAX_USERS, max(10, characters // _CHARACTERS_PER_USER))
    asker = rng.choice(askers)  # before the window: no kind of question is rarer for being hard to ask
    for _ in range(_WINDOWS):
        window = make_window(rng, characters, num_users, wording)
        for _ in range(_TRIES_PER_WINDOW):
            if asked := asker(rng, window):
                question, answer, kind, group = asked
                return Draft(explanation(wording.with_labels) + question, window.documents, answer, kind, group)
    raise EvalError(f"no question of {asker.__name__.strip('_')} has a clear answer; try another seed")


def _most_common(_: Random, window: Window) -> Asked | None:
    best = top(_labels(window.rows))
    return (
        ("Which label is the most common? Answer with the label only.", best, "choice", "most_common") if best else None
    )


def _least_common(_: Random, window: Window) -> Asked | None:
    counts = _labels(window.rows)
    lowest, next_lowest = sorted(LABELS, key=lambda label: counts[label])[:2]
    if not is_clear(counts[next_lowest], counts[lowest], len(window.rows)):
        return None
    return "Which label is the least common? Answer with the label only.", lowest, "choice", "least_common"


def _more_common(rng: Random, window: Window) -> Asked | None:
    pair = rng.sample(list(LABELS), 2)
    winner = _winner(_labels(window.rows), pair)
    question = f"Which label is more common, {pair[0]} or {pair[1]}? Answer with the label only."
    return (question, winner, "choice", "more_common") if winner else None


def _count(rng: Random, window: Window) -> Asked | None:
    label = rng.choice(list(LABELS))
    question = f"How many messages have the label {label}? Answer with the number only."
    return question, str(_labels(window.rows)[label]), "number", "count"


def _user_with_most(rng: Random, window: Window) -> Asked | None:
    label = rng.choice(list(LABELS))
    best = top(Counter(row.user for row in window.rows if row.label == label))
    question = f"Which user wrote the most messages with the label {label}? Answer with the user's number only."
    return (question, best, "choice", "user_with_most") if best else None


def _label_of_user(rng: Random, window: Window) -> Asked | None:
    user = rng.choice(window.rows).user
    best = top(_labels(row for row in window.rows if row.user == user))
    question = f"Which label is the most common among the messages of user {user}? Answer with the label only."
    return (question, best, "choice", "label_of_user") if best else None


def _count_of_user(rng: Random, window: Window) -> Asked | None:
    row = rng.choice(window.rows)
    question = f"How many messages of user {row.user} have the label {row.label}? Answer with the number only."
    count = sum(other.user == row.user and other.label == row.label for other in window.rows)
    return question, str(count), "number", "count_of_user"


def _label_of_month(rng: Random, window: Window) -> Asked | None:
    month = rng.choice(window.rows).day.month
    best = top(_labels(row for row in window.rows if row.day.month == month))
    name = MONTHS[month - 1]
    question = f"Which label is the most common among the messages of {name}? Answer with the label only."
    return (question, best, "choice", "label_of_month") if best else None


def _count_between(rng: Random, window: Window) -> Asked | None:
    label = rng.choice(list(LABELS))
    first, last = sorted(_day_within(rng, window) for _ in range(2))
    count = sum(row.label == label and first <= row.day <= last for row in window.rows)
    question = (
        f"How many messages from {written(first)} to {written(last)}, both days included, have the label {label}? "
        "Answer with the number only."
    )
    return question, str(count), "number", "count_between"


def _more_common_side(rng: Random, window: Window) -> Asked | None:
    pair = rng.sample(list(LABELS), 2)
    day, is_before = _day_within(rng, window), rng.random() < 0.5
    rows = [row for row in window.rows if (row.day < day if is_before else row.day > day)]
    winner = _winner(_labels(rows), pair)
    side = "before" if is_before else "after"
    question = (
        f"Among the messages {side} {written(day)}, that day not included, which label is more common, {pair[0]} or "
        f"{pair[1]}? Answer with the label only."
    )
    return (question, winner, "choice", f"more_common_{side}") if winner else None


def _num_months(rng: Random, window: Window) -> Asked | None:
    one, other = rng.sample(list(LABELS), 2)
    by_month: dict[int, Counter[str]] = {m: Counter() for m in range(window.first.month, window.last.month + 1)}
    for row in window.rows:
        by_month[row.day.month][row.label] += 1
    months = by_month.values()
    if not all(is_clear(max(c[one], c[other]), min(c[one], c[other]), c.total()) for c in months):
        return None
    question = (
        f"In how many months are there more messages with the label {one} than with the label {other}? "
        "Answer with the number only."
    )
    return question, str(sum(counts[one] > counts[other] for counts in months)), "number", "num_months"


def _month_with_most(rng: Random, window: Window) -> Asked | None:
    label = rng.choice(list(LABELS))
    best = top(Counter(MONTHS[row.day.month - 1] for row in window.rows if row.label == label))
    question = f"Which month has the most messages with the label {label}? Answer with the month's name only."
    return (question, best, "choice", "month_with_most") if best else None


def _labels(rows: Iterable[Row]) -> Counter[str]:
    return Counter(row.label for row in rows)


def _winner(counts: Counter[str], pair: list[str]) -> str | None:
    higher, lower = sorted(pair, key=lambda label: -counts[label])
    return higher if is_clear(counts[higher], counts[lower], counts.total()) else None


def _day_within(rng: Random, window: Window) -> date:
    return window.first + timedelta(days=rng.randrange((window.last - window.first).days + 1))
