"""Where the steps of a model end, found from its own texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import get_args

from reasonrt.boundaries import LONGEST_STEP, Boundaries, BoundaryKind, StepSplitter
from reasonrt.errors import CalibrationError
from reasonrt.types import Tokenizer

MOST_TOO_LONG = 0.05
"""Of the tokens, how many may stand in steps that only their length has ended."""


@dataclass(frozen=True, slots=True)
class Cuts:
    """How one kind of boundary cuts texts.

    Attributes:
        steps_per_text: on average.
        step_tokens: the median.
        too_long: share of the tokens in steps that have half of `LONGEST_STEP` or more, in [0, 1].
    """

    steps_per_text: float
    step_tokens: float
    too_long: float


def cuts_of(texts: Sequence[Sequence[int]], tokenizer: Tokenizer) -> dict[BoundaryKind, Cuts]:
    """How each kind of boundary cuts `texts`, the token ids of a model's answers.

    Raises:
        CalibrationError: there is no text.
    """
    if not any(texts):
        raise CalibrationError("there is no text to find steps in; let the model write a few answers")
    found: dict[BoundaryKind, Cuts] = {}
    for kind in get_args(BoundaryKind):
        boundaries = Boundaries(tokenizer, kind)
        lengths = [length for ids in texts for length in _lengths(ids, boundaries)]
        too_long = sum(length for length in lengths if length >= LONGEST_STEP // 2) / sum(lengths)
        found[kind] = Cuts(len(lengths) / len(texts), median(lengths), too_long)
    return found


def choose_boundary(cuts: Mapping[BoundaryKind, Cuts]) -> BoundaryKind:
    """The kind that makes the longest steps, of those that leave next to none to be ended by their length."""
    return next((kind for kind in get_args(BoundaryKind) if cuts[kind].too_long <= MOST_TOO_LONG), "sentence")


def _lengths(token_ids: Sequence[int], boundaries: Boundaries) -> list[int]:
    splitter = StepSplitter(boundaries)
    segments = splitter.feed(token_ids)
    rest = splitter.flush()
    return [len(segment.token_ids) for segment in (*segments, *([rest] if rest else []))]
