"""What searching for words and phrases can do: the lower mark that understanding has to beat.

The literal tasks are solved by a regular expression, or nearly so, and say how well a program is written. For the
semantic ones each message is given the label whose phrases it shares most (naive Bayes over phrases of up to three
words, learned from the training half of the clauses), and the question is answered from these labels.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date
from functools import cache
from itertools import combinations
from random import Random

from reasonrt.evals.contexts.grammar import LABELS, message
from reasonrt.evals.contexts.messages import MONTHS
from reasonrt.evals.contexts.problem import ContextProblem
from reasonrt.evals.contexts.worlds import OBJECTS, PERSONS, ROOMS

_TRAINING_MESSAGES = 2_000  # of each label
_ROW = re.compile(r"Date: (\w{3}) (\d\d), (\d{4}) \|\| User: (\d+) \|\| Instance: (.*?)(?: \|\| Label: (\w+))?\n")
_LABEL = "|".join(LABELS)
_PERSON, _ROOM, _OBJECT = (re.compile(rf"\b(?:{'|'.join(words)})\b") for words in (PERSONS, ROOMS, OBJECTS))

Seen = tuple[date, str, str]
"""Day, user, label."""


def keyword_baseline(problem: ContextProblem) -> str:
    """An answer that rests on words and phrases alone."""
    text = "".join(document.text for document in problem.documents)
    if problem.task in _LITERAL:
        return _LITERAL[problem.task](text, problem.question)
    rows = [_seen(row) for row in _ROW.findall(text)]
    return _pairs(rows, problem.question) if problem.task == "label_pairs" else _from_rows(rows, problem.question)


def guess_label(text: str) -> str:
    """The label whose phrases a message shares most."""
    weights = _phrase_weights()
    found = [weights[phrase] for phrase in _phrases(text) if phrase in weights]
    return max(LABELS, key=lambda label: sum(weight[label] for weight in found))


@cache
def _phrase_weights() -> dict[str, dict[str, float]]:
    """Log-probability of each phrase under each label."""
    rng = Random(0)
    counts = {
        label: Counter(p for _ in range(_TRAINING_MESSAGES) for p in _phrases(message(rng, label, "train").text))
        for label in LABELS
    }
    known = set().union(*counts.values())
    return {
        phrase: {label: math.log((c[phrase] + 1) / (_TRAINING_MESSAGES + 2)) for label, c in counts.items()}
        for phrase in known
    }


def _phrases(text: str) -> set[str]:
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[at : at + size]) for size in (1, 2, 3) for at in range(len(words) - size + 1)}


def _seen(row: tuple[str, ...]) -> Seen:
    month, day, year, user, text, label = row
    return _day(month, day, year), user, label or guess_label(text)


def _day(month: str, day: str, year: str) -> date:
    return date(int(year), [name[:3] for name in MONTHS].index(month) + 1, int(day))


def _from_rows(rows: list[Seen], question: str) -> str:
    asked = question[question.rindex(". ", 0, question.rindex("? ")) :]  # what stands before explains the labels
    rows = _rows_asked_for(rows, asked)
    labels = re.findall(_LABEL, asked)
    if found := re.search(rf"more messages with the label ({_LABEL}) than with the label ({_LABEL})", asked):
        counts = Counter((day.month, label) for day, _, label in rows)
        return str(sum(counts[month, found[1]] > counts[month, found[2]] for month in range(1, 13)))
    if "Which user" in asked:
        return _most(user for _, user, label in rows if label == labels[0])
    if "Which month" in asked:
        return _most(MONTHS[day.month - 1] for day, _, label in rows if label == labels[0])
    seen = Counter(label for _, _, label in rows)
    if "How many" in asked:
        return str(seen[labels[0]])
    if "least common" in asked:
        return min(LABELS, key=lambda label: seen[label])
    return max(labels or LABELS, key=lambda label: seen[label])


def _rows_asked_for(rows: list[Seen], asked: str) -> list[Seen]:
    days = [_day(*found) for found in re.findall(r"(\w{3}) (\d\d), (\d{4})", asked)]
    if found := re.search(r"of user (\d+)", asked):
        return [row for row in rows if row[1] == found[1]]
    if found := re.search(r"messages of ([A-Z]\w+)", asked):
        return [row for row in rows if MONTHS[row[0].month - 1] == found[1]]
    if len(days) == 2:
        return [row for row in rows if days[0] <= row[0] <= days[1]]
    if days:
        return [row for row in rows if (row[0] < days[0] if "messages before" in asked else row[0] > days[0])]
    return rows


def _most(keys: Iterable[str]) -> str:
    ranked = Counter(keys).most_common(1)
    return ranked[0][0] if ranked else ""


def _pairs(rows: list[Seen], question: str) -> str:
    counts: dict[str, Counter[str]] = {}
    for _, user, label in rows:
        counts.setdefault(user, Counter())[label] += 1
    both = re.search(r"both users have (.*?)\?", question)
    one = re.search(r"one of the two users has (.*?) and the other one has (.*?)\?", question)
    conditions = [both[1], both[1]] if both else [one[1], one[2]] if one else []
    first, second = ({user for user, seen in counts.items() if _meets(seen, words)} for words in conditions)
    pairs = [
        (a, b)
        for a, b in combinations(sorted(counts), 2)
        if (a in first and b in second) or (b in first and a in second)
    ]
    return ", ".join(f"({a}, {b})" for a, b in pairs)


def _meets(seen: Counter[str], words: str) -> bool:
    labels = re.findall(_LABEL, words)
    if least := re.search(r"(\d+) or more", words):
        return seen[labels[0]] >= int(least[1])
    if "most common" in words:
        return seen[labels[0]] == max(seen.values())
    return seen[labels[0]] > seen[labels[1]]


def _needle(text: str, question: str) -> str:
    key = re.search(r"of ([\w-]+)\? ", question)
    found = re.search(rf"of {key[1]} is (\S+)\.\n", text) if key else None
    return found[1] if found else ""


def _variables(text: str, question: str) -> str:
    value = re.search(r"value (\d+)", question)
    known = {value[1]} if value else set()
    names = []
    for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text):
        if source in known:
            known.add(name)
            names.append(name)
    return ", ".join(names)


def _common(text: str, _: str) -> str:
    return ", ".join(word for word, _ in Counter(re.findall(r"\. (\w+)", text)).most_common(10))


def _frequent(text: str, _: str) -> str:
    return ", ".join(word for word, _ in Counter(re.findall(r"\w+", text)).most_common(3))


def _where_person(text: str, question: str) -> str:
    person = re.search(r"is (\w+) at", question)
    return _replay(text)[0].get(person[1], "") if person else ""


def _who_has(text: str, question: str) -> str:
    item = re.search(r"has the (\w+)", question)
    return _replay(text)[1].get(item[1], "") if item else ""


def _where_object(text: str, question: str) -> str:
    item = re.search(r"is the (\w+)", question)
    rooms, holders, lying = _replay(text)
    return (lying.get(item[1]) or rooms.get(holders.get(item[1], ""), "")) if item else ""


def _replay(text: str) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """The room of each person, the holder of each object, the room of each object that was put down."""
    rooms: dict[str, str] = {}
    holders: dict[str, str] = {}
    lying: dict[str, str] = {}
    for told in re.findall(r"[^.]+", text):
        if not (persons := _PERSON.findall(told)) or re.search("thought|did not|Nobody", told):
            continue
        for room in _ROOM.findall(told):
            rooms[persons[0]] = room
        for item in _OBJECT.findall(told):
            if re.search("put down|left|let go", told):
                lying[item] = rooms.get(holders.pop(item, persons[0]), "")
            else:
                lying.pop(item, None)
                holders[item] = persons[0 if "was given" in told else -1]
    return rooms, holders, lying


_LITERAL: dict[str, Callable[[str, str], str]] = {
    "needle_words": _needle,
    "needle_uuids": _needle,
    "variables": _variables,
    "common_words": _common,
    "frequent_words": _frequent,
    "where_person": _where_person,
    "who_has": _who_has,
    "where_object": _where_object,
}
