"""The long file of the demo, and what writes programs over it in the place of a model that can."""

import random
from collections.abc import Iterator
from typing import Final

from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.types import Sampling

QUESTION: Final = "Which user failed to log in most often?"
RIGHT: Final = "grace"

_NUM_LINES = 60_000
_NUM_EARLY = 6_000  # in which another user fails most often
_USERS = ("ada", "alan", "barbara", "donald", "edsger", "frances", "grace", "john", "ken", "leslie", "margaret", "tony")
_OFTEN, _OFTEN_EARLY = "grace", "leslie"

_LOOK = """
hits = grep(r"Failed password for ")
print(len(hits), hits[0]["text"])
"""

# `grep` gives 1,000 hits unless told otherwise: this program counts the beginning of the file
_WITH_A_BUG = """
counts = {}
for hit in hits:
    user = hit["text"].split("Failed password for ")[1].split(" ")[0]
    counts[user] = counts.get(user, 0) + 1
final(max(counts, key=counts.get), evidence=hits[:1])
"""
_BY_GREP = """
hits = grep(r"Failed password for ", max_hits=100000)
counts = {}
for hit in hits:
    user = hit["text"].split("Failed password for ")[1].split(" ")[0]
    counts[user] = counts.get(user, 0) + 1
best = max(counts, key=counts.get)
final(best, evidence=[hit for hit in hits if " " + best + " " in hit["text"]][:1])
"""
_BY_LINE = """
counts = {}
for line in context.split("\\n"):
    if "Failed password for " in line:
        user = line.split("Failed password for ")[1].split(" ")[0]
        counts[user] = counts.get(user, 0) + 1
final(max(counts, key=counts.get))
"""


def failed_logins() -> str:
    """A log of an SSH server, always the same; who fails most often is seen only over the whole of it."""
    rng = random.Random(0)
    lines = []
    for number in range(_NUM_LINES):
        often = _OFTEN_EARLY if number < _NUM_EARLY else _OFTEN
        failed = rng.random() < 0.3
        user = often if failed and rng.random() < 0.2 else rng.choice(_USERS)
        did = "Failed password" if failed else "Accepted publickey"
        clock = f"{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}"
        where = f"192.0.2.{rng.randrange(256)} port {rng.randrange(1024, 65536)}"
        lines.append(f"Mar  1 {clock} host sshd[{4000 + number}]: {did} for {user} from {where} ssh2")
    return "\n".join(lines) + "\n"


def writing_programs() -> ScriptedEngine:
    """An engine that looks at the file and then writes one of three programs, as each candidate asks it."""
    programs: Iterator[str] = iter((_BY_GREP, _WITH_A_BUG, _BY_LINE))

    def write(prompt: str, sampling: Sampling) -> str:
        is_first = prompt.count("\n[assistant] ") == 1
        return _block("Look first.", _LOOK) if is_first else _block("Count.", next(programs, _BY_GREP))

    return ScriptedEngine("programs", write)


def _block(thought: str, code: str) -> str:
    return f"{thought}\n```repl{code}```\n"
