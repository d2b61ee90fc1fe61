"""What a block looks like while it fills up, pass by pass."""

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from reasonrt.kernels.online import RowStats

Pass = tuple[tuple[int, int, float], ...]
"""As in `TokenDelta.passes`."""

Watch = Callable[[NDArray[np.int64], RowStats, Tensor], None]


class Canvas:
    """For `Job.watch`: what is expected at each masked place. Passes are added by one thread and taken by another.

    Args:
        prompt_tokens: places are counted after them.
        beside: another one that watches the same job.
    """

    def __init__(self, prompt_tokens: int, beside: Watch | None = None) -> None:
        self._prompt_tokens, self._beside = prompt_tokens, beside
        self._passes: deque[Pass] = deque()

    def __call__(self, targets: NDArray[np.int64], stats: RowStats, logits: Tensor) -> None:
        if self._beside is not None:
            self._beside(targets, stats, logits)
        places = (targets - self._prompt_tokens).tolist()
        self._passes.append(tuple(zip(places, stats.argmax.tolist(), stats.max_prob.tolist(), strict=True)))

    def take(self) -> tuple[Pass, ...]:
        """The passes since the last call."""
        return tuple([self._passes.popleft() for _ in range(len(self._passes))])
