"""Endless harmless prose from a small grammar, for facts to be hidden in."""

from random import Random

_WHO = (
    "the baker",
    "an old sailor",
    "the mayor",
    "a travelling clerk",
    "the schoolmaster",
    "a young painter",
    "the miller's widow",
    "the postman",
    "a retired surgeon",
    "the ferryman",
    "a quiet lodger",
    "the organist",
    "the youngest of the masons",
    "a visitor from the coast",
    "the night watchman",
    "the apothecary",
    "a pair of cousins",
    "the choir",
    "the harbour pilot",
    "one of the weavers",
)
_DID = (
    "spoke at length about",
    "had never cared for",
    "wrote a short letter on",
    "laughed at",
    "kept a careful record of",
    "was known to admire",
    "argued all evening over",
    "remembered very little of",
    "made a song about",
    "asked the others about",
    "had once paid dearly for",
    "could not be persuaded of",
    "explained to the children",
    "found nothing new in",
    "dreamt again of",
    "would gladly have sold",
)
_WHAT = (
    "the price of barley",
    "the long winter",
    "a lost shipment of tea",
    "the new road over the hills",
    "the colours of the estuary",
    "an unfinished map",
    "the manners of the capital",
    "the bells of the neighbouring parish",
    "a rumour about the lighthouse",
    "the proper way to mend nets",
    "the election in the valley",
    "the great flood",
    "a treatise on bees",
    "the habits of herons",
    "the quarrel between the two inns",
    "the taste of river water",
    "the theatre of former days",
    "a comet seen in autumn",
    "the silence after the fair",
    "the cost of good timber",
)
_WHEN = (
    "that spring",
    "before the harvest",
    "as the tide turned",
    "towards evening",
    "on the last market day",
    "year after year",
    "while the fog lasted",
    "without much ceremony",
    "in the manner of the region",
    "to everybody's surprise",
    "when the lamps were lit",
    "after a long pause",
    "as far as anyone could tell",
    "for the better part of an hour",
    "with unusual patience",
    "long before the railway came",
)
_SHAPES = (
    "{who} {did} {what}",
    "{when}, {who} {did} {what}",
    "{who} {did} {what} {when}",
    "it was said that {who} {did} {what}",
    "{who}, who {did} {what}, also {did2} {what2}",
    "nobody minded that {who} {did} {what} {when}",
    "of {what} little was known, but {who} {did} {what2}",
    "if {who} {did} {what}, it was {when}",
)


def sentence(rng: Random) -> str:
    """One sentence with its full stop; it names no person, no room of a house and nothing that can be carried."""
    text = rng.choice(_SHAPES).format(
        who=rng.choice(_WHO),
        did=rng.choice(_DID),
        did2=rng.choice(_DID),
        what=rng.choice(_WHAT),
        what2=rng.choice(_WHAT),
        when=rng.choice(_WHEN),
    )
    return f"{text[0].upper()}{text[1:]}."


def paragraphs(rng: Random, sentences: list[str]) -> list[str]:
    """The sentences, each with the blank or the line break that follows it."""
    return [sentence + ("\n\n" if rng.random() < 0.2 else " ") for sentence in sentences]
