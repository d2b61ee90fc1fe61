"""A signal learned from traces: how likely it is that stopping here loses nothing. The one importer of scikit-learn.

Source: the features and the regression as in LearnStop, arXiv 2606.30852; in place of the LSTM of Answer Convergence,
arXiv 2506.02536, which reads hidden states.
"""

from collections.abc import Iterable, Sequence

from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.signals import Logistic, Signal
from reasonrt.policies.stopping.traces import Trace, same_answer


def learn_signal(traces: Iterable[Trace], signals: Sequence[Signal]) -> Logistic:
    """Logistic regression, at every checkpoint, of "the answer so far is the one that counts" on `signals`.

    The answer that counts is gold where it is known, else the model's own full answer. Checkpoints where a signal
    is not known are left out; every problem weighs the same, however long its trace is.

    Args:
        traces: the training split; certify on other problems.
        signals: at least one.

    Raises:
        CalibrationError: the answers so far are all right, or all wrong, or no checkpoint has every signal.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows: list[list[float]] = []
    labels: list[bool] = []
    weights: list[float] = []
    for trace in traces:
        follows = [signal.follow() for signal in signals]
        for checkpoint in trace.checkpoints:
            values = [follow(checkpoint) for follow in follows]
            known = [value for value in values if value is not None]
            if len(known) == len(values):
                rows.append(known)
                labels.append(same_answer(checkpoint.answer, trace.reference))
                weights.append(1 / len(trace.checkpoints))
    if len(set(labels)) < 2:
        raise CalibrationError(
            f"{sum(labels)} right answers at {len(rows)} checkpoints leave nothing to learn; record more traces"
        )
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(np.array(rows), np.array(labels), logisticregression__sample_weight=np.array(weights))
    scaler, regression = model[0], model[1]
    slopes = regression.coef_[0] / scaler.scale_  # in the units of the signals, so that the scaler is not needed again
    bias = float(regression.intercept_[0] - slopes @ scaler.mean_)
    return Logistic(tuple(signals), tuple(float(slope) for slope in slopes), bias)
