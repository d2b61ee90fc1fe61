"""Tries to certify on one set of problems, and how they share delta: all certificates from the set hold together."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from reasonrt.errors import CalibrationError

MOST_TRIES = 1000  # what a later one would spend is no number


@dataclass(frozen=True, slots=True)
class Attempt:
    """Which try on its set of problems a certificate comes from.

    Attributes:
        set_id: what the set is known by: SHA-256 of the traces of the first try on it.
        number: of the tries on the set, from 1, as the ledger counts them; None where no ledger was kept, and the
            promise is for a set on which nothing else is tried.
        levels: SHA-256 of what was declared, one for each of the levels that were certified together.
    """

    set_id: str
    number: int | None
    levels: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.levels or (self.number is not None and not 1 <= self.number <= MOST_TRIES):
            raise CalibrationError(f"there is no try {self.number} of {len(self.levels)} levels; certify anew")

    def tested_at(self, delta: float) -> float:
        """The delta of each level, when `delta` is that of all certificates from the set: equal parts of its share."""
        share = 1.0 if self.number is None else share_of_try(self.number)
        return delta * share / len(self.levels)


def share_of_try(number: int) -> float:
    """What try `number`, from 1, spends of the delta of its set: half of what the tries before it have left.

    The shares add up to 1 however many tries there are, so that by the union bound all of them are right with
    probability 1 - delta. The first try, which is often the only one, keeps half, and the second to the fourth have
    more than by the series 1 / (i (i + 1)), which is better for later tries: there new problems are better still.
    Candidates that are known beforehand get more each as levels of one try.
    """
    return 2.0**-number


def refuse_apart(attempts: Mapping[str, Attempt]) -> None:
    """Certificates that requests may choose among must hold together: one try, or the tries of a ledger.

    From sets that a ledger tells apart, each holds by the delta of its own set.

    Args:
        attempts: by the name of the certificate.

    Raises:
        CalibrationError: two of them may be from one set and share no delta; each may be wrong with all of its own.
    """
    for (name, attempt), (other_name, other) in combinations(attempts.items(), 2):
        if (attempt.set_id, attempt.levels) == (other.set_id, other.levels):
            continue
        is_counted = attempt.number is not None and other.number is not None
        if not is_counted or (attempt.set_id, attempt.number) == (other.set_id, other.number):
            raise CalibrationError(
                f"{name} and {other_name} were certified apart, and need not hold together; certify their levels in "
                "one call (calibrate stopping, with an --alpha for each)"
            )
