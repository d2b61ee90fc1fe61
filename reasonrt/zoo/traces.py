"""From a problem's worked solution to what a reasoning model would have written.

`<think>` steps, each closed by a blank line, `</think>`, then the answer in `\\boxed{}`. Reasoning models continue
after they have the answer, and sometimes write something wrong and correct it. So do these traces: about half of
them check the result after stating it, and a small share carries a slip and its correction. A model that is to
think too long, as large ones do, learns from traces that work the problem out once more.
"""

import random
from collections.abc import Iterator

from reasonrt.thinking import END_THINK, THINK
from reasonrt.zoo.problems import Problem

Piece = tuple[str, bool]
"""Text, and whether a model should learn to write it: what a slip got wrong is only read."""

SLIP_SHARE = 0.08
STEP_END = "\n\n"


def trace(problem: Problem, rng: random.Random, again_share: float = 0.0) -> list[Piece]:
    """One written solution of `problem` as pieces in order; they join to the assistant's whole message.

    Args:
        again_share: share of the problems that are worked out once more after their answer.
    """
    is_again = rng.random() < again_share if again_share else False
    pieces = [(f"{THINK}\n", True)]
    pieces += [(step + STEP_END, learn) for step, learn in _steps(problem, rng, is_again)]
    if problem.answer:  # without one the thinking never ends
        pieces.append((f"{END_THINK}{STEP_END}\\boxed{{{problem.answer}}}", True))
    return pieces


def _steps(problem: Problem, rng: random.Random, is_again: bool) -> Iterator[Piece]:
    solution = problem.solution
    slip_at, slip = solution.slip if solution.slip and rng.random() < SLIP_SHARE else (-1, "")
    for index, step in enumerate(solution.steps):
        if index == slip_at:
            yield slip, False
            yield "Wait, that is not right.", True
        yield step, True
    if not solution.answer:
        return
    yield f"The answer is {solution.answer}.", True
    # long problems are checked, short ones are not: a habit that greedy decoding shows too
    is_long = problem.level >= 3 or (problem.family == "gsm_symbolic" and len(solution.steps) >= 3)
    if solution.checks and rng.random() < (0.85 if is_long else 0.15):
        yield "Let me check this.", True
        for check in solution.checks:
            yield check, True
        yield f"It fits, so the answer is {solution.answer}.", True
    if is_again:
        yield "Let me work it out once more.", True
        for step in solution.steps:
            yield step, True
        yield f"Again the answer is {solution.answer}.", True
