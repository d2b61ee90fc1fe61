"""The rules that a command tries: families whose thresholds come from the training split, and how traces are split."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from reasonrt.calibration.stopping.certification import Order, order_rules
from reasonrt.calibration.stopping.families import (
    CONFIDENCE,
    answer_convergence_rules,
    boosted_end_rules,
    budget_rules,
    deer_rules,
    dynasor_rules,
    joint_rules,
    lower_threshold_rules,
    quantile_thresholds,
    upper_threshold_rules,
)
from reasonrt.calibration.stopping.learned_signal import LOOKED_AT, learn_boosted, learn_signal, risk_thresholds
from reasonrt.errors import CalibrationError, shown
from reasonrt.policies.stopping.risks import find_risk
from reasonrt.policies.stopping.rules import Gated, Spaced, StoppingRule, UpperThreshold
from reasonrt.policies.stopping.signals import (
    END_OF_THINKING,
    ENTROPY_AFTER_THINKING,
    Agreement,
    Ema,
    Recorded,
    Signal,
    Steadiness,
    TokensUsed,
)
from reasonrt.policies.stopping.traces import TraceSet, split_traces

SHARES = (0.2, 0.2, 0.6)
_LEARN_SHARES = (1, 2)  # a grid needs few problems; an order, in which one bad rule ends the testing, needs more
NUM_THRESHOLDS = 100  # of one signal: a coarse grid has no rule just below alpha
_NUM_CASCADE_THRESHOLDS = 10  # each with every gate: of many rules that lose as little, the cheapest was lucky
_NUM_GATES = 4


class Splits(NamedTuple):
    train: TraceSet
    order: TraceSet
    certify: TraceSet


def splits(traces: TraceSet, learn: TraceSet | None = None) -> Splits:
    """Split traces into those to train, to order and to certify on; the same traces give the same splits.

    Args:
        learn: where there are other traces to train and order on, all of `traces` are to certify on.
    """
    if learn is None:
        return Splits(*split_traces(traces, SHARES))
    train, order = split_traces(learn, _LEARN_SHARES)
    return Splits(train, order, traces)


def without_gold(traces: TraceSet) -> TraceSet:
    """The same traces without their gold answers, as traffic that nobody has labelled."""
    return TraceSet(tuple(replace(trace, gold=None) for trace in traces), traces.fingerprints)


class Candidates(NamedTuple):
    """Rules to certify.

    Attributes:
        train: what they were made from.
        ordered_on: the problems to order them on; None where they stand in the order to test them.
    """

    rules: list[StoppingRule]
    train: TraceSet
    ordered_on: TraceSet | None

    def order(self, risk: str | Sequence[str], alpha: float | Sequence[float]) -> Order | None:
        """The order in which to test them, for `certify`."""
        return order_rules(self.ordered_on, self.rules, risk=risk, alpha=alpha) if self.ordered_on else None


def candidates(parts: Splits, families: Sequence[str], risk: str | Sequence[str]) -> Candidates:
    """The rules of some families.

    One family of `LEARNED` by itself is one signal, whose highest threshold is the most careful: its order is known, so
    that it is learned from all the problems that are not certified on. Others are ordered on some of them.

    Raises:
        CalibrationError: as `candidate_rules`.
    """
    if len(families) == 1 and families[0] in LEARNED:
        train = not_certified(parts)
        return Candidates(candidate_rules(train, families, risk), train, None)
    return Candidates(candidate_rules(parts.train, families, risk), parts.train, parts.order)


def not_certified(parts: Splits) -> TraceSet:
    """The traces to train and those to order on, together."""
    return TraceSet((*parts.train, *parts.order), parts.train.fingerprints)


def candidate_rules(
    train: TraceSet, families: Iterable[str] = (), risk: str | Sequence[str] = "lost_correct"
) -> list[StoppingRule]:
    """Every rule of these families, each once; where none is named, of all that are not in `LEARNED`.

    Args:
        risk: what the families in `LEARNED` learn to avoid.

    Raises:
        CalibrationError: there is no such family, or the traces lack a signal that it reads.
    """
    names = list(families) or list(_HANDMADE)
    if unknown := sorted(set(names) - set(FAMILIES)):
        raise CalibrationError(f"unknown family {shown(unknown[0])}; there are {', '.join(FAMILIES)}")
    risks = [risk] if isinstance(risk, str) else list(risk)
    made = (LEARNED[name](train, risks) if name in LEARNED else _HANDMADE[name](train) for name in names)
    return list(dict.fromkeys(rule for rules in made for rule in rules))


def _above(train: TraceSet, signal: Signal, num: int = NUM_THRESHOLDS) -> list[UpperThreshold]:
    return upper_threshold_rules(signal, quantile_thresholds(train, signal, num))


def _deer(train: TraceSet) -> list[StoppingRule]:
    return [*deer_rules(quantile_thresholds(train, CONFIDENCE, NUM_THRESHOLDS))]


def _dynasor(train: TraceSet) -> list[StoppingRule]:
    return [rule for every in (256, 128, 64, 32) for rule in dynasor_rules(range(2, 8), every)]


def _eat(train: TraceSet) -> list[StoppingRule]:
    """EAT rules with shorter memories than the paper's, which waits for forty values."""
    signals = [Steadiness(Recorded(ENTROPY_AFTER_THINKING), weight, after) for weight, after in ((0.2, 2), (0.5, 1))]
    return [rule for signal in signals for rule in _above(train, signal)]


