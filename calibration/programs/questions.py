"""Questions with known answers and all of their candidates, and what serving would have made of these."""

from collections.abc import Sequence
from typing import NamedTuple

from reasonrt.errors import CalibrationError
from reasonrt.programs.selection import START, Selection, Strategy, fewest_to_settle, is_settled, select
from reasonrt.programs.trials import Trial
from reasonrt.programs.values import Kind, value_of
from reasonrt.programs.weights import Weights


class Question(NamedTuple):
    """One question of a calibration.

    Attributes:
        trials: all K, none of them cancelled.
        gold: the right answer.
        kind: how to read answers.
        problem: what is asked of what, the same however often it is recorded; "" is known by its trials.
    """

    trials: Sequence[Trial]
    gold: str
    kind: Kind = "auto"
    problem: str = ""


def num_trials(questions: Sequence[Question]) -> int:
    """How many each has.

    Raises:
        CalibrationError: there are no questions, or not the same number of trials of each, or fewer than three.
    """
    sizes = {len(question.trials) for question in questions}
    if len(sizes) != 1 or min(sizes) < START:
        found = f"from {min(sizes)} to {max(sizes)} trials" if sizes else "no trials"
        raise CalibrationError(
            f"{len(questions)} questions have {found}; each needs the same number, {START} or more: record with early "
            "stop off"
        )
    return sizes.pop()


def is_right(answer: str | None, question: Question) -> bool:
    """Whether an answer has the value of the right one; none is never right."""
    return answer is not None and value_of(answer, question.kind) == value_of(question.gold, question.kind)


def draw(
    question: Question, strategy: Strategy, weights: Weights | None = None, stops_early: bool = True
) -> tuple[Selection, Sequence[Trial]]:
    """What is chosen, and the trials that it took: those that serving would have started, by index."""
    trials = sorted(question.trials, key=lambda trial: trial.index)
    if strategy == "rlm":
        trials = trials[:1]
    num_drawn = 0 if stops_early else len(trials)
    while num_left := len(trials) - num_drawn:
        if num_drawn and is_settled(trials[:num_drawn], num_left, strategy, question.kind, weights):
            break
        num_drawn += fewest_to_settle(trials[:num_drawn], num_left, strategy, question.kind, weights)
    return select(trials[:num_drawn], strategy, question.kind, weights), trials[:num_drawn]


def believed(selection: Selection) -> str | None:
    """The best answer, also where it is not given because of too small a share."""
    return selection.surviving[0] if selection.surviving else None
