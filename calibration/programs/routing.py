"""From which length of context on a program pays."""

from collections.abc import Iterable
from itertools import groupby

from reasonrt.errors import CalibrationError


def direct_threshold(rows: Iterable[tuple[int, bool, bool]]) -> int:
    """Contexts of fewer tokens than this are best answered by one direct call; 0 where none is.

    Of all thresholds, the one with the most right answers on `rows`; of equals the largest, since a direct call is
    cheaper. It never lies beyond the longest context: what was not seen goes to a program.

    Args:
        rows: of one question each: tokens of its context, whether the direct call was right, whether the program was.

    Raises:
        CalibrationError: there are no rows.
    """
    ordered = sorted(rows)
    if not ordered:
        raise CalibrationError("no question was answered both ways; record direct calls beside programs")
    best, threshold, gain = 0, 0, 0
    for tokens, same in groupby(ordered, key=lambda row: row[0]):
        gain += sum(direct - program for _, direct, program in same)
        if gain >= best:
            best, threshold = gain, tokens + 1
    return threshold
