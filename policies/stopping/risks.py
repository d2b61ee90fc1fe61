"""What can go wrong because of stopping early: for each risk, 0 or 1 per problem.

What is right is what the trace says (`Trace.right`, `Trace.kept`): as it was graded when it was recorded, by the
equality that grades tasks. No answer is never right. A risk is the mean of its losses over problems;
`selective_error` over those problems that were stopped.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from reasonrt.errors import CalibrationError, shown
from reasonrt.policies.stopping.replay import Outcome
from reasonrt.policies.stopping.rules import Action
from reasonrt.policies.stopping.traces import Trace

Loss = Callable[[Trace, Outcome], bool | None]
"""Of one problem; None where the problem does not count."""


@dataclass(frozen=True, slots=True)
class Risk:
    """What is counted, and what it takes to count it.

    Attributes:
        needs_gold: whether every trace must hold the right answer.
        is_conditional: whether problems count by what became of them. What ends more problems unstopped, such as a
            smaller `max_tokens`, can then raise the risk; without it, no problem has a loss that it had not before.
    """

    loss: Loss
    needs_gold: bool
    is_conditional: bool = False


def early_error(trace: Trace, outcome: Outcome) -> bool:
    """Stopped with an answer, and it is wrong. Needs gold.

    Source: Conformal Thinking, Wang et al. (2026), arXiv 2602.03814, the upper risk.
    """
    return outcome.action is Action.ANSWER and not _is_good(trace, outcome)


def selective_error(trace: Trace, outcome: Outcome) -> bool | None:
    """Wrong, among the problems that were stopped with an answer. Needs gold.

    The number of stopped problems is random. Given which problems a rule stops, their losses are independent, each 1
    with probability P(wrong | stopped); so the binomial test on the stopped ones alone is valid given that number,
    and therefore on average over it. With nothing stopped there is no evidence: the p-value is 1.
    """
    return early_error(trace, outcome) if outcome.action is Action.ANSWER else None


def lost_correct(trace: Trace, outcome: Outcome) -> bool:
    """The answer after all the thinking was right, the answer of the stopped trace is not; giving up is no answer.

    Needs no gold: without it, any departure from the model's own full answer counts. That is never less, so what is
    certified without gold also holds against gold.
    """
    return outcome.action is not Action.GO_ON and trace.is_counted and not _is_good(trace, outcome)


def premature_give_up(trace: Trace, outcome: Outcome) -> bool:
    """Given up, where thinking on to the end would have given the right answer. Needs gold."""
    return outcome.action is Action.GIVE_UP and trace.is_counted


def _is_good(trace: Trace, outcome: Outcome) -> bool:
    return outcome.action is Action.ANSWER and outcome.index is not None and trace.is_good(outcome.index)


RISKS: Mapping[str, Risk] = {
    "early_error": Risk(early_error, needs_gold=True),
    "lost_correct": Risk(lost_correct, needs_gold=False),
    "premature_give_up": Risk(premature_give_up, needs_gold=True),
    "selective_error": Risk(selective_error, needs_gold=True, is_conditional=True),
}


def find_risk(name: str, traces: Iterable[Trace]) -> Risk:
    """The risk of that name, once `traces` are known to carry it.

    Raises:
        CalibrationError: there is no such risk, or it needs the gold answer of a trace that has none.
    """
    if name not in RISKS:
        raise CalibrationError(f"unknown risk {shown(name)}; there are {', '.join(RISKS)}")
    risk = RISKS[name]
    bare = [trace.problem_id for trace in traces if risk.needs_gold and not trace.has_gold]
    if bare:
        raise CalibrationError(
            f"risk {shown(name)} needs the right answer of every problem, {len(bare)} have no gold, one is "
            f"{shown(bare[0])}; "
            "label them or take lost_correct"
        )
    return risk
