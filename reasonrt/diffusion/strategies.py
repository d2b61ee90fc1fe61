"""Which predictions of a pass are committed: one function for each strategy.

Each gets what was predicted at the open positions of one block, in their order, and returns which of them to commit, at
least one. The rules of ties and comparisons are those of `decoding`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reasonrt.diffusion.decoding import Decoding


@dataclass(frozen=True, slots=True)
class Predictions:
    """What one pass predicts at the open positions of one block, each array [open positions].

    Attributes:
        tokens: drawn, or the most probable ones.
        confidences: their probabilities, unscaled.
        entropies: of the unscaled distributions, in nats.
        logprobs: of the tokens, unscaled.
    """

    tokens: NDArray[np.int64]
    confidences: NDArray[np.float64]
    entropies: NDArray[np.float64]
    logprobs: NDArray[np.float64]

    def __getitem__(self, index: slice | NDArray[np.intp]) -> "Predictions":
        return Predictions(self.tokens[index], self.confidences[index], self.entropies[index], self.logprobs[index])

    def certain_of_first(self) -> "Predictions":
        """The same, with the first one as sure as a prediction can be."""
        confidences, entropies = self.confidences.copy(), self.entropies.copy()
        confidences[0], entropies[0] = 1.0, 0.0
        return Predictions(self.tokens, confidences, entropies, self.logprobs)


def choose(predictions: Predictions, decoding: Decoding, passes_done: int) -> NDArray[np.bool_]:
    """Which open positions are committed after this pass.

    Args:
        predictions: at the open positions, at least one.
        decoding: the request's.
        passes_done: denoising passes of this block before this one.
    """
    confidences = predictions.confidences
    count = len(confidences)
    if decoding.strategy in ("sequential", "static"):
        quota = min(count, _quota(decoding, passes_done))
        if decoding.strategy == "sequential":
            return np.arange(count) < quota
        return _first(np.argsort(-confidences, kind="stable"), quota)
    if decoding.strategy == "entropy":
        order = np.argsort(predictions.entropies, kind="stable")
        sums = np.cumsum(predictions.entropies[order])
        return _first(order, max(1, int(np.count_nonzero(sums <= decoding.entropy_bound))))
    if decoding.strategy == "factor":
        order = np.argsort(-confidences, kind="stable")
        places = np.arange(1, count + 1)
        fitting = np.flatnonzero((places + 1) * (1 - confidences[order]) < decoding.factor)
        return _first(order, int(fitting[-1]) + 1 if len(fitting) else 1)
    chosen = confidences > decoding.threshold
    if not chosen.any():
        chosen[np.argmax(confidences)] = True
    return chosen


def _quota(decoding: Decoding, passes_done: int) -> int:
    """How many positions the next pass of a block commits, of those whose number is fixed."""
    each, more = divmod(decoding.block, decoding.passes or decoding.block)
    return each + (passes_done < more)


def _first(order: NDArray[np.intp], count: int) -> NDArray[np.bool_]:
    chosen = np.zeros(len(order), dtype=np.bool_)
    chosen[order[:count]] = True
    return chosen
