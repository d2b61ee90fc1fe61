"""The signals of a trial as numbers, beside the other trials of its question. The one place that reads them.

A signal that a trial lacks is None, and counts as the mean of the calibration: neither for the trial nor against it.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from reasonrt.programs.trials import Trial

FEATURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "confidence": "mean of the natural logarithms of its confidences",
        "tail": "mean log-probability of its least certain tokens",
        "agreement": "mean probability of the sub-answers read as choices",
        "coverage": "share of the context that was read",
        "verified": "1 with evidence that was verified, else 0",
        "refuted": "log of 1 + refuted spans",
        "errors": "log of 1 + failed cells",
        "length": "log tokens, in standard deviations from the mean of its question's trials",
    }
)
"""The name of each, and what it is."""


def features_of(trials: Sequence[Trial]) -> list[tuple[float | None, ...]]:
    """One row for each of one question's trials, in the order of `FEATURES`; None where a trial lacks a signal."""
    return [(*own_features(trial), length) for trial, length in zip(trials, relative_lengths(trials), strict=True)]


def own_features(trial: Trial) -> tuple[float | None, ...]:
    """Those that do not depend on other trials: all but the last."""
    return (
        mean_log_confidence(trial),
        trial.logprob_tail,
        trial.agreement,
        trial.coverage,
        float(bool(trial.evidence)),
        math.log1p(trial.num_refuted),
        math.log1p(trial.num_errors),
    )


def relative_lengths(trials: Sequence[Trial]) -> list[float | None]:
    """The last feature of each of one question's trials; None of a trial without tokens, or without others."""
    known = [math.log(trial.num_tokens) for trial in trials if trial.num_tokens > 0]
    if len(known) < 2:
        return [None] * len(trials)
    mean = math.fsum(known) / len(known)
    deviation = math.sqrt(math.fsum((length - mean) ** 2 for length in known) / len(known))
    if deviation < 1e-9:
        return [0.0 if trial.num_tokens > 0 else None for trial in trials]
    return [(math.log(trial.num_tokens) - mean) / deviation if trial.num_tokens > 0 else None for trial in trials]


def mean_log_confidence(trial: Trial) -> float | None:
    """None without confidences. A mean, since a sum would count steps more than what was said of them."""
    if not trial.confidences:
        return None
    return math.fsum(map(math.log, trial.confidences)) / len(trial.confidences)
