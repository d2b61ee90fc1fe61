"""What a model writes token by token in the place of a draft."""

from collections.abc import Callable

import numpy as np

from reasonrt.diffusion.decoding import Decoding
from reasonrt.diffusion.shape import ModelShape
from reasonrt.diffusion.strategies import Predictions
from reasonrt.diffusion.writers import Flags, Run, Settled, Task, Work
from reasonrt.types import FinishReason


class Verifier:
    """Reads a prompt and a draft causally, and hands over what the model itself would write.

    These are the tokens of the draft up to the first that the model would not write, and its own in place of that one;
    at a temperature, those that its request draws at each place (sample and match, see `kernels.speculative_verify`).
    For models with causal context, where the row of a committed token predicts the one after it.

    Args:
        task: its prompt is the prompt and the draft.
        decoding: read by `read_decoding`.
        num_drafted: how many tokens at the end are the draft, at least one.
        num_cached: so many tokens of prompt and draft are in the cache.
    """

    def __init__(self, task: Task, decoding: Decoding, num_drafted: int, num_cached: int = 0) -> None:
        self.decoding, self.ids = decoding, list(task.prompt)
        self._first = len(self.ids) - num_drafted
        self.num_cached = min(num_cached, self._first - 1)  # the row before the draft predicts its first token
        self._own: list[int] = []
        self._logprobs: list[float] = []

    @classmethod
    def of(cls, num_drafted: int) -> Callable[[Task, Decoding, ModelShape, int], "Verifier"]:
        """For `Job.make`."""
        return lambda task, decoding, shape, num_cached: cls(task, decoding, num_drafted, num_cached)

    def plan(self, most_context: int) -> Work:
        self._planned = min(len(self.ids) - 1, self.num_cached + most_context)
        rows = np.arange(self.num_cached, self._planned)
        run = Run(self.num_cached, np.array(self.ids)[rows], rows + 1, np.zeros(len(rows), np.bool_))
        heads = np.flatnonzero(rows >= self._first - 1)
        return Work([run], heads, rows[heads] + 1, self._first, 0, np.zeros(0, np.int64))

    def take(self, predictions: Predictions) -> Flags:
        self.num_cached = self._planned
        self._own += predictions.tokens.tolist()
        self._logprobs += predictions.logprobs.tolist()
        return np.zeros(len(predictions.tokens), np.bool_)

    def settled(self) -> Settled:
        """All at the end."""
        drafted = self.ids[self._first :]
        if len(self._own) < len(drafted):
            return Settled()
        differs = [own != token for own, token in zip(self._own, drafted, strict=True)]
        count = differs.index(True) + 1 if True in differs else len(drafted)
        return Settled(self._own[:count], self._logprobs[:count], FinishReason.STOP)
