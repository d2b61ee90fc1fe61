"""Chains of assignments in prose: which variables have this value? (RULER's variable tracking)"""

from random import Random
from string import ascii_uppercase

from reasonrt.evals.contexts.filling import documents_of, fill, hide
from reasonrt.evals.contexts.problem import Draft
from reasonrt.evals.contexts.prose import paragraphs, sentence

NUM_HOPS = 4
_CHARACTERS_PER_CHAIN = 1_500
_MAX_CHAINS = 400


def variable_chains(rng: Random, characters: int) -> Draft:
    """One chain of four hops is asked for; the others end in other values."""
    num_chains = min(_MAX_CHAINS, 2 + characters // _CHARACTERS_PER_CHAIN)
    names = _names(rng, num_chains * (NUM_HOPS + 1))
    values = rng.sample(range(10_000, 100_000), num_chains)
    chains = [names[start::num_chains] for start in range(num_chains)]
    lines = _interleave(rng, [_assignments(chain, value) for chain, value in zip(chains, values, strict=True)])
    noise = fill(characters - sum(map(len, lines)), lambda: paragraphs(rng, [sentence(rng)])[0], len)
    question = (
        f"In the text, variables are assigned numbers, or the values of other variables. Which variables have the "
        f"value {values[0]}, directly or through others? Answer with all of their names, separated by commas."
    )
    return Draft(question, documents_of(hide(rng, lines, noise), "notes"), ", ".join(sorted(chains[0])), "set")


def _names(rng: Random, num: int) -> list[str]:
    """Different names of five letters."""
    of_letters = rng.sample(range(26**5), num)
    return ["".join(ascii_uppercase[index // 26**place % 26] for place in range(5)) for index in of_letters]


def _assignments(chain: list[str], value: int) -> list[str]:
    sources = [str(value), *(f"VAR {name}" for name in chain[:-1])]
    return [f"VAR {name} = {source}\n" for name, source in zip(chain, sources, strict=True)]


def _interleave(rng: Random, chains: list[list[str]]) -> list[str]:
    """The lines of all chains in one order that keeps each chain's own."""
    turns = [index for index, lines in enumerate(chains) for _ in lines]
    rng.shuffle(turns)
    waiting = [iter(lines) for lines in chains]
    return [next(waiting[index]) for index in turns]
