"""How good a router is, on steps whose advantage is known."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reasonrt.plots import COLOURS, label, picture

RATES = (0.1, 0.2, 0.3)
BINS = 10
BOOTSTRAPS = 500
Array = NDArray[np.float64]


def router_report(predicted: Array, advantage: Array, problems: NDArray[np.int64], seed: int = 0) -> dict[str, Any]:
    """What a router's predictions are worth.

    Args:
        predicted: advantages, float64 `[pairs]`.
        advantage: measured ones, `[pairs]`.
        problems: which problem each pair belongs to; intervals are drawn over problems.

    Returns:
        `spearman` with a 95 % interval (bootstrap over problems), `auc` for a positive advantage, `captured` at each
        of `RATES`: the share of the oracle's gain at the same rate (in its noisy measurement: what the oracle picks
        is partly luck, so the shares are on the low side), and `calibration`: mean prediction and mean advantage in
        bins of equal size.
    """
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(problems == problem) for problem in np.unique(problems)]
    draws = []
    for _ in range(BOOTSTRAPS):
        drawn = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        draws.append(spearmanr(predicted[drawn], advantage[drawn]).statistic)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    bins = np.array_split(np.argsort(predicted), BINS)
    return {
        "pairs": len(advantage),
        "problems": len(members),
        "positive_share": float(np.mean(advantage > 0)),
        "mean_advantage": float(np.mean(advantage)),
        "spearman": float(spearmanr(predicted, advantage).statistic),
        "spearman_low": float(low),
        "spearman_high": float(high),
        "auc": float(roc_auc_score(advantage > 0, predicted)),
        "captured": {str(rate): captured(predicted, advantage, rate) for rate in RATES},
        "calibration": [[float(predicted[b].mean()), float(advantage[b].mean())] for b in bins if len(b)],
    }


def captured(predicted: Array, advantage: Array, rate: float) -> float:
    """The gain of escalating the highest `rate` of predictions, as a share of what the oracle gains at that rate."""
    num = max(1, round(rate * len(advantage)))
    best = np.sort(advantage)[::-1][:num]
    oracle = float(np.maximum(best, 0).sum())
    return float(advantage[np.argsort(-predicted, kind="stable")[:num]].sum()) / oracle if oracle else 0.0


def plot_routers(predictions: dict[str, Array], advantage: Array, file: Path) -> None:
    """Gain against escalation rate for each router, the oracle and chance; and calibration curves."""
    with picture(file, 2) as (left, right):
        rates = np.arange(1, len(advantage) + 1) / len(advantage)
        best = np.cumsum(np.maximum(np.sort(advantage)[::-1], 0)) / len(advantage)
        left.plot(rates, best, ":", color="0.4")
        left.plot([0, 1], [0, advantage.mean()], color="0.6", lw=1)
        third = len(rates) // 3
        found = [(rates[third], best[third], "who knows every step", "0.4"), (1.0, advantage.mean(), "chance", "0.5")]
        told = []
        for (name, predicted), colour in zip(predictions.items(), COLOURS, strict=False):
            order = np.argsort(-predicted, kind="stable")
            gained = np.cumsum(advantage[order]) / len(advantage)
            left.plot(rates, gained, color=colour)
            found.append((rates[third], gained[third], name, colour))
            bins = np.array_split(order, BINS)
            places = [(predicted[b].mean(), advantage[b].mean()) for b in bins]
            spread = [1.96 * advantage[b].std() / max(1, len(b)) ** 0.5 for b in bins]
            right.errorbar(*zip(*places, strict=True), spread, fmt="o-", color=colour, ms=4, lw=1, capsize=2)
            told.append((*places[0], name, colour))
        left.set(xlabel="share of steps that the target is asked about", ylabel="gain in right ends, per step")
        left.set_title("How much of what can be gained a router finds", loc="left")
        limit = max(1e-3, float(np.quantile(advantage, 0.99)))
        right.plot([0, limit], [0, limit], ":", color="0.4")
        right.set(xlabel="gain that it predicts, tenths of the steps", ylabel="gain that was measured (95 %)")
        right.set_title("Whether its predictions are true: on the dotted line they are", loc="left")
        label(left, found)
        label(right, told)
