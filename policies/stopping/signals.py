"""What speaks for or against stopping: numbers read off a trace as it grows.

First come the measurements that a probe makes and a checkpoint records. Then the signals, which rules look at: each
describes how to fold the checkpoints of one trace, as they come, into a number. `follow` starts on a new trace; live
serving and replay both call it, so that they cannot differ.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field

from reasonrt.answers import is_answer, same_answer
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.traces import Checkpoint
from reasonrt.trees import Trees

ANSWER = "answer"
ENTROPY_AFTER_THINKING = "entropy_after_thinking"
END_OF_THINKING = "end_of_thinking"
LOOKS = frozenset({ENTROPY_AFTER_THINKING, END_OF_THINKING})
"""The recorded signals that one token tells, each its own. The others come with an answer."""

Follow = Callable[[Checkpoint], float | None]
"""To be called with each checkpoint once, in order; None where the signal is not known (a rule then continues)."""


def arithmetic_confidence(logprobs: Sequence[float]) -> float:
    """Mean probability of the answer's tokens; 0 for no tokens: nothing was said to be sure of.

    Args:
        logprobs: natural logarithms, of the tokens of the answer alone.

    Source: DEER, Yang et al. (2025), arXiv 2504.15895.
    """
    return math.fsum(map(math.exp, logprobs)) / len(logprobs) if logprobs else 0.0


def geometric_confidence(logprobs: Sequence[float]) -> float:
    """Geometric mean of the probabilities of the answer's tokens; otherwise as `arithmetic_confidence`."""
    return math.exp(math.fsum(logprobs) / len(logprobs)) if logprobs else 0.0


def entropy(top_logprobs: Sequence[float]) -> float:
    """Of the next token, in nats, >= 0; what the given probabilities leave over counts as one more token.

    After the end of thinking it is the "entropy after thinking": Wang et al. (2025), arXiv 2509.26522, where it is
    taken over the whole vocabulary. An engine gives the highest probabilities only, and this is never more than that.
    """
    probabilities = [math.exp(logprob) for logprob in top_logprobs]
    rest = max(0.0, 1 - math.fsum(probabilities))
    return -math.fsum(p * math.log(p) for p in (*probabilities, rest) if p > 0)


def boosted_probability(logprob: float, boost: float) -> float:
    """Of a token whose logit is raised by `boost`; for the end of thinking, the second strategy of Answer Convergence.

    Source: Liu & Wang (2025), arXiv 2506.02536.
    """
    probability = math.exp(min(0.0, logprob))
    raised = probability * math.exp(boost)
    return raised / (raised + 1 - probability)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A signal as the checkpoints hold it."""

    name: str
    kind: Literal["recorded"] = field(default="recorded", repr=False)

    @property
    def reads(self) -> frozenset[str]:
        """The recorded signals that it needs, and `ANSWER` if it needs the answers."""
        return frozenset({self.name})

    def follow(self) -> Follow:
        return lambda checkpoint: checkpoint.signals.get(self.name)


@dataclass(frozen=True, slots=True)
class TokensUsed:
    """Tokens generated so far. It needs no probe."""

    kind: Literal["tokens_used"] = field(default="tokens_used", repr=False)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def follow(self) -> Follow:
        return lambda checkpoint: float(checkpoint.tokens)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many answers in a row, the last one included, are the same; 0 while there is none.

    Source: Dynasor, Fu et al. (2024), arXiv 2412.20993; Answer Convergence, Liu & Wang (2025), arXiv 2506.02536.
    """

    kind: Literal["agreement"] = field(default="agreement", repr=False)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({ANSWER})

    def follow(self) -> Follow:
        last: str | None = None
        run = 0

        def value(checkpoint: Checkpoint) -> float:
            nonlocal last, run
            answer = checkpoint.answer
            run = run + 1 if same_answer(answer, last) else int(is_answer(answer))
            last = answer
            return float(run)

        return value


@dataclass(frozen=True, slots=True)
class Ema:
    """Exponential moving average of another signal, beginning with its first value.

    Attributes:
        weight: of the newest value, in (0, 1].
    """

    of: "Signal"
    weight: float
    kind: Literal["ema"] = field(default="ema", repr=False)

    @property
    def reads(self) -> frozenset[str]:
        return self.of.reads

    def follow(self) -> Follow:
        value_of = self.of.follow()
        mean: float | None = None

        def value(checkpoint: Checkpoint) -> float | None:
            nonlocal mean
            new = value_of(checkpoint)
            if new is not None:
                mean = new if mean is None else mean + self.weight * (new - mean)
            return mean if new is not None else None

        return value


