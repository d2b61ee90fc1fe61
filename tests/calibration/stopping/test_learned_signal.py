"""The learned signal: what it fits, and that replay needs no scikit-learn."""

import subprocess
import sys

import numpy as np
import pytest

from reasonrt.calibration import Trace, certify, upper_threshold_rules
from reasonrt.calibration.stopping.families import quantile_thresholds
from reasonrt.calibration.stopping.learned_signal import learn_signal
from reasonrt.calibration.stopping.synthetic import synthetic_traces
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.signals import Agreement, Ema, Recorded, Signal, TokensUsed

SIGNALS: list[Signal] = [Recorded("confidence"), Ema(Recorded("confidence"), 0.3), Agreement(), TokensUsed()]


def test_it_is_the_probability_that_the_answer_so_far_is_right() -> None:
    signal = learn_signal(synthetic_traces("honest", 300), SIGNALS)
    said, right = [], []
    for trace in synthetic_traces("honest", 300, seed=1):
        follow = signal.follow()
        said += [follow(point) for point in trace.checkpoints]
        right += [trace.is_good(index) for index in range(len(trace.checkpoints))]

    order = np.argsort(np.array(said, dtype=float))
    for part in np.array_split(order, 5):
        assert np.mean(np.array(said, dtype=float)[part]) == pytest.approx(np.mean(np.array(right)[part]), abs=0.08)


def test_it_can_be_certified() -> None:
    train = synthetic_traces("honest", 200)
    signal = learn_signal(train, SIGNALS)
    rules = upper_threshold_rules(signal, quantile_thresholds(train, signal, 40))

    certificate = certify(
        synthetic_traces("honest", 300, seed=1), rules, risk="lost_correct", alpha=0.05, delta=0.1, train=train
    )

    assert certificate.saving.net > 0.2
    assert certificate.splits.keys() == {"certify", "train"}


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(CalibrationError, match="good at 0 of 0 checkpoints, which leaves nothing to learn"):
        learn_signal([Trace("p", [], 10, "1")], SIGNALS)


def test_importing_calibration_loads_no_numeric_library() -> None:
    heavy = ("numpy", "scipy", "sklearn", "torch")
    code = f"import sys, reasonrt.calibration; print([name for name in {heavy} if name in sys.modules])"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
