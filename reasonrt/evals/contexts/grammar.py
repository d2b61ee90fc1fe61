"""Messages whose label is in their meaning, and never in their words.

A message says whether its writer wanted something, and whether it came about. Either is told by a clause that has a
twin of the same words in another order with the opposite sense. So for every message there are messages of the three
other labels of exactly the same words, and no count of words can tell them apart.

The labels are the four outcomes of hopes and fears in Ortony, Clore and Collins, The Cognitive Structure of Emotions
(1988), chapter 6.
"""

import re
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal

Split = Literal["train", "test"]
"""The halves of the clauses: what is learned or written by looking at one half is tried on the other."""

LABELS = {
    "satisfaction": "the writer wanted it, and it happened",
    "disappointment": "the writer wanted it, and it did not happen",
    "distress": "the writer did not want it, and it happened",
    "relief": "the writer did not want it, and it did not happen",
}
_LABEL_OF = {
    (True, True): "satisfaction",
    (True, False): "disappointment",
    (False, True): "distress",
    (False, False): "relief",
}

WISHES = (  # (the writer wanted it, did not want it)
    ("I would be happier with it than without it", "I would be happier without it than with it"),
    ("it would solve more for me than it would spoil", "it would spoil more for me than it would solve"),
    ("I was for it and {other} was against it", "I was against it and {other} was for it"),
    ("I said yes to it when {other} said no", "I said no to it when {other} said yes"),
    ("I longed for it as much as {other} dreaded it", "I dreaded it as much as {other} longed for it"),
    ("to me it was a gift and to {other} a burden", "to me it was a burden and to {other} a gift"),
    (
        "I prayed that it would be and {other} that it would not",
        "I prayed that it would not be and {other} that it would",
    ),
    ("a year with it beats a year without it", "a year without it beats a year with it"),
    ("what it costs me is nothing beside what it brings me", "what it brings me is nothing beside what it costs me"),
    (
        "my hope was that it would and my fear that it would not",
        "my fear was that it would and my hope that it would not",
    ),
    (
        "I signed the list for it and tore up the one against it",
        "I signed the list against it and tore up the one for it",
    ),
    ("I count its absence a loss and its presence a gain", "I count its absence a gain and its presence a loss"),
    ("the more of it the better for me, the less the worse", "the more of it the worse for me, the less the better"),
    (
        "being spared it was the bad dream and getting it the good one",
        "being spared it was the good dream and getting it the bad one",
    ),
    ("I would have paid to get it but not to escape it", "I would have paid to escape it but not to get it"),
    ("I saw the advantage of it and {other} the drawback", "I saw the drawback of it and {other} the advantage"),
    (
        "it would be the end of my troubles and the start of my savings",
        "it would be the start of my troubles and the end of my savings",
    ),
    ("I would welcome it and curse the lack of it", "I would curse it and welcome the lack of it"),
    (
        "{other} wished to be rid of it and I wished to have it",
        "I wished to be rid of it and {other} wished to have it",
    ),
    ("my plans stand with it and fall without it", "my plans fall with it and stand without it"),
    ("it would fill my purse and empty my diary of worries", "it would empty my purse and fill my diary of worries"),
    (
        "I slept well when it looked likely and badly when it did not",
        "I slept badly when it looked likely and well when it did not",
    ),
    ("I campaigned to let it in rather than to keep it out", "I campaigned to keep it out rather than to let it in"),
    ("parting from it would hurt and meeting it would heal", "meeting it would hurt and parting from it would heal"),
    ("it would help me as surely as it would harm {other}", "it would harm me as surely as it would help {other}"),
    ("I asked for more of it and {other} for less", "I asked for less of it and {other} for more"),
    ("nothing could please me more or trouble me less", "nothing could trouble me more or please me less"),
    ("I took it for the cure and its lack for the disease", "I took it for the disease and its lack for the cure"),
    ("I would call it the prize and its failure the penalty", "I would call its failure the prize and it the penalty"),
    (
        "I sat with those who begged for it and not with those who begged to be spared it",
        "I sat with those who begged to be spared it and not with those who begged for it",
    ),
    (
        "I had plenty to say for it, whatever {other} had to say against it",
        "I had plenty to say against it, whatever {other} had to say for it",
    ),
    (
        "its coming would make my day and its failing would break it",
        "its failing would make my day and its coming would break it",
    ),
    ("I would rather have it tomorrow than never", "I would rather have it never than tomorrow"),
    ("I could live with it but not without it", "I could live without it but not with it"),
    (
        "{other} feared the chance of it and I the chance of missing it",
        "{other} feared the chance of missing it and I the chance of it",
    ),
    (
        "my heart spoke for it and only my politeness against it",
        "my heart spoke against it and only my politeness for it",
    ),
    ("I drank to its success and not to its ruin", "I drank to its ruin and not to its success"),
    (
        "a world in which it is missing is poorer for me and one in which it is present richer",
        "a world in which it is missing is richer for me and one in which it is present poorer",
    ),
    (
        "I would cross the town to reach it and not the street to flee it",
        "I would cross the town to flee it and not the street to reach it",
    ),
    (
        "it was {other} who shook at the thought and I who smiled",
        "it was I who shook at the thought and {other} who smiled",
    ),
)

