"""What one candidate program came to, and the signals by which its answer is believed or not."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How a candidate ended. Only `FINAL` gives an answer that it meant to give."""

    FINAL = "final"  # it called `final`, in a cell that ran to its end
    FORCED = "forced"  # out of turns: the model was asked for its best answer
    FAILED = "failed"  # no cell ran, or no answer came
    BUDGET = "budget"  # a limit on turns, tokens or sub-calls
    DEADLINE = "deadline"
    CANCELLED = "cancelled"  # its answer could no longer change the choice


@dataclass(frozen=True, slots=True)
class Evidence:
    """A span of the context that an answer rests on; the host has checked that the text stands there.

    Attributes:
        document: index.
        start, end: characters, end exclusive.
    """

    document: int
    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate.

    Attributes:
        index: 0 to K - 1; equals candidates that were started earlier first.
        answer: None where there is none.
        confidences: what the model says of each step, by a constrained read, in (0, 1]; empty where it was not asked.
        num_tokens: that the model wrote, thinking included (Len of SRLM).
        logprob_tail: mean log-probability of the least certain tenth of its tokens; None without log-probabilities.
        agreement: mean probability of the sub-answers that were read as choices, in [0, 1]; None without any.
        coverage: share of the context's characters that it or its sub-calls have read, in [0, 1].
        evidence: spans that were verified.
        num_refuted: spans that it claimed and that do not say what it claimed.
        num_errors: cells that did not end well.
        num_turns, num_sub_calls: what it took.
        num_sub_tokens: of the answers to its sub-questions, those included that another candidate had asked for.
    """

    index: int
    status: Status
    answer: str | None = None
    confidences: tuple[float, ...] = ()
    num_tokens: int = 0
    logprob_tail: float | None = None
    agreement: float | None = None
    coverage: float = 0.0
    evidence: tuple[Evidence, ...] = ()
    num_refuted: int = 0
    num_errors: int = 0
    num_turns: int = 0
    num_sub_calls: int = 0
    num_sub_tokens: int = 0
