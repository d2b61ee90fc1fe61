"""A window of dated messages by users, each with a hidden label (OOLONG's lines)."""

from calendar import monthrange
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import accumulate
from random import Random

from reasonrt.evals.contexts.filling import documents_of, fill
from reasonrt.evals.contexts.grammar import LABELS, Split, message
from reasonrt.evals.contexts.words import listed
from reasonrt.types import Document

MONTHS = listed(
    "January February March April May June July August September October November December"
)  # strftime would follow the locale
_FREQUENT_USERS, _FREQUENT_SHARE = 0.2, 0.8
_MONTHS_PER_WINDOW = (4, 8)


@dataclass(frozen=True, slots=True)
class Wording:
    """Which half of the clauses messages are made of, and whether their labels are written beside them."""

    split: Split = "test"
    with_labels: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One message."""

    day: date
    user: str
    text: str
    label: str

    def line(self, with_label: bool = False) -> str:
        told = f" || Label: {self.label}" if with_label else ""
        return f"Date: {written(self.day)} || User: {self.user} || Instance: {self.text}{told}\n"


@dataclass(frozen=True, slots=True)
class Window:
    """The messages of one context, in the order in which they stand there; their dates are in no order.

    Attributes:
        first, last: days, both inclusive, of one year.
    """

    rows: tuple[Row, ...]
    first: date
    last: date
    documents: tuple[Document, ...]


def written(day: date) -> str:
    """As in the lines: `Mar 05, 2024`."""
    return f"{MONTHS[day.month - 1][:3]} {day.day:02}, {day.year}"


def make_window(rng: Random, characters: int, num_users: int, wording: Wording) -> Window:
    """Messages with label histograms of their own for each user and month; 80 % of them come from 20 % of the users."""
    year, num_months = rng.randrange(2019, 2026), rng.randint(*_MONTHS_PER_WINDOW)
    month = rng.randint(1, 13 - num_months)
    first = date(year, month, 1)
    last = date(year, month + num_months - 1, monthrange(year, month + num_months - 1)[1])
    users = [str(number) for number in rng.sample(range(10_000, 100_000), num_users)]
    weights = _user_weights(num_users)
    habits = {
        user: _weights(rng) for user in users
    }  # without them, all users and months would be alike in the long run
    moods = [_weights(rng) for _ in range(num_months)]
    histograms = {
        (user, first.month + index): list(accumulate(a * b for a, b in zip(habits[user], mood, strict=True)))
        for user in users
        for index, mood in enumerate(moods)
    }
    labels = list(LABELS)

    def draw() -> Row:
        user = rng.choices(users, cum_weights=weights)[0]
        day = first + timedelta(days=rng.randrange((last - first).days + 1))
        label = rng.choices(labels, cum_weights=histograms[user, day.month])[0]
        return Row(day, user, message(rng, label, wording.split).text, label)

    rows = fill(characters, draw, lambda row: len(row.line(wording.with_labels)))
    rng.shuffle(rows)
    documents = documents_of((row.line(wording.with_labels) for row in rows), "messages")
    return Window(tuple(rows), first, last, documents)


def explanation(with_labels: bool) -> str:
    """What the lines are, and the labels."""
    labels = "; ".join(f"{name} ({meaning})" for name, meaning in LABELS.items())
    told = "Its label is written at its end" if with_labels else "Its label is not written anywhere; read the message"
    return (
        "Each line of the text is one message, with its date, the number of the user who wrote it, and what it says "
        f"about something that happened or did not. Each message has one of four labels: {labels}. {told}. "
    )


def _user_weights(num_users: int) -> Sequence[float]:
    """Cumulative."""
    num_frequent = max(1, round(_FREQUENT_USERS * num_users))
    frequent = [_FREQUENT_SHARE / num_frequent] * num_frequent
    return list(
        accumulate(frequent + [(1 - _FREQUENT_SHARE) / (num_users - num_frequent)] * (num_users - num_frequent))
    )


def _weights(rng: Random) -> list[float]:
    """Of the labels; in proportion, a draw from the flat Dirichlet distribution."""
    return [rng.expovariate(1.0) for _ in LABELS]
