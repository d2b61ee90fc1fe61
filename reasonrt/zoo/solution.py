"""A worked solution, which every family of problems returns together with its question."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Solution:
    """Steps to the answer, and what a careful writer would add after it.

    Attributes:
        steps: the reasoning, one step per entry, without the sentence that states the answer.
        answer: as it stands in the box; empty for a problem that has none.
        checks: steps that confirm the answer another way; they follow the answer.
        slip: the index of a step that may be written wrong first, and the wrong wording; see `traces.py`.
    """

    steps: tuple[str, ...]
    answer: str
    checks: tuple[str, ...] = ()
    slip: tuple[int, str] | None = None


def misread(value: int, draw: float) -> int:
    """A plausible wrong value: one digit of `value` off by one. `draw` is uniform in [0, 1)."""
    size = len(str(abs(value)))
    off: int = 10 ** int(draw * size)
    return value + off if int(draw * 97) % 2 or value < off else value - off