def _answer_convergence(train: TraceSet) -> list[StoppingRule]:
    ends = boosted_end_rules(quantile_thresholds(train, END_OF_THINKING, NUM_THRESHOLDS))
    return [*answer_convergence_rules(range(2, 10)), *ends]


def _budget(train: TraceSet) -> list[StoppingRule]:
    return [*budget_rules(map(int, quantile_thresholds(train, TokensUsed(), NUM_THRESHOLDS)))]


def _learned(train: TraceSet) -> list[StoppingRule]:
    features = (TokensUsed(), CONFIDENCE, Agreement(), Recorded(ENTROPY_AFTER_THINKING))
    return [*_above(train, learn_signal(train, features))]


def _learned_from(train: TraceSet, risks: Sequence[str], signals: Sequence[Signal]) -> list[StoppingRule]:
    losses = [find_risk(risk, train).loss for risk in risks]
    signal = learn_boosted(train, signals, losses)
    return [*upper_threshold_rules(signal, risk_thresholds(train, signal, losses))]


def _cascade(train: TraceSet) -> list[StoppingRule]:
    """Rules that ask for the answer only where a gate opens, at several cadences."""
    signals: Sequence[Signal] = (CONFIDENCE, Recorded("geometric_confidence"), Ema(CONFIDENCE, 0.5), Agreement())
    gates = quantile_thresholds(train, ENTROPY_AFTER_THINKING, _NUM_GATES)
    plain = [rule for signal in signals for rule in _above(train, signal, _NUM_CASCADE_THRESHOLDS)]
    spaced: list[UpperThreshold | Spaced] = [Spaced(rule, every) for every, rule in product((64, 128), plain)]
    return [*plain, *(Gated(rule, gate) for gate, rule in product(gates, plain + spaced))]


def _end_cascade(train: TraceSet) -> list[StoppingRule]:
    """Rules that ask for the answer only where the thinking is about to end, or could end."""
    gates = quantile_thresholds(train, END_OF_THINKING, _NUM_CASCADE_THRESHOLDS)
    return [Gated(rule, at_least=gate) for gate in gates for rule in _above(train, CONFIDENCE, _NUM_CASCADE_THRESHOLDS)]


def _joint(train: TraceSet) -> list[StoppingRule]:
    """Rules that answer by the confidence, or give up where it stays below its median."""
    shifts = quantile_thresholds(train, TokensUsed(), 8)
    (median,) = quantile_thresholds(train, CONFIDENCE, 1)
    lowers = lower_threshold_rules(CONFIDENCE, shifts, slope_per_token=0.02, low=0.0, high=median)
    return [*joint_rules(upper_threshold_rules(CONFIDENCE, quantile_thresholds(train, CONFIDENCE, 20)), lowers)]


_HANDMADE: Mapping[str, Callable[[TraceSet], list[StoppingRule]]] = {
    "deer": _deer,
    "dynasor": _dynasor,
    "eat": _eat,
    "answer_convergence": _answer_convergence,
    "budget": _budget,
    "learned": _learned,
    "cascade": _cascade,
    "end_cascade": _end_cascade,
    "joint": _joint,
}
LEARNED: Mapping[str, Callable[[TraceSet, Sequence[str]], list[StoppingRule]]] = {
    "learned_looks": lambda train, risks: _learned_from(train, risks, LOOKED_AT),
    "learned_length": lambda train, risks: _learned_from(train, risks, (TokensUsed(),)),
}
"""Families of one learned signal. The second sees nothing of the thinking: what it saves, its length alone tells."""

FAMILIES = (*LEARNED, *_HANDMADE)
DEFAULT_FAMILY = "learned_looks"
