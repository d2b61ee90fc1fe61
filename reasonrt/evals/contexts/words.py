"""Words for contexts: three-part keys of real words, and invented words."""

from itertools import islice, product
from random import Random


def listed(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


ADJECTIVES = listed(
    "amber ancient bitter bold brisk broken calm careful clever crooked dusty eager early faint famous fierce frozen "
    "gentle giant hasty hidden hollow humble idle jolly keen late lazy lively lonely lucky mellow mighty misty modest "
    "narrow noble odd pale patient plain polite proud quick quiet rapid rare restless rough rusty secret shallow sharp "
    "shy silent simple sleepy slow smooth soft solemn spare stern strange sturdy subtle sudden tender tiny vast vivid "
    "wandering warm weary wild wise young"
)
MATERIALS = listed(
    "brass bronze canvas carbon cedar clay copper coral cotton crystal felt flint glass gold granite gravel iron ivory "
    "jade leather linen marble nickel oak onyx paper pearl pewter pine plaster quartz resin rubber sand silk silver "
    "slate steel stone straw tin velvet walnut wax willow wool zinc"
)
NOUNS = listed(
    "anchor anvil apron arch badge banner barrel basin basket beacon bell bench blanket bottle bowl bridge bucket "
    "buckle button candle canoe carpet castle chain chair chest chisel clock coach comb compass cradle crown cup "
    "curtain dagger desk dial door drum engine fan fence ferry flag flute fork frame funnel gate glove goblet "
    "hammer handle harp hatch helmet hinge hook horn jar jug kettle key kite knife ladder lamp lantern latch "
    "lever lock loom mallet mask mast mirror mortar nail needle net oar organ oven paddle pan pedal pen pipe "
    "plate plough pump quill raft rake razor ribbon ring rope rudder saddle sail saw scale screw shield shovel "
    "sled spade spoon statue stool stove sword table teapot tent thimble tower tray trumpet tunnel vase violin "
    "wagon wheel whistle window wrench"
)
_CONSONANTS = listed("b c d f g h k l m n p r s t v w z br cl dr fl gr pl sk st tr")
_VOWELS = listed("a e i o u ai ea oo")


def keys(rng: Random, num: int) -> list[str]:
    """Different ones, such as `quiet-copper-bell`; many share two of their parts."""
    total = len(ADJECTIVES) * len(MATERIALS) * len(NOUNS)
    picked = rng.sample(range(total), num)
    of_one = len(MATERIALS) * len(NOUNS)
    return [
        f"{ADJECTIVES[index // of_one]}-{MATERIALS[index // len(NOUNS) % len(MATERIALS)]}-{NOUNS[index % len(NOUNS)]}"
        for index in picked
    ]


def invented_words(rng: Random, num: int, syllables: int = 3) -> list[str]:
    """Different words that mean nothing, such as `plooneka`."""
    parts = [consonant + vowel for consonant, vowel in product(_CONSONANTS, _VOWELS)]
    found: dict[str, None] = {}  # a set would lose the order
    while len(found) < num:
        found["".join(rng.choices(parts, k=syllables))] = None
    return list(islice(found, num))
