"""The bench of sampled verification: do answers at a temperature have the target's distribution?

Each arm solves the same problems once for each of several seeds: a run. Where two arms draw their answers from the same
distribution, their runs can change places, so a permutation test over whole runs is exact, whatever the answers to
different problems have in common. Its statistic is the squared distance between the shares of the answers, summed over
the answers to a problem and averaged over problems. What it would have missed is told by its power against answers of
which some share are the draft's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reasonrt.evals.report import Report
from reasonrt.evals.run import PolicySpec

TARGET, DRAFT = PolicySpec("target"), PolicySpec("draft")
VERIFIED = PolicySpec("arbitrage", {"threshold": -1.0})
"""Every step is verified: its answers are to be the target's own."""
ARMS = [TARGET, VERIFIED, PolicySpec("arbitrage"), DRAFT]
"""The third one keeps steps of the draft's where its router says so; nothing says that its answers are the target's."""

LEVEL, POWER = 0.05, 0.8
SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
_PERMUTATIONS, _SIMULATED, _SIMULATED_PERMUTATIONS = 10_000, 200, 400


def verification_rows(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """One row per arm, from one report per seed. `p_value` is that the answers are drawn as the target draws its own.

    `passes_per_problem` counts the target's forward passes, and a verification as one or two.
    """
    rng, codes = np.random.default_rng(0), _answers(reports)
    rows = []
    for arm in ARMS:
        records = [record for report in reports for record in report.of(arm.label)]
        statistic, p_value = compare_runs(codes[TARGET.label], codes[arm.label], rng, _PERMUTATIONS)
        is_other = arm is not TARGET
        rows.append(
            {
                "policy": arm.label,
                "n": len(records),
                "accuracy": sum(record.correct for record in records) / len(records),
                "errors": sum(bool(record.error) for record in records),
                "distance": statistic if is_other else None,
                "p_value": p_value if is_other else None,
                "seconds_per_problem": sum(record.share_s for record in records) / len(records),
                "passes_per_problem": sum(record.usage.get("target", {}).get("passes", 0) for record in records)
                / len(records),
            }
        )
    return rows


def powers(reports: Sequence[Report]) -> dict[float, float]:
    """Share of the answers that are the draft's -> how often the test sees it, at the level `LEVEL`.

    Simulated with as many runs and problems: answers are drawn from those of the target and of `VERIFIED` together,
    and with that share from the draft's. At 0 it is how often the test is wrong.
    """
    rng, codes = np.random.default_rng(1), _answers(reports)
    own, draft = np.concatenate([codes[TARGET.label], codes[VERIFIED.label]]), codes[DRAFT.label]
    num_runs, num_problems = codes[TARGET.label].shape
    problems = np.arange(num_problems)

    def drawn(runs: NDArray[np.int64]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = runs[rng.integers(len(runs), size=(num_runs, num_problems)), problems]
        return found

    def is_seen(share: float) -> bool:
        mixed = np.where(rng.random((num_runs, num_problems)) < share, drawn(draft), drawn(own))
        return compare_runs(drawn(own), mixed, rng, _SIMULATED_PERMUTATIONS)[1] <= LEVEL

    return {share: float(np.mean([is_seen(share) for _ in range(_SIMULATED)])) for share in SHARES}


def compare_runs(
    ours: NDArray[np.int64], others: NDArray[np.int64], rng: np.random.Generator, num_permutations: int
) -> tuple[float, float]:
    """The distance between two arms and the p-value that both are the same.

    Args:
        ours, others: [runs, problems], equal numbers for equal answers to a problem.
        rng: permutes the runs.
        num_permutations: >= 1; the p-value is at least 1 / (this + 1).

    Source: the permutation test of Fisher (1935), with the Monte Carlo p-value of Davison and Hinkley (1997), 4.11.
    """
    runs = np.concatenate([ours, others])
    agreement = np.mean(runs[:, None, :] == runs[None, :, :], axis=-1)  # [runs, runs]
    sign = np.concatenate([np.full(len(ours), 1 / len(ours)), np.full(len(others), -1 / len(others))])
    permuted = rng.permuted(np.tile(sign, (num_permutations, 1)), axis=1)
    statistic = float(sign @ agreement @ sign)
    # what differs by rounding alone is equal
    num_as_far = int((((permuted @ agreement) * permuted).sum(-1) >= statistic - 1e-12).sum())
    return statistic, (1 + num_as_far) / (1 + num_permutations)


def _answers(reports: Sequence[Report]) -> dict[str, NDArray[np.int64]]:
    """Arm to [runs, problems]: the answers of each problem, numbered."""
    numbers: dict[tuple[str, str], int] = {}
    found: dict[str, NDArray[np.int64]] = {}
    for arm in ARMS:
        runs = []
        for report in reports:
            records = sorted(report.of(arm.label), key=lambda record: record.problem)
            runs.append([numbers.setdefault((record.problem, record.answer), len(numbers)) for record in records])
        found[arm.label] = np.array(runs, dtype=np.int64)
    return found
