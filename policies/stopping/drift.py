"""Whether what was certified still holds in service: an alarm that may be looked at after every request."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar


@dataclass
class DriftMonitor:
    """Whether the risk of what is served has risen above alpha, watched problem by problem.

    The evidence is a mixture over when the risk rose and over how far. A rise at problem s has the weight
    1/2 (1 / (s (s + 1)) + 1 / horizon): the first part finds soon what was wrong from the start, and the second does
    not fade, so that a long good past delays no alarm. While the risk is at most alpha, whatever came before, the
    evidence grows by no more than these weights in expectation. So within the first `horizon` problems an alarm is
    false with probability at most delta, and on average at least horizon (2 / delta - 1) problems pass before one.

    Attributes:
        alpha: the limit, in (0, 1).
        delta: in (0, 1).
        horizon: problems.
        n: problems seen.
        sums: the evidence for each of `RISES`.
        alarm: whether the evidence ever reached 1 / delta.

    Source: Shin, Ramdas & Rinaldo (2022), arXiv 2203.03532, e-detectors; docs/adr/0015.
    """

    RISES: ClassVar = (1.1, 1.25, 1.5, 2.0, 4.0)  # to so many times alpha

    alpha: float
    delta: float
    horizon: int = 10_000
    n: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0 for _ in DriftMonitor.RISES])
    alarm: bool = False

    @property
    def evidence(self) -> float:
        """That the risk has risen, >= 0; at 1 / `delta` the alarm is raised."""
        return math.fsum(self.sums) / len(self.sums)

    @property
    def suspicion(self) -> float:
        """How far the evidence has come from delta^2, or less, to 1 / delta on a logarithmic scale; in [0, 1]."""
        if self.alarm:
            return 1.0
        return (2 - math.log(max(self.evidence, self.delta**2)) / math.log(self.delta)) / 3

    def add(self, loss: float) -> bool:
        """One more problem with its loss in [0, 1], in the order in which they came. Returns `alarm`."""
        self.n += 1
        weight = (1 / (self.n * (self.n + 1)) + 1 / self.horizon) / 2
        for index, bet in enumerate(self.bets):
            self.sums[index] = min((self.sums[index] + weight) * (1 + bet * (loss - self.alpha)), 1e300)
        self.alarm = self.alarm or self.evidence >= 1 / self.delta
        return self.alarm

    @cached_property
    def bets(self) -> list[float]:
        """What is put on a loss, for each of `RISES`: of what is best at that risk, which is below 1."""
        risks = [min(rise * self.alpha, (1 + self.alpha) / 2) for rise in self.RISES]
        return [(risk - self.alpha) / (self.alpha * (1 - self.alpha)) for risk in risks]
