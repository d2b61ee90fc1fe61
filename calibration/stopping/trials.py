"""Rules tried on recorded problems: the losses and tokens that every test and every report is made from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reasonrt.calibration.stopping.bounds import anytime_p_value, binomial_p_value
from reasonrt.calibration.stopping.multiple_testing import max_p
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.replay import refuse_unknown_signals, replay
from reasonrt.policies.stopping.risks import find_risk
from reasonrt.policies.stopping.rules import StoppingRule
from reasonrt.policies.stopping.traces import Trace


@dataclass(frozen=True, slots=True)
class Limit:
    """A risk by name, and the alpha that it must stay below."""

    risk: str
    alpha: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One rule on many problems.

    Attributes:
        losses: [num_limits][n], None where the problem does not count for that risk.
        net_tokens: [n], probes counted.
        stopped: [n], whether it ended before the trace did.
    """

    rule: StoppingRule
    losses: tuple[tuple[bool | None, ...], ...]
    net_tokens: tuple[int, ...]
    stopped: tuple[bool, ...]


def try_rules(traces: Iterable[Trace], rules: Sequence[StoppingRule], limits: Sequence[Limit]) -> list[Trial]:
    """Try every rule on every problem.

    Raises:
        CalibrationError: there are no rules, one reads a signal that the traces lack, or a risk lacks its gold.
    """
    problems = tuple(traces)
    if not rules:
        raise CalibrationError("there are no rules to certify; give at least one")
    refuse_unknown_signals(rules, problems)
    risks = [find_risk(limit.risk, problems) for limit in limits]
    trials = []
    for rule in rules:
        outcomes = [replay(rule, trace) for trace in problems]
        losses = tuple(tuple(map(risk.loss, problems, outcomes)) for risk in risks)
        net_tokens = tuple(outcome.net_tokens for outcome in outcomes)
        trials.append(Trial(rule, losses, net_tokens, tuple(outcome.index is not None for outcome in outcomes)))
    return trials


def p_value(trial: Trial, limits: Sequence[Limit], growing: bool = False) -> float:
    """The p-value of the hypothesis "at least one risk of this rule reaches its limit".

    Args:
        growing: take one that holds however often it is looked at while problems are added.
    """
    of_one = anytime_p_value if growing else binomial_p_value
    counts = map(count, trial.losses)
    return max_p([of_one(k, n, limit.alpha) for (k, n), limit in zip(counts, limits, strict=True)])


def count(losses: Iterable[bool | None]) -> tuple[int, int]:
    """Count the losses and the problems that count: (k, n)."""
    counted = [loss for loss in losses if loss is not None]
    return sum(counted), len(counted)
