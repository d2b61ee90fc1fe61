"""Families of stopping rules, each in the order in which it is tested: the most careful rule first.

Fixed-sequence testing ends at the first rule that fails, so the order decides how far a certificate reaches; it is
part of the family, and known before any data is seen.
"""

import itertools
from collections.abc import Iterable
from statistics import quantiles

from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.rules import Both, LowerThreshold, Spaced, StoppingRule, UpperThreshold
from reasonrt.policies.stopping.signals import (
    END_OF_THINKING,
    ENTROPY_AFTER_THINKING,
    Agreement,
    Recorded,
    Signal,
    Steadiness,
    TokensUsed,
)
from reasonrt.policies.stopping.traces import Trace

CONFIDENCE = Recorded("confidence")


def upper_threshold_rules(
    signal: str | Signal, thresholds: Iterable[float], *, after_tokens: int = 0
) -> list[UpperThreshold]:
    """Answer once `signal` is at least a threshold; the highest threshold first, each once.

    Args:
        signal: or the name of a recorded one.
        thresholds: finite, in the unit of the signal.
        after_tokens: no stop before this many tokens.
    """
    descending = sorted({float(threshold) for threshold in thresholds}, reverse=True)
    return [UpperThreshold(_signal(signal), threshold, after_tokens) for threshold in descending]


def lower_threshold_rules(
    signal: str | Signal,
    shifts_tokens: Iterable[float],
    *,
    slope_per_token: float,
    low: float,
    high: float,
    after_tokens: int = 0,
) -> list[LowerThreshold]:
    """Give up below a sigmoid in the tokens used (see `LowerThreshold`); the latest shift first, each once.

    Keep it to about twenty curves: over a large grid no correction leaves anything to certify.
    """
    descending = sorted({float(shift) for shift in shifts_tokens}, reverse=True)
    curve = (float(slope_per_token), float(low), float(high), after_tokens)
    return [LowerThreshold(_signal(signal), shift, *curve) for shift in descending]


def joint_rules(uppers: Iterable[UpperThreshold], lowers: Iterable[LowerThreshold]) -> list[Both]:
    """Every pair of the two families, by the sum of their relative places; `order_rules` finds a better order."""
    first, second = list(uppers), list(lowers)
    places = itertools.product(range(len(first)), range(len(second)))
    ordered = sorted(places, key=lambda place: place[0] / len(first) + place[1] / len(second))
    return [Both(first[i], second[j]) for i, j in ordered]


def budget_rules(budgets_tokens: Iterable[int]) -> list[UpperThreshold]:
    """Answer after a fixed number of tokens, whatever the signals say."""
    return upper_threshold_rules(TokensUsed(), budgets_tokens)


def deer_rules(thresholds: Iterable[float]) -> list[UpperThreshold]:
    """Answer once the answer comes with high confidence. Source: DEER, arXiv 2504.15895."""
    return upper_threshold_rules(CONFIDENCE, thresholds)


def dynasor_rules(counts: Iterable[int], every_tokens: int = 64) -> list[Spaced]:
    """Answer once the last k answers agree, probed every `every_tokens` tokens. Source: Dynasor, arXiv 2412.20993."""
    return [Spaced(rule, every_tokens) for rule in upper_threshold_rules(Agreement(), counts)]


def eat_rules(variances: Iterable[float], weight: float = 0.1, after: int = 40) -> list[UpperThreshold]:
    """Answer once the entropy after thinking has become steady. Source: EAT, arXiv 2509.26522.

    Args:
        variances: of the entropy, in nats squared.
        weight, after: as in `Steadiness`.
    """
    steadiness = Steadiness(Recorded(ENTROPY_AFTER_THINKING), weight, after)
    return upper_threshold_rules(steadiness, (1 - variance for variance in variances))


def answer_convergence_rules(counts: Iterable[int]) -> list[UpperThreshold]:
    """Answer once k answers in a row agree, at every checkpoint: the first strategy of arXiv 2506.02536."""
    return upper_threshold_rules(Agreement(), counts)


def boosted_end_rules(probabilities: Iterable[float]) -> list[UpperThreshold]:
    """Answer once the end of thinking, its logit raised, is likely enough: the second strategy of arXiv 2506.02536."""
    return upper_threshold_rules(END_OF_THINKING, probabilities)


def published_rules() -> dict[str, StoppingRule]:
    """Rules with the settings of their papers, which promise nothing. DEER and EAT look after every step.

    The third strategy of Answer Convergence is learned: an upper threshold on a `Logistic` signal.
    """
    return {"DEER": deer_rules([0.95])[0], "Dynasor": dynasor_rules([3])[0], "EAT": eat_rules([1e-3])[0]}


def quantile_thresholds(traces: Iterable[Trace], signal: str | Signal, num: int) -> list[float]:
    """At most `num` thresholds, each once, that split the values of `signal` at all checkpoints into equal parts.

    Take the training split for it: a grid made from the problems to certify on voids the certificate.

    Raises:
        CalibrationError: the signal was measured fewer than twice.
    """
    values = []
    for trace in traces:
        follow = _signal(signal).follow()
        values += [value for checkpoint in trace.checkpoints if (value := follow(checkpoint)) is not None]
    if len(values) < 2:
        raise CalibrationError(f"{signal} was measured {len(values)} times in these traces; record it, or take another")
    return sorted({*quantiles(values, n=num + 1, method="inclusive")} if num < len(values) else {*values})


def _signal(signal: str | Signal) -> Signal:
    return Recorded(signal) if isinstance(signal, str) else signal
