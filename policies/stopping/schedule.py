"""Where a trace is looked at: recording and live serving share it, so that both look at the same tokens."""

from dataclasses import asdict, dataclass
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter

from reasonrt.errors import CalibrationError, shown
from reasonrt.policies.stopping.files import FILES, canonical


@dataclass(frozen=True, slots=True)
class Schedule:
    """Marks at growing distances; a checkpoint is the first step boundary at or after each of them.

    Attributes:
        first_tokens: the first mark lies there, >= 1.
        growth: from one mark to the next, >= 1.
        block_tokens: marks are multiples of it, >= 1; at the size of the engine's cache blocks, a probe reads less
            than one block anew.
        answer_tokens: so many at most may a probe's answer take, >= 1.

    Raises:
        CalibrationError: a value out of range.
    """

    first_tokens: int = 32
    growth: float = 1.25
    block_tokens: int = 32
    answer_tokens: int = 24

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 1 <= value <= 1_000_000:
                raise CalibrationError(f"{name} must be in [1, 1000000], got {shown(value)}")

    def next_mark(self, tokens: int) -> int:
        """The first mark after `tokens`."""
        mark = self._aligned(self.first_tokens)
        while mark <= tokens:
            mark = max(mark + self.block_tokens, self._aligned(mark * self.growth))
        return mark

    def _aligned(self, tokens: float) -> int:
        return -int(-tokens // self.block_tokens) * self.block_tokens

    def to_json(self) -> str:
        return canonical(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Schedule":
        """Raises: CalibrationError: not the JSON of a schedule."""
        return FILES.validate(SCHEDULE, FILES.parse_json(text, "the schedule"), "the schedule")


SCHEDULE: TypeAdapter[Schedule] = TypeAdapter(Schedule)
