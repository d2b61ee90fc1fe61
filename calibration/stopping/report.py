"""Plots of a certificate: what it was certified on, how far its confidence can be trusted, and one trace under it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reasonrt.calibration.stopping.bounds import anytime_upper_bound, binomial_upper_bound
from reasonrt.calibration.stopping.trials import Limit, count, try_rules
from reasonrt.plots import COLOURS, label, picture
from reasonrt.policies.stopping.certificate import Certificate
from reasonrt.policies.stopping.replay import replay
from reasonrt.policies.stopping.rules import StoppingRule, UpperThreshold
from reasonrt.policies.stopping.traces import TraceSet

_BINS = 10
_SAVING, _RISK, _CERTIFIED = COLOURS[:3]


def plot_stopping(certificate: Certificate, traces: TraceSet, file: Path, signal: str = "confidence") -> None:
    """Draw three panels into a PNG file: the order of the rules, the reliability of a signal, and one trace.

    Args:
        traces: those that were certified on.
        signal: a recorded one, for the second and third panel.
    """
    with picture(file, 3, width=5.6) as (left, middle, right):
        _plot_order(left, certificate, traces)
        _plot_reliability(middle, traces, signal)
        _plot_trace(right, certificate.rule, traces, signal)


def thresholds_of(rules: Sequence[StoppingRule]) -> list[float] | None:
    """The thresholds of rules that are upper thresholds on one signal; None for any other family."""
    signals = {rule.signal if isinstance(rule, UpperThreshold) else None for rule in rules}
    known = [rule.threshold for rule in rules if isinstance(rule, UpperThreshold)]
    return known if len(signals) == 1 and len(known) == len(rules) else None


def _plot_order(axes: Any, certificate: Certificate, traces: TraceSet) -> None:
    """Risk and saving of every rule of the order; the certified ones are shaded."""
    finding = certificate.findings[0]
    trials = try_rules(traces, certificate.order, [Limit(finding.risk, finding.alpha)])
    counts = [count(trial.losses[0]) for trial in trials]
    full = sum(trace.full_tokens for trace in traces)
    thresholds = thresholds_of(certificate.order)
    places = thresholds or list(range(1, len(trials) + 1))
    risks, savings = [k / max(1, n) for k, n in counts], [1 - sum(t.net_tokens) / full for t in trials]
    level, upper_bound = certificate.tested_at, anytime_upper_bound if certificate.growing else binomial_upper_bound
    bounds = [upper_bound(k, n, level) for k, n in counts]
    known = places[: certificate.num_certified]
    chosen = certificate.order.index(certificate.rule)
    if thresholds:
        axes.invert_xaxis()  # the most careful rule on the left, as in the order
    axes.axvspan(min(known), max(known), color=_CERTIFIED, alpha=0.12, lw=0)
    axes.plot(places, risks, "o-", ms=3, color=_RISK)
    axes.fill_between(places, risks, bounds, color=_RISK, alpha=0.15, lw=0)
    axes.plot(places, savings, "s-", ms=3, color=_SAVING)
    axes.axhline(finding.alpha, color="0.4", lw=1, ls="--")
    axes.axvline(places[chosen], color=_CERTIFIED, lw=1.5)
    signal = certificate.rule.signal if isinstance(certificate.rule, UpperThreshold) else None
    axes.set(xlabel=f"threshold on {signal}" if thresholds else "place in the order of testing", ylabel="share")
    axes.set_title(
        f"{certificate.num_certified} of {len(trials)} rules are certified (shaded), n = {finding.n};\n"
        f"the chosen one saves {certificate.saving.net:.0%} with {finding.risk} below {finding.alpha:g}",
        loc="left",
    )
    last = places[-1]
    words = [
        (last, risks[-1], f"{finding.risk}, up to its bound at {1 - level:.3g}", _RISK),
        (last, savings[-1], "tokens saved, net", _SAVING),
        (last, finding.alpha, f"alpha = {finding.alpha:g}", "0.4"),
    ]
    label(axes, words)


def _plot_reliability(axes: Any, traces: TraceSet, signal: str) -> None:
    """How often the answer so far is the one that counts, by the size of the signal."""
    points = [
        (checkpoint.signals[signal], trace.is_good(index))
        for trace in traces
        for index, checkpoint in enumerate(trace.checkpoints)
        if signal in checkpoint.signals
    ]
    points.sort(key=lambda point: point[0])
    bins = [part for part in np.array_split(np.array(points, dtype=float), _BINS) if len(part)]
    places = [(part[:, 0].mean(), part[:, 1].mean()) for part in bins]
    spread = [1.96 * part[:, 1].std() / len(part) ** 0.5 for part in bins]
    axes.plot([0, 1], [0, 1], ":", color="0.4", lw=1)
    axes.errorbar(*zip(*places, strict=True), spread, fmt="o-", color=_SAVING, ms=4, capsize=2, lw=1)
    axes.set(xlabel=f"{signal}, tenths of the checkpoints", ylabel="share whose answer so far is right (95 %)")
    axes.set_title(
        f"What {signal} says of the answer so far\n{len(points)} checkpoints; dotted: what it claims", loc="left"
    )


def _plot_trace(axes: Any, rule: StoppingRule, traces: TraceSet, signal: str) -> None:
    """The first trace with most checkpoints that the rule stops; green where the answer so far is the right one."""
    stopped = [(trace, stop) for trace in traces if (stop := replay(rule, trace).index) is not None]
    trace, stop = max(stopped, key=lambda pair: len(pair[0].checkpoints))
    known = [(index, point) for index, point in enumerate(trace.checkpoints) if signal in point.signals]
    axes.plot([point.tokens for _, point in known], [point.signals[signal] for _, point in known], color="0.7", lw=1)
    last: str | None = ""
    for index, point in known:
        place = point.tokens, point.signals[signal]
        colour = _SAVING if trace.is_good(index) else _RISK
        axes.plot(*place, "o", color=colour)
        if point.answer != last:
            style = {"textcoords": "offset points", "ha": "center", "fontsize": 7, "color": colour}
            axes.annotate(_short(point.answer), place, (0, 6), **style)
        last = point.answer
    at = trace.checkpoints[stop].tokens
    axes.axvline(at, color=_CERTIFIED, lw=1.5)
    axes.axvline(trace.full_tokens, color="0.4", lw=1, ls="--")
    axes.set(xlabel="tokens; dashed: where the thinking ended by itself", ylabel=signal)
    axes.set_title(
        f"{trace.problem_id}: stopped after {at} of {trace.full_tokens} tokens\nanswers so far, blue where right",
        loc="left",
    )


def _short(answer: str | None) -> str:
    text = answer or "none"
    return text if len(text) <= 12 else text[:11] + "…"
