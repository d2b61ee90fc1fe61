"""When to stop: a rule is a pure function of the signals seen so far, to continue, to answer now or to give up.

A rule is a value: it can be compared, written as JSON and read again. `Watch` takes one rule along one trace; live
serving and replay both go through it. A missing signal, of a dropped probe for example, means to continue.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.files import FILES, canonical
from reasonrt.policies.stopping.signals import END_OF_THINKING, ENTROPY_AFTER_THINKING, LOOKS, Signal
from reasonrt.policies.stopping.traces import Checkpoint


class Action(StrEnum):
    GO_ON = "go_on"
    ANSWER = "answer"  # with the answer of the probe at this checkpoint
    GIVE_UP = "give_up"  # without an answer


Decide = Callable[[Checkpoint], Action]


@dataclass(frozen=True, slots=True)
class UpperThreshold:
    """Answer once the signal is at least `threshold`.

    Attributes:
        threshold: finite, in the unit of the signal.
        after_tokens: no stop before so many.
    """

    signal: Signal
    threshold: float
    after_tokens: int = 0
    kind: Literal["upper_threshold"] = field(default="upper_threshold", repr=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise CalibrationError(f"a threshold must be finite, got {self.threshold}; leave this rule out")

    @property
    def reads(self) -> frozenset[str]:
        """What its signals read; a rule that reads no answers needs none until it stops."""
        return self.signal.reads

    @property
    def every_tokens(self) -> int:
        """The least distance between two checkpoints that it looks at."""
        return 0

    def follow(self) -> Decide:
        value_of = self.signal.follow()

        def decide(checkpoint: Checkpoint) -> Action:
            value = value_of(checkpoint)
            stops = value is not None and value >= self.threshold and checkpoint.tokens >= self.after_tokens
            return Action.ANSWER if stops else Action.GO_ON

        return decide


@dataclass(frozen=True, slots=True)
class LowerThreshold:
    """Give up once the signal is at most low + (high - low) / (1 + exp(-slope (tokens - shift))).

    Attributes:
        shift_tokens: where the curve is half way up; the smaller, the sooner it gives up.
        slope_per_token: how steeply the curve rises there.
        low, high: between which it rises, in the unit of the signal.
        after_tokens: no stop before so many.

    Source: Conformal Thinking, Wang et al. (2026), arXiv 2602.03814, the parametric lower threshold.
    """

    signal: Signal
    shift_tokens: float
    slope_per_token: float
    low: float
    high: float
    after_tokens: int = 0
    kind: Literal["lower_threshold"] = field(default="lower_threshold", repr=False)

    @property
    def reads(self) -> frozenset[str]:
        return self.signal.reads

    @property
    def every_tokens(self) -> int:
        return 0

    def threshold_at(self, tokens: int) -> float:
        rise = 0.5 * (1 + math.tanh(self.slope_per_token * (tokens - self.shift_tokens) / 2))
        return self.low + (self.high - self.low) * rise

    def follow(self) -> Decide:
        value_of = self.signal.follow()

        def decide(checkpoint: Checkpoint) -> Action:
            value, tokens = value_of(checkpoint), checkpoint.tokens
            stops = value is not None and value <= self.threshold_at(tokens) and tokens >= self.after_tokens
            return Action.GIVE_UP if stops else Action.GO_ON

        return decide


@dataclass(frozen=True, slots=True)
class Both:
    """Answer by the one rule, give up by the other; where both would stop, answer."""

    upper: UpperThreshold
    lower: LowerThreshold
    kind: Literal["both"] = field(default="both", repr=False)

    @property
    def reads(self) -> frozenset[str]:
        return self.upper.reads | self.lower.reads

    @property
    def every_tokens(self) -> int:
        return 0

    def follow(self) -> Decide:
        upper, lower = self.upper.follow(), self.lower.follow()

        def decide(checkpoint: Checkpoint) -> Action:
            actions = upper(checkpoint), lower(checkpoint)  # both must see every checkpoint
            return actions[0] if actions[0] is not Action.GO_ON else actions[1]

        return decide


@dataclass(frozen=True, slots=True)
class Spaced:
    """Another rule that looks at fewer checkpoints: the first one, then none within `every_tokens` of the last.

    What it does not look at costs no probe, and does not count as an answer that agrees.
    """

    rule: UpperThreshold | LowerThreshold | Both
    every_tokens: int
    kind: Literal["spaced"] = field(default="spaced", repr=False)

    @property
    def reads(self) -> frozenset[str]:
        return self.rule.reads

    def follow(self) -> Decide:
        return self.rule.follow()


@dataclass(frozen=True, slots=True)
class Gated:
    """Another rule that asks for the answer only where a look, which takes one token, speaks for it.

    A checkpoint where it does not counts as one without an answer.

    Attributes:
        at_most: of the entropy after thinking, nats; None does not look at it.
        at_least: of the boosted probability that the thinking ends, in [0, 1]; None does not look at it.
    """

    rule: UpperThreshold | LowerThreshold | Both | Spaced
    at_most: float | None = None
    at_least: float | None = None
    kind: Literal["gated"] = field(default="gated", repr=False)

    @property
    def reads(self) -> frozenset[str]:
        looks = {ENTROPY_AFTER_THINKING: self.at_most, END_OF_THINKING: self.at_least}
        return self.rule.reads | {name for name, bound in looks.items() if bound is not None}

    @property
    def every_tokens(self) -> int:
        return self.rule.every_tokens

    def is_open(self, signals: Mapping[str, float]) -> bool:
        """Whether the answer is asked for; not where a look is missing."""
        is_low = self.at_most is None or signals.get(ENTROPY_AFTER_THINKING, math.inf) <= self.at_most
        return is_low and (self.at_least is None or signals.get(END_OF_THINKING, -math.inf) >= self.at_least)

    def follow(self) -> Decide:
        return self.rule.follow()


StoppingRule = Annotated[UpperThreshold | LowerThreshold | Both | Spaced | Gated, Field(discriminator="kind")]


class Watch:
    """One rule along one trace. At each checkpoint: does it want it, what does it look at, what does it say."""

    def __init__(self, rule: StoppingRule) -> None:
        self.looks = rule.reads & LOOKS  # to be measured at every checkpoint that it wants
        self._decide = rule.follow()
        self._every_tokens = rule.every_tokens
        self._next_tokens = 0
        self._reads_answers = bool(rule.reads - LOOKS)
        self._gate = rule if isinstance(rule, Gated) else None

    def wants(self, tokens: int) -> bool:
        """Whether the rule looks at a checkpoint after so many tokens; to be asked once for each, in order."""
        is_wanted = tokens >= self._next_tokens
        if is_wanted:
            self._next_tokens = tokens + self._every_tokens
        return is_wanted

    def wants_answer(self, signals: Mapping[str, float]) -> bool:
        """Whether it reads the answer, given what `looks` have told; otherwise it needs one only when it stops."""
        return self._reads_answers and (self._gate is None or self._gate.is_open(signals))

    def see(self, checkpoint: Checkpoint) -> Action:
        """What to do now; to be called with every checkpoint that it wants, in order, until it says to stop.

        An answer that is blank cannot be returned: whoever is told to answer with one continues instead.
        """
        if self._gate is not None and not self.wants_answer(checkpoint.signals):
            known = {name: value for name, value in checkpoint.signals.items() if name in LOOKS}
            checkpoint = replace(checkpoint, answer=None, signals=known)
        return self._decide(checkpoint)


def to_json(rule: StoppingRule) -> str:
    return canonical(asdict(rule))


def from_json(text: str) -> StoppingRule:
    """Raises: CalibrationError: not the JSON of a rule."""
    return FILES.validate(RULE, FILES.parse_json(text, "the rule"), "the rule")


RULE: TypeAdapter[StoppingRule] = TypeAdapter(StoppingRule, config=ConfigDict(extra="forbid"))
