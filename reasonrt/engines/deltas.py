"""Which tokens of a generation are given as one delta, where `Sampling.by_step` lets an engine choose."""

from collections.abc import Sequence
from typing import Final

from reasonrt.boundaries import Ends, boundaries_of
from reasonrt.types import Tokenizer

MOST_HELD: Final = 32
"""Tokens: what is longer than that is given without the end of a step. A pace is measured by it, and a step that has
become too long is seen no later."""

_LEAD = 4  # tokens of a prompt: a line's end, and the spaces after it


class Deltas:
    """Tells for each pass of one generation whether a delta is due, of all that has come since the last one.

    The first one is due immediately.

    Args:
        prompt_token_ids: what the generation continues; a step may end with its first token.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int]) -> None:
        boundaries = boundaries_of(tokenizer)
        self._ends, self._has_sentences = Ends(boundaries), bool(boundaries.opens_word)
        for token_id in prompt_token_ids[-_LEAD:]:
            self._ends.after(token_id)
        self._num_held, self._most = 0, 1

    def is_due(self, token_ids: Sequence[int]) -> bool:
        """Take in what a pass has brought."""
        self._num_held += len(token_ids)
        is_due = self._num_held >= self._most
        for token_id in token_ids:
            if self._has_sentences and self._ends.before(token_id):
                is_due = True
            if self._ends.after(token_id):
                is_due = True
        if not is_due:
            return False
        self._num_held, self._most = 0, MOST_HELD
        return True
