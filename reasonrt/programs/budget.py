"""What a run of program search may still spend: reserved before it is spent, settled after, in one place for all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from reasonrt.ports import Allowance
from reasonrt.types import FinishReason


class Spent(Exception):  # noqa: N818 (a limit is a result, not an error)
    """Nothing is left to reserve.

    Attributes:
        reason: which limit.
    """

    def __init__(self, reason: FinishReason) -> None:
        super().__init__(f"the budget is spent: {reason}")
        self.reason = reason


@dataclass(eq=False)  # two may have the same numbers, and are two
class Reservation:
    """Tokens set aside for one generation.

    Attributes:
        tokens: it may generate so many.
        used: it has generated so many so far; whoever generates keeps it up to date.
    """

    tokens: int
    used: int = 0


class Budget:
    """One for all candidates and sub-calls of a run; whatever they reserve together is never more than is left.

    Args:
        allowance: what the request may still use, asked anew each time.
    """

    def __init__(self, allowance: Callable[[], Allowance]) -> None:
        self._allowance = allowance
        self._open: list[Reservation] = []

    @contextmanager
    def reserve(self, tokens: int) -> Iterator[Reservation]:
        """Set aside up to `tokens` for one engine call; what is not used of them is given back.

        Raises:
            Spent: no engine call, or no token, is left.
        """
        left = self._allowance()
        if left.engine_calls < 1:
            raise Spent(FinishReason.CALLS)
        if left.generated_tokens is not None:
            promised = sum(each.tokens - each.used for each in self._open)
            tokens = min(tokens, left.generated_tokens - promised)
            if tokens < 1:
                raise Spent(FinishReason.BUDGET)
        reservation = Reservation(tokens)
        self._open.append(reservation)
        try:
            yield reservation
        finally:
            self._open.remove(reservation)