OUTCOMES = (  # (it happened, it did not happen)
    (
        "those who said it would come were right and those who said it would not were wrong",
        "those who said it would come were wrong and those who said it would not were right",
    ),
    (
        "it did take place, though we were told that it did not",
        "it did not take place, though we were told that it did",
    ),
    (
        "what fell through was the excuse and not the thing itself",
        "what fell through was the thing itself and not the excuse",
    ),
    ("it went ahead and the plan to drop it did not", "the plan to drop it went ahead and it did not"),
    ("the report of it was true and the denial false", "the report of it was false and the denial true"),
    (
        "they kept their promise to do it and broke the one to stop it",
        "they broke their promise to do it and kept the one to stop it",
    ),
    ("the final answer on it turned from no to yes", "the final answer on it turned from yes to no"),
    ("it started on the day and the protest failed to", "the protest started on the day and it failed to"),
    ("it became real and the alternative stayed on paper", "the alternative became real and it stayed on paper"),
    ("first it was dropped and then brought back for good", "first it was brought back and then dropped for good"),
    ("it went from a refusal to a done deal", "it went from a done deal to a refusal"),
    (
        "an earlier message called it off and the last one called it on",
        "an earlier message called it on and the last one called it off",
    ),
    (
        "all who bet on it collected and all who bet against it paid",
        "all who bet against it collected and all who bet on it paid",
    ),
    (
        "the attempt to block it came to nothing and it did not",
        "it came to nothing and the attempt to block it did not",
    ),
    ("it came with {day}, only the apology stayed away", "the apology came with {day}, only it stayed away"),
    (
        "the clerk stamped it approved after it had been stamped refused",
        "the clerk stamped it refused after it had been stamped approved",
    ),
    (
        "the vote to have it passed and the vote to scrap it failed",
        "the vote to scrap it passed and the vote to have it failed",
    ),
    (
        "the doubters had to admit that the believers were right about its happening",
        "the believers had to admit that the doubters were right about its happening",
    ),
    (
        "last month there was no sign of it and by {day} there it was",
        "last month there it was and by {day} there was no sign of it",
    ),
    (
        "I had marked it as failed and must now mark it as done",
        "I had marked it as done and must now mark it as failed",
    ),
    ("its red light turned green in the end", "its green light turned red in the end"),
    ("the official yes to it came after the official no", "the official no to it came after the official yes"),
    ("it arrived and its cancellation did not", "its cancellation arrived and it did not"),
    (
        "it got its turn and the petition against it got nowhere",
        "the petition against it got its turn and it got nowhere",
    ),
    ("people swore it could not be done, and then it could", "people swore it could be done, and then it could not"),
    (
        "it was carried out and the idea of skipping it given up",
        "the idea of skipping it was carried out and it given up",
    ),
    ("it beat the ban", "the ban beat it"),
    (
        "it survived the meeting and the motion to stop it was buried",
        "the motion to stop it survived the meeting and it was buried",
    ),
    ("it was there on {day} and only the excuse was missing", "only the excuse was there on {day} and it was missing"),
    (
        "the empty words were the ones that ruled it out and not the ones that ruled it in",
        "the empty words were the ones that ruled it in and not the ones that ruled it out",
    ),
    (
        "the board upheld the approval of it and threw out the rejection",
        "the board upheld the rejection of it and threw out the approval",
    ),
    (
        "whoever wrote go on it had the last word over whoever wrote stop",
        "whoever wrote stop on it had the last word over whoever wrote go",
    ),
    (
        "the money for doing it was spent and the money for undoing it handed back",
        "the money for undoing it was spent and the money for doing it handed back",
    ),
    (
        "I woke believing that it had failed and heard that it had worked out",
        "I woke believing that it had worked out and heard that it had failed",
    ),
    (
        "its friends went home cheering and its enemies grumbling",
        "its enemies went home cheering and its friends grumbling",
    ),
    (
        "my neighbour lost the wager that it would never be and I won",
        "my neighbour won the wager that it would never be and I lost",
    ),
    (
        "the rumour that it was dead turned out a lie and the rumour that it was alive a fact",
        "the rumour that it was alive turned out a lie and the rumour that it was dead a fact",
    ),
    (
        "they crossed out the note that it was void and left the note that it was valid",
        "they crossed out the note that it was valid and left the note that it was void",
    ),
    (
        "history has it in the book of deeds and not in the book of mere plans",
        "history has it in the book of mere plans and not in the book of deeds",
    ),
    ("on {day} the odds of it went from none to all", "on {day} the odds of it went from all to none"),
)

