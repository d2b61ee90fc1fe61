"""Whether what was certified still holds in service: an alarm that may be looked at after every request."""

import math


class DriftMonitor:
    """Whether the risk of what is served has risen above alpha, watched problem by problem.

    While the risk stays at most alpha, whatever came before, the alarm is ever raised with probability at most delta.
    The evidence is a mixture over when the risk rose, at time s with weight 1 / (s (s + 1)), and over how far; so a
    long good past delays an alarm by the logarithm of its length alone.

    Attributes:
        evidence: 1 at the start; its expectation is at most 1 at every time while the risk is at most alpha.
        alarm: whether `evidence` ever reached 1 / delta.

    Source: Shin, Ramdas & Rinaldo (2022), arXiv 2203.03532, e-detectors; weighted to an e-process, so that Ville's
    inequality (1939) holds.
    """

    RISES = (1.1, 1.25, 1.5, 2.0, 4.0)  # to so many times alpha

    def __init__(self, alpha: float, delta: float) -> None:
        self.alpha, self.delta = alpha, delta
        self.evidence, self.alarm, self.n = 1.0, False, 0
        self._alternatives = [min(rise * alpha, (1 + alpha) / 2) for rise in self.RISES]
        self._sums = [0.0 for _ in self.RISES]

    def add(self, loss: float) -> bool:
        """One more problem with its loss in [0, 1], in the order in which they came. Returns `alarm`."""
        self.n += 1
        weight = 1 / (self.n * (self.n + 1))
        for index, risk in enumerate(self._alternatives):
            bet = (risk - self.alpha) / (self.alpha * (1 - self.alpha))
            self._sums[index] = min((self._sums[index] + weight) * (1 + bet * (loss - self.alpha)), 1e300)
        self.evidence = math.fsum(self._sums) / len(self._sums) + 1 / (self.n + 1)
        self.alarm = self.alarm or self.evidence >= 1 / self.delta
        return self.alarm
