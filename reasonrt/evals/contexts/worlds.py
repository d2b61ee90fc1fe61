"""Small worlds of persons, rooms and objects, told in prose: where is who, who has what (in the manner of bAbI)."""

from dataclasses import dataclass, field
from random import Random

from reasonrt.errors import EvalError
from reasonrt.evals.contexts.filling import documents_of, fill, hide
from reasonrt.evals.contexts.problem import Draft
from reasonrt.evals.contexts.prose import paragraphs, sentence
from reasonrt.evals.contexts.words import listed
from reasonrt.types import Document

PERSONS = listed(
    "Agnes Bela Carlo Dora Edgar Fiona Gustav Hilda Igor Judith Kamal Leonie Marco Nadia Otto Paula Quentin Rosa "
    "Stefan Tessa Ulrich Vera Walter Yara"
)
ROOMS = listed(
    "kitchen cellar attic library garden garage pantry nursery hallway workshop study ballroom greenhouse laundry "
    "chapel stable"
)
OBJECTS = listed(
    "umbrella violin parcel candlestick passport telescope apple hammer lantern teapot newspaper football necklace "
    "envelope camera blanket"
)
_NUM_PERSONS, _NUM_ROOMS, _NUM_OBJECTS = 5, 6, 5
_CHARACTERS_PER_EVENT = 350
_EVENTS = (24, 600)
_WORLDS = 50

_WENT = (
    "{person} went to the {room}.",
    "{person} walked over to the {room}.",
    "Soon {person} was in the {room}.",
    "{person} moved on to the {room}.",
    "The next to enter the {room} was {person}.",
    "The {room} was where {person} went then.",
)
_THOUGHT = (  # no event at all
    "{person} thought of going to the {room} and stayed.",
    "{person} was asked to come to the {room} and did not.",
    "Nobody met {person} in the {room}.",
)
_TOOK = (
    "{person} picked up the {object}.",
    "{person} took the {object}.",
    "The {object} was taken by {person}.",
    "{person} got hold of the {object}.",
)
_PUT_DOWN = (
    "{person} put down the {object}.",
    "{person} left the {object} there.",
    "{person} let go of the {object}.",
)
_GAVE = (
    "{person} gave the {object} to {receiver}.",
    "{person} handed {receiver} the {object}.",
    "{receiver} was given the {object} by {person}.",
)


@dataclass
class _World:
    """What is true so far.

    Attributes:
        rooms: of each person.
        holders: of each object that somebody has.
        lying: the room of each object that was put down.
    """

    rooms: dict[str, str] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    lying: dict[str, str] = field(default_factory=dict)


def where_person(rng: Random, characters: int) -> Draft:
    """One fact: the last move."""
    world, documents = _told(rng, characters)
    person = rng.choice(list(world.rooms))
    question = f"{_EXPLANATION}In which room is {person} at the end? Answer with the room only."
    return Draft(question, documents, world.rooms[person], "choice", "where_person")


def who_has(rng: Random, characters: int) -> Draft:
    """One fact: the last time that the object was taken or given."""
    world, documents = _told(rng, characters)
    item = rng.choice(list(world.holders))
    question = f"{_EXPLANATION}Who has the {item} at the end? Answer with the name only."
    return Draft(question, documents, world.holders[item], "choice", "who_has")


def where_object(rng: Random, characters: int) -> Draft:
    """Two facts: who has it, or put it down, and where that person is, or was then."""
    world, documents = _told(rng, characters)
    is_held = rng.random() < 0.5 or not world.lying
    item = rng.choice(list(world.holders if is_held else world.lying))
    room = world.rooms[world.holders[item]] if is_held else world.lying[item]
    question = f"{_EXPLANATION}In which room is the {item} at the end? Answer with the room only."
    return Draft(question, documents, room, "choice", "held" if is_held else "lying")


_EXPLANATION = (
    "Between other sentences, the text tells in the order of time what some persons in a house do. They take what they "
    "carry along. "
)


def _told(rng: Random, characters: int) -> tuple[_World, tuple[Document, ...]]:
    num_events = min(_EVENTS[1], max(_EVENTS[0], characters // _CHARACTERS_PER_EVENT))
    for _ in range(_WORLDS):
        world, facts = _simulate(rng, num_events)
        if world.holders:
            break
    else:
        raise EvalError(f"nobody holds anything in {_WORLDS} worlds; try another seed")
    facts = paragraphs(rng, facts)
    noise = fill(characters - sum(map(len, facts)), lambda: paragraphs(rng, [sentence(rng)])[0], len)
    return world, documents_of(hide(rng, facts, noise), "chapter")


def _simulate(rng: Random, num_events: int) -> tuple[_World, list[str]]:
    persons, rooms = rng.sample(PERSONS, _NUM_PERSONS), rng.sample(ROOMS, _NUM_ROOMS)
    objects = rng.sample(OBJECTS, _NUM_OBJECTS)
    world = _World()
    facts = [_go(rng, world, person, rng.choice(rooms)) for person in persons]
    # each but one acts no more from some time on, so that what decides may stand anywhere and not only at the end
    until = dict(zip(persons, [num_events, *(rng.randint(_NUM_PERSONS, num_events) for _ in persons[1:])], strict=True))
    while len(facts) < num_events:
        person = rng.choice([person for person in persons if len(facts) < until[person]])
        here = [other for other in persons if other != person and world.rooms[other] == world.rooms[person]]
        carried = [item for item, holder in world.holders.items() if holder == person]
        within_reach = [  # where an object is before anybody takes it is not told
            item
            for item in objects
            if item not in world.holders and world.lying.get(item) in {None, world.rooms[person]}
        ]
        elsewhere = [room for room in rooms if room != world.rooms[person]]
        match rng.randrange(6):
            case 0 | 1:
                facts.append(_go(rng, world, person, rng.choice(elsewhere)))
            case 2:
                facts.append(rng.choice(_THOUGHT).format(person=person, room=rng.choice(elsewhere)))
            case 3 if within_reach:
                item = rng.choice(within_reach)
                world.lying.pop(item, None)
                world.holders[item] = person
                facts.append(rng.choice(_TOOK).format(person=person, object=item))
            case 4 if carried:
                item = rng.choice(carried)
                del world.holders[item]
                world.lying[item] = world.rooms[person]
                facts.append(rng.choice(_PUT_DOWN).format(person=person, object=item))
            case 5 if carried and here:
                item, receiver = rng.choice(carried), rng.choice(here)
                world.holders[item] = receiver
                facts.append(rng.choice(_GAVE).format(person=person, object=item, receiver=receiver))
    return world, facts


def _go(rng: Random, world: _World, person: str, room: str) -> str:
    world.rooms[person] = room
    return rng.choice(_WENT).format(person=person, room=room)