_THINGS = (
    "the early shift",
    "the move to the fourth floor",
    "the street party",
    "the second interview",
    "the visit from head office",
    "the flower show",
    "the merger with the other club",
    "the new timetable",
    "the night train",
    "the film crew in our road",
    "the extra class",
    "the reunion",
    "the sale of the garden",
    "the transfer abroad",
    "the long meeting",
    "the change of coach",
    "the fireworks display",
    "the roadworks",
    "the open-plan office",
    "the school exchange",
    "the loft conversion",
    "the concert next door",
    "the four-day week",
    "the football match",
    "the boat trip",
    "the surprise visit",
    "the market in our square",
    "the bypass",
    "the software update",
    "the winter tour",
    "the shared kitchen",
    "the big wedding",
)
_OTHERS = (
    "my sister",
    "my brother",
    "my boss",
    "my landlord",
    "my neighbour",
    "my cousin",
    "my aunt",
    "the team",
    "my flatmate",
    "my partner",
    "the caretaker",
    "my teacher",
    "my uncle",
    "the committee",
    "my best friend",
    "my colleague",
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_LAYOUTS = (
    "About {thing}: {wish}. {outcome}.",
    "You asked about {thing}. {outcome}. {wish}.",
    "{thing}, in short: {wish}; {outcome}.",
    "A word on {thing}. {outcome}; as for me, {wish}.",
    "Remember {thing}? {wish}. {outcome}.",
    "Regarding {thing}: {outcome}. You know that {wish}.",
    "{thing} again. You know that {wish}, and {outcome}.",
    "For the record, on {thing}: {outcome}, and {wish}.",
)
_ENDINGS = (  # of many lengths, so that a window can be filled to a length
    "",
    "",
    "",
    " More soon.",
    " I will ring you.",
    " Thanks for asking.",
    " Greetings from the train, which is about to leave.",
    " I am writing this with one hand and holding a sandwich in the other.",
    " Please pass this on to the others, as I do not have all of their addresses.",
    " Excuse the typing: this telephone is older than my nephew, and so are the glasses that I read it with.",
    " There is more to tell about this, but the library closes in five minutes and the lamps are being put out.",
)


_SENTENCE_START = re.compile(r"(?:^|(?<=[.?] ))[a-z]")


@dataclass(frozen=True, slots=True)
class Message:
    text: str
    label: str


def message(rng: Random, label: str, split: Split = "test") -> Message:
    """A message of this label, from the clauses of this half."""
    wanted, happened = next(flags for flags, name in _LABEL_OF.items() if name == label)
    wishes, outcomes = clauses(split)
    slots = {"other": rng.choice(_OTHERS), "day": rng.choice(_DAYS)}
    wish = rng.choice(wishes)[0 if wanted else 1].format(**slots)
    outcome = rng.choice(outcomes)[0 if happened else 1].format(**slots)
    return Message(_laid_out(rng.choice(_LAYOUTS), rng.choice(_THINGS), wish, outcome) + rng.choice(_ENDINGS), label)


@cache
def clauses(split: Split) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """Wishes and outcomes of one half: every other one."""
    start = ("train", "test").index(split)
    return WISHES[start::2], OUTCOMES[start::2]


def num_frames(split: Split) -> int:
    """Different messages of one label before any slot is filled."""
    wishes, outcomes = clauses(split)
    return len(wishes) * len(outcomes) * len(_LAYOUTS)


def _laid_out(layout: str, thing: str, wish: str, outcome: str) -> str:
    text = layout.format(thing=thing, wish=wish, outcome=outcome)
    return _SENTENCE_START.sub(lambda match: match[0].upper(), text)
