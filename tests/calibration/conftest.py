"""Traces in a few words, and what a Monte-Carlo test needs."""

from collections.abc import Callable, Sequence

import pytest

from reasonrt.calibration.bounds import binomial_lower_bound
from reasonrt.calibration.traces import Checkpoint, Trace


@pytest.fixture
def make_trace() -> Callable[..., Trace]:
    """A trace from (answer, signal) pairs, one for every 100 tokens; its signal is called `sure`."""

    def make(
        problem_id: str,
        points: Sequence[tuple[str | None, float]],
        full_answer: str | None = "right",
        gold: str | None = "right",
        *,
        probe_tokens: int = 0,
        group: str = "",
    ) -> Trace:
        checkpoints = [
            Checkpoint(100 * (index + 1), answer, {"sure": sure}, probe_tokens)
            for index, (answer, sure) in enumerate(points)
        ]
        return Trace(problem_id, checkpoints, 100 * (len(points) + 1), full_answer, gold, group)

    return make


@pytest.fixture
def exceeds() -> Callable[[int, int, float], bool]:
    """Whether `failures` among `draws` show a probability above `delta`: its 99 % Clopper-Pearson lower bound is."""
    return lambda failures, draws, delta: binomial_lower_bound(failures, draws, 0.01) > delta
