"""What routers learn from, as it was recorded: both models' next step after the same history, and its value."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from reasonrt.transcript import Transcript
from reasonrt.types import Message, Step

DRAFT, TARGET = "draft", "target"


@dataclass(frozen=True, slots=True)
class StepPair:
    """Both models' next step after the same history.

    Attributes:
        draft, target: the texts; empty where a model ended instead.
        draft_tokens, target_tokens: their lengths.
        logprobs, top_logprobs: of the draft's tokens, as in `Step`.
        draft_value, target_value: share of the target's completions after each step that end right, in [0, 1].
        taken: who wrote the step that the history continues with.
    """

    draft: str
    target: str
    draft_tokens: int
    target_tokens: int
    logprobs: list[float]
    top_logprobs: list[list[float]]
    draft_value: float
    target_value: float
    taken: str

    @property
    def drafted(self) -> Step:
        tops = tuple(tuple(top) for top in self.top_logprobs)
        return Step(self.draft, (0,) * self.draft_tokens, DRAFT, True, tuple(self.logprobs), tops)

    @property
    def targeted(self) -> Step:
        return Step(self.target, (0,) * self.target_tokens, TARGET)

    @property
    def advantage(self) -> float:
        """The advantage of the target's step over the draft's, in [-1, 1]."""
        return self.target_value - self.draft_value


@dataclass(frozen=True, slots=True)
class RecordedProblem:
    """One problem's pairs in order; each pair's history is what was taken before it."""

    problem: str
    question: str
    group: str
    pairs: list[dict[str, Any]] = field(default_factory=list)

    def situations(self) -> Iterator[tuple[Transcript, StepPair]]:
        """Each pair with what had been committed before it; the transcript is one object that grows.

        Token ids are not recorded: the steps hold as many zeros.
        """
        transcript = Transcript((Message("user", self.question),))
        for pair in (StepPair(**pair) for pair in self.pairs):
            yield transcript, pair
            transcript.commit(pair.drafted if pair.taken == DRAFT else pair.targeted)
