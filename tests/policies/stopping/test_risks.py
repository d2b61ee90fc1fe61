"""Each risk on each way in which a problem can end."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.replay import Outcome
from reasonrt.policies.stopping.risks import RISKS, find_risk
from reasonrt.policies.stopping.rules import Action
from reasonrt.policies.stopping.traces import Checkpoint, Trace

ANSWERS = st.sampled_from(["right", "wrong", "", " ", None, "50%", "50", "0.5", "1/2", "12", "12 cm", "12 kg"])
RAN_ON, GAVE_UP = Outcome(Action.GO_ON, None, "right", 10), Outcome(Action.GIVE_UP, 0, None, 5)


def stopped(answer: str | None) -> Outcome:
    return Outcome(Action.ANSWER, 0, answer, 5)


def ended(full_answer: str | None, gold: str | None, outcome: Outcome) -> Trace:
    """A trace whose first checkpoint says what `outcome` returns."""
    return Trace("p", [Checkpoint(5, outcome.answer)], 10, full_answer, gold)


@pytest.mark.parametrize(
    ("full_answer", "gold", "outcome", "early", "selective", "lost", "premature"),
    [
        ("right", "right", stopped("right"), False, False, False, False),
        ("right", "right", stopped("wrong"), True, True, True, False),
        ("right", "right", stopped(""), True, True, True, False),  # blank is wrong
        ("wrong", "right", stopped("wrong"), True, True, False, False),  # it was lost anyway
        ("wrong", "right", stopped("right"), False, False, False, False),
        ("right", "right", GAVE_UP, False, None, True, True),
        ("wrong", "right", GAVE_UP, False, None, False, False),
        ("right", "right", RAN_ON, False, None, False, False),
        ("", "right", stopped(None), True, True, False, False),
    ],
)
def test_losses(
    full_answer: str,
    gold: str,
    outcome: Outcome,
    early: bool,
    selective: bool | None,
    lost: bool,
    premature: bool,
) -> None:
    trace = ended(full_answer, gold, outcome)

    losses = {name: risk.loss(trace, outcome) for name, risk in RISKS.items()}

    assert losses == {
        "early_error": early,
        "selective_error": selective,
        "lost_correct": lost,
        "premature_give_up": premature,
    }


@given(ANSWERS, ANSWERS, st.one_of(st.builds(stopped, ANSWERS), st.just(GAVE_UP), st.just(RAN_ON)))
def test_without_gold_never_fewer_correct_answers_are_lost(
    full_answer: str | None, gold: str | None, outcome: Outcome
) -> None:
    loss = RISKS["lost_correct"].loss

    without, with_gold = (loss(ended(full_answer, label, outcome), outcome) for label in (None, gold))

    assert bool(without) >= bool(with_gold)


@pytest.mark.parametrize("name", sorted(RISKS))
@pytest.mark.parametrize("gold", [None, " "])
def test_a_risk_that_needs_gold_refuses_traces_without(
    name: str, gold: str | None, make_trace: Callable[..., Trace]
) -> None:
    traces = [make_trace("p1", []), make_trace("p2", [], gold=gold)]

    if not RISKS[name].needs_gold:
        assert find_risk(name, traces) is RISKS[name]
        return
    with pytest.raises(CalibrationError, match=f"{name}.* 1 have no gold, one is 'p2'"):
        find_risk(name, traces)


def test_unknown_risk_is_refused() -> None:
    with pytest.raises(CalibrationError, match="unknown risk 'loss'; there are early_error, lost_correct"):
        find_risk("loss", [])
