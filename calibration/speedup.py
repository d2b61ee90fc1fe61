"""From measurements to the cost model of speculation (`policies/speculation/costs.py`), and what it then says."""

from collections.abc import Sequence

import numpy as np

from reasonrt.errors import CalibrationError
from reasonrt.policies.speculation.costs import Speed, Work, planned, predicted_speedup


def break_even_share(draft: Speed, target: Speed, **plan: float | bool) -> float | None:
    """The accepted share from which the pair is as fast as the target; None where no share is enough.

    Args:
        plan: as for `planned`.
    """

    def gain(share: float) -> float:
        return predicted_speedup(planned(draft, target, share, **plan)) - 1.0  # type: ignore[arg-type]

    if gain(1.0) <= 0:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-6:  # the gain grows with the share
        middle = (low + high) / 2
        low, high = (low, middle) if gain(middle) > 0 else (middle, high)
    return high


def fit_speed(measured: Sequence[tuple[float, Work, float]]) -> Speed:
    """The speed that explains best the times that an engine took by itself.

    Args:
        measured: (seconds per problem, its work, concurrent problems). A second measurement, with another share of
            reading, is needed to find what reading costs, and a second concurrency to separate a written token from
            its pass; what cannot be separated is taken as free.

    Raises:
        CalibrationError: nothing was measured.
    """
    if not measured:
        raise CalibrationError("a speed takes at least one measurement of the engine alone")
    from scipy.optimize import nnls

    columns = [(work.passes / at_once, work.read, work.passes) for _, work, at_once in measured]
    known = 2 if len({at_once for _, _, at_once in measured}) == 1 else 3
    seconds = np.array([[each] for each, _, _ in measured])
    # each row is in units of what was measured: relative errors count
    shares = np.array(columns)[:, : min(known, len(measured))] / seconds
    pass_s, read_s, write_s = (*nnls(shares, np.ones(len(measured)))[0], 0.0, 0.0)[:3]
    if pass_s + write_s <= 0:  # reading goes with writing in every measurement: it is reading that is taken as free
        shares[:, 1:2] = 0.0
        pass_s, read_s, write_s = (*nnls(shares, np.ones(len(measured)))[0], 0.0, 0.0)[:3]
    return Speed(float(pass_s), float(write_s), float(read_s))