@dataclass(frozen=True, slots=True)
class Steadiness:
    """One minus the exponential moving variance of another signal.

    With mean m (an `Ema`) and v <- (1 - weight) v + weight (x - m)^2 from v = 0, divided by 1 - (1 - weight)^t.

    Attributes:
        weight: of the newest value, in (0, 1].
        after: values to wait for; EAT waits for 4 / weight.

    Source: EAT, Wang et al. (2025), arXiv 2509.26522; the division as in Conformal Thinking, arXiv 2602.03814.
    """

    of: "Signal"
    weight: float = 0.1
    after: int = 0
    kind: Literal["steadiness"] = field(default="steadiness", repr=False)

    @property
    def reads(self) -> frozenset[str]:
        return self.of.reads

    def follow(self) -> Follow:
        value_of, mean_of = self.of.follow(), Ema(self.of, self.weight).follow()
        variance, old = 0.0, 1.0  # old: the share of the variance that still stands for no value at all
        count = 0

        def value(checkpoint: Checkpoint) -> float | None:
            nonlocal variance, old, count
            new, mean = value_of(checkpoint), mean_of(checkpoint)
            if new is None or mean is None:
                return None
            variance += self.weight * ((new - mean) ** 2 - variance)
            old *= 1 - self.weight
            count += 1
            return 1 - variance / (1 - old) if count > self.after else None

        return value


@dataclass(frozen=True, slots=True)
class Change:
    """How much another signal has changed since it was last known; 0 for its first value."""

    of: "Signal"
    kind: Literal["change"] = field(default="change", repr=False)

    @property
    def reads(self) -> frozenset[str]:
        return self.of.reads

    def follow(self) -> Follow:
        value_of = self.of.follow()
        last: float | None = None

        def value(checkpoint: Checkpoint) -> float | None:
            nonlocal last
            new = value_of(checkpoint)
            if new is None:
                return None
            change, last = 0.0 if last is None else new - last, new
            return change

        return value


@dataclass(frozen=True, slots=True)
class Highest:
    """The highest value of another signal so far."""

    of: "Signal"
    kind: Literal["highest"] = field(default="highest", repr=False)

    @property
    def reads(self) -> frozenset[str]:
        return self.of.reads

    def follow(self) -> Follow:
        value_of = self.of.follow()
        highest = -math.inf

        def value(checkpoint: Checkpoint) -> float | None:
            nonlocal highest
            new = value_of(checkpoint)
            if new is None:
                return None
            highest = max(highest, new)
            return highest

        return value


@dataclass(frozen=True, slots=True)
class Logistic:
    """Probability from a logistic regression on other signals; `reasonrt.calibration.stopping.learned_signal` fits it.

    Attributes:
        of: the other signals.
        weights: one for each of them, in its unit.
    """

    of: "tuple[Signal, ...]"
    weights: tuple[float, ...]
    bias: float
    kind: Literal["logistic"] = field(default="logistic", repr=False)

    @property
    def reads(self) -> frozenset[str]:
        return _reads_of_all(self.of)

    def follow(self) -> Follow:
        def score(known: Sequence[float]) -> float:
            return self.bias + math.fsum(weight * x for weight, x in zip(self.weights, known, strict=True))

        return _probability(self.of, score)


@dataclass(frozen=True, slots=True)
class Boosted:
    """Probability from boosted trees on other signals; `reasonrt.calibration.stopping.learned_signal` grows them.

    Attributes:
        of: the other signals.
        trees: from their values to log-odds.

    Raises:
        CalibrationError: a tree reads a signal that is not there.
    """

    of: "tuple[Signal, ...]"
    trees: Trees
    kind: Literal["boosted"] = field(default="boosted", repr=False)

    def __post_init__(self) -> None:
        if self.trees.num_features > len(self.of):
            raise CalibrationError(
                f"a tree reads signal {self.trees.num_features} of {len(self.of)}; certify again, or mend the rule"
            )

    @property
    def reads(self) -> frozenset[str]:
        return _reads_of_all(self.of)

    def follow(self) -> Follow:
        return _probability(self.of, lambda known: _log_odds(self.trees, tuple(known)))


Signal = Annotated[
    Recorded | TokensUsed | Agreement | Ema | Steadiness | Change | Highest | Logistic | Boosted,
    Field(discriminator="kind"),
]


@lru_cache(maxsize=1 << 16)  # of the many rules of one family, one is asked what the others were
def _log_odds(trees: Trees, known: tuple[float, ...]) -> float:
    return trees(known)


def _reads_of_all(signals: "Sequence[Signal]") -> frozenset[str]:
    return frozenset().union(*(signal.reads for signal in signals))


def _probability(signals: "Sequence[Signal]", score: Callable[[Sequence[float]], float]) -> Follow:
    """The logistic function of a score of the values of signals; not known where one of them is not."""
    follows = [signal.follow() for signal in signals]

    def value(checkpoint: Checkpoint) -> float | None:
        values = [follow(checkpoint) for follow in follows]
        known = [value for value in values if value is not None]
        return 0.5 * (1 + math.tanh(score(known) / 2)) if len(known) == len(values) else None  # without overflow

    return value
