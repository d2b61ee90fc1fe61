"""One spelling for answers that are the same, so that calibration can compare spellings.

Whether two answers are the same, 1/2 and 0.5 for example, is a question of mathematics that is asked once: when an
answer arrives. Live serving asks it answer by answer, recording trace by trace, both through `Spelling`.
"""

from collections.abc import Callable
from dataclasses import replace

from reasonrt.policies.stopping.traces import Trace

Same = Callable[[str, str], bool]


class Spelling:
    """The answers of one trace, each spelled as the first of those that are the same."""

    def __init__(self, same: Same) -> None:
        self._same = same
        self._known: list[str] = []

    def of(self, answer: str | None) -> str | None:
        """None for a blank answer."""
        if answer is None or not answer.strip():
            return None
        for known in self._known:
            if self._same(answer, known):
                return known
        self._known.append(answer)
        return answer


def unify_answers(trace: Trace, same: Same) -> Trace:
    """The same trace with one spelling for answers that are the same.

    Checkpoints come first, in their order: live serving knows no more than them when it decides.
    """
    spelling = Spelling(same)
    checkpoints = [replace(checkpoint, answer=spelling.of(checkpoint.answer)) for checkpoint in trace.checkpoints]
    return replace(
        trace, checkpoints=checkpoints, full_answer=spelling.of(trace.full_answer), gold=spelling.of(trace.gold)
    )
