"""Random populations of traces, where the truth is known: to check that promises hold.

Nothing here claims to be like a language model. The kinds differ in what makes stopping hard.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from reasonrt.errors import CalibrationError, shown
from reasonrt.policies.stopping.traces import Checkpoint, Trace, TraceSet

CADENCE_TOKENS = 128
PROBE_TOKENS = 6


@dataclass(frozen=True, slots=True)
class Kind:
    """How the traces of a population behave.

    Attributes:
        solvable: share of the problems that are solved when thought through to the end.
        wavering: probability that a settled answer is another one at a checkpoint; then risk does not fall with time.
        bias: added to the confidence, in log-odds; positive is overconfident.
        noise: standard deviation of the confidence, in log-odds.
        doubt: taken off the confidence where the problem stays unsolved, in log-odds.
    """

    solvable: float
    wavering: float
    bias: float
    noise: float
    doubt: float


KINDS: Mapping[str, Kind] = {
    "honest": Kind(solvable=0.9, wavering=0.0, bias=0.0, noise=0.8, doubt=2.0),
    "wavering": Kind(solvable=0.85, wavering=0.008, bias=1.0, noise=0.6, doubt=0.0),
    "hopeless": Kind(solvable=0.5, wavering=0.01, bias=0.5, noise=1.0, doubt=5.0),
}


def synthetic_traces(kind: str, num_problems: int, seed: int = 0) -> TraceSet:
    """Draw traces with the signals of real ones, which say, with bias and noise, how likely the answer has settled.

    Args:
        kind: a name in `KINDS`.
        num_problems: >= 1.
    """
    if kind not in KINDS:
        raise CalibrationError(f"unknown population {shown(kind)}; there are {', '.join(KINDS)}")
    rng = random.Random(f"{kind} {seed}")  # not from hash(), which differs between processes
    return TraceSet(tuple(_trace(KINDS[kind], f"{kind}-{seed}-{index}", rng) for index in range(num_problems)))


def _trace(kind: Kind, problem_id: str, rng: random.Random) -> Trace:
    full_tokens = int(min(6000.0, CADENCE_TOKENS * (2 + rng.lognormvariate(2.2, 0.5))))
    settled_at = rng.betavariate(2, 3)  # as a share of the trace
    solvable = rng.random() < kind.solvable
    final = "right" if solvable else rng.choice(["wrong", ""])
    checkpoints = []
    further = random.Random(problem_id)  # so that one signal more leaves the others as they were
    for tokens in range(CADENCE_TOKENS, full_tokens, CADENCE_TOKENS):
        log_odds = 14 * (tokens / full_tokens - settled_at)
        settled = rng.random() < _logistic(log_odds) and rng.random() >= kind.wavering
        answer = final if settled else f"guess {rng.randrange(6)}"
        doubt = 0.0 if solvable else kind.doubt
        confidence = _logistic(log_odds + kind.bias - doubt + rng.gauss(0, kind.noise))
        noisy = [_logistic(log_odds + kind.bias - doubt + further.gauss(0, kind.noise)) for _ in range(3)]
        signals = {
            "confidence": confidence,
            "geometric_confidence": confidence * noisy[0],
            "entropy_after_thinking": 2.0 * (1.0 - noisy[1]),
            "end_of_thinking": noisy[2],
        }
        checkpoints.append(Checkpoint(tokens, answer, signals, PROBE_TOKENS))
    return Trace(
        problem_id, checkpoints, full_tokens, final, gold="right", group="solvable" if solvable else "hopeless"
    )


def _logistic(log_odds: float) -> float:
    return 0.5 * (1 + math.tanh(log_odds / 2))
