"""Plots of a certificate: what it was certified on, how far its confidence can be trusted, and one trace under it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reasonrt.calibration.stopping.bounds import anytime_upper_bound, binomial_upper_bound
from reasonrt.calibration.stopping.trials import Limit, count, try_rules
from reasonrt.files import write_figure
from reasonrt.policies.stopping.certificate import Certificate
from reasonrt.policies.stopping.replay import replay
from reasonrt.policies.stopping.rules import StoppingRule, UpperThreshold
from reasonrt.policies.stopping.traces import TraceSet

_BINS = 10


def plot_stopping(certificate: Certificate, traces: TraceSet, file: Path, signal: str = "confidence") -> None:
    """Draw three panels into a PNG file: the order of the rules, the reliability of a signal, and one trace.

    Args:
        traces: those that were certified on.
        signal: a recorded one, for the second and third panel.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.2), dpi=140)
    _plot_order(left, certificate, traces)
    _plot_reliability(middle, traces, signal)
    _plot_trace(right, certificate.rule, traces, signal)
    figure.tight_layout()
    write_figure(file, figure)
    plt.close(figure)


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
    axes.plot(
        places, [k / max(1, n) for k, n in counts], "o-", ms=3, color="#D55E00", label=f"{finding.risk}, observed"
    )
    level, upper_bound = certificate.tested_at, anytime_upper_bound if certificate.growing else binomial_upper_bound
    bounds = [upper_bound(k, n, level) for k, n in counts]
    axes.plot(places, bounds, ":", color="#D55E00", label=f"its bound at {1 - level:.3g}, each by itself")
    axes.plot(places, [1 - sum(t.net_tokens) / full for t in trials], "s-", ms=3, color="#0072B2", label="net saving")
    axes.axhline(finding.alpha, color="0.4", lw=1, ls="--", label=f"alpha = {finding.alpha:g}")
    known = places[: certificate.num_certified]
    axes.axvspan(min(known), max(known), color="#009E73", alpha=0.15, label="certified")
    axes.axvline(places[certificate.order.index(certificate.rule)], color="#009E73", lw=1.5, label="chosen")
    if thresholds:
        axes.invert_xaxis()  # the most careful rule on the left, as in the order
    axes.set(xlabel="threshold" if thresholds else "place in the order of testing", ylabel="share")
    axes.set_title(f"{certificate.num_certified} of {len(trials)} rules certified, n = {finding.n}", loc="left")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.25)


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
    axes.plot([0, 1], [0, 1], "k:", lw=1)
    axes.plot([part[:, 0].mean() for part in bins], [part[:, 1].mean() for part in bins], "o-", color="#0072B2")
    axes.set(xlabel=f"{signal}, tenths of checkpoints", ylabel="share whose answer is right")
    axes.set_title(f"reliability at {len(points)} checkpoints", loc="left")
    axes.grid(alpha=0.25)


def _plot_trace(axes: Any, rule: StoppingRule, traces: TraceSet, signal: str) -> None:
    """The first trace with most checkpoints that the rule stops; green where the answer so far is the right one."""
    stopped = [(trace, stop) for trace in traces if (stop := replay(rule, trace).index) is not None]
    trace, stop = max(stopped, key=lambda pair: len(pair[0].checkpoints))
    known = [(index, point) for index, point in enumerate(trace.checkpoints) if signal in point.signals]
    axes.plot([point.tokens for _, point in known], [point.signals[signal] for _, point in known], color="0.7", lw=1)
    last: str | None = ""
    for index, point in known:
        place = point.tokens, point.signals[signal]
        colour = "#009E73" if trace.is_good(index) else "#D55E00"
        axes.plot(*place, "o", color=colour)
        if point.answer != last:
            style = {"textcoords": "offset points", "ha": "center", "fontsize": 7, "color": colour}
            axes.annotate(_short(point.answer), place, (0, 6), **style)
        last = point.answer
    axes.axvline(trace.checkpoints[stop].tokens, color="#009E73", lw=1.5, label="stopped here")
    axes.axvline(trace.full_tokens, color="0.4", lw=1, ls="--", label="thought to here")
    axes.set(xlabel="tokens", ylabel=signal)
    axes.set_title(f"problem {trace.problem_id}; answers so far", loc="left")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.25)


def _short(answer: str | None) -> str:
    text = answer or "none"
    return text if len(text) <= 12 else text[:11] + "…"
