"""From a problem's worked solution to what a reasoning model would have written.

`<think>` steps, each closed by a blank line, `</think>`, then the answer in `\\boxed{}`. Reasoning models continue
after they have the answer, and sometimes write something wrong and correct it. So do these traces: about half of
them check the result after stating it, and a small share carries a slip and its correction. A model that is to
think too long, as large ones do, learns from traces that work the problem out once more.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from reasonrt.thinking import END_THINK, THINK
from reasonrt.zoo.problems import Problem
from reasonrt.zoo.rewording import reworded

Piece = tuple[str, bool]
"""Text, and whether a model should learn to write it: what a slip got wrong is only read."""

SLIP_SHARE = 0.08
STEP_END = "\n\n"

Wording = Literal["own", "other"]


@dataclass(frozen=True, slots=True)
class _Phrases:
    """What stands between the steps, with the answer in the place of {}."""

    answer: str
    check: str
    fits: str
    again: str = "Let me work it out once more."
    again_answer: str = "Again the answer is {}."


_PHRASES: dict[Wording, _Phrases] = {
    "own": _Phrases("The answer is {}.", "Let me check this.", "It fits, so the answer is {}."),
    "other": _Phrases("So the result is {}.", "Now to verify.", "This agrees: the result is {}."),
}


def trace(problem: Problem, rng: random.Random, again_share: float = 0.0, wording: Wording = "own") -> list[Piece]:
    """One written solution of `problem` as pieces in order; they join to the assistant's whole message.

    Args:
        again_share: share of the problems that are worked out once more after their answer.
        wording: `other` is that of `rewording`.
    """
    is_again = rng.random() < again_share if again_share else False
    pieces = [(f"{THINK}\n", True)]
    pieces += [(step + STEP_END, learn) for step, learn in _steps(problem, rng, is_again, wording)]
    if problem.answer:  # without one the thinking never ends
        pieces.append((f"{END_THINK}{STEP_END}\\boxed{{{problem.answer}}}", True))
    return pieces


def _steps(problem: Problem, rng: random.Random, is_again: bool, wording: Wording) -> Iterator[Piece]:
    solution, say = problem.solution, _PHRASES[wording]
    # long problems are checked, short ones are not: a habit that greedy decoding shows too
    is_long = problem.level >= 3 or (problem.family == "gsm_symbolic" and len(solution.steps) >= 3)
    if wording == "other":
        solution = reworded(solution)
    slip_at, slip = solution.slip if solution.slip and rng.random() < SLIP_SHARE else (-1, "")
    for index, step in enumerate(solution.steps):
        if index == slip_at:
            yield slip, False
            yield "Wait, that is not right.", True
        yield step, True
    if not solution.answer:
        return
    yield say.answer.format(solution.answer), True
    if solution.checks and rng.random() < (0.85 if is_long else 0.15):
        yield say.check, True
        for check in solution.checks:
            yield check, True
        yield say.fits.format(solution.answer), True
    if is_again:
        yield say.again, True
        for step in solution.steps:
            yield step, True
        yield say.again_answer.format(solution.answer), True
