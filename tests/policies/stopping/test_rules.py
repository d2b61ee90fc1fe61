"""Rules stop where their definition says, are values, and cannot tell live serving from replay."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.answers import is_answer
from reasonrt.calibration.stopping.families import (
    budget_rules,
    deer_rules,
    dynasor_rules,
    eat_rules,
    joint_rules,
    lower_threshold_rules,
    published_rules,
    quantile_thresholds,
    upper_threshold_rules,
)
from reasonrt.calibration.stopping.synthetic import synthetic_traces
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.replay import refuse_unknown_signals, replay
from reasonrt.policies.stopping.rules import (
    Action,
    Both,
    Gated,
    LowerThreshold,
    Spaced,
    StoppingRule,
    UpperThreshold,
    Watch,
    from_json,
    to_json,
)
from reasonrt.policies.stopping.signals import (
    Agreement,
    Boosted,
    Change,
    Ema,
    Highest,
    Logistic,
    Recorded,
    Signal,
    Steadiness,
    TokensUsed,
)
from reasonrt.policies.stopping.traces import Checkpoint, Trace
from reasonrt.trees import Tree, Trees

PLAIN_SIGNALS: st.SearchStrategy[Signal] = st.sampled_from([Recorded("confidence"), Agreement(), TokensUsed()])
UNIT = st.floats(0.01, 1.0)


def stump(threshold: float, feature: int = 0) -> Tree:
    return Tree((feature, -1, -1), (threshold, 0.0, 0.0), (1, -1, -1), (2, -1, -1), (0.0, -1.0, 1.0))


SIGNALS: st.SearchStrategy[Signal] = st.recursive(
    PLAIN_SIGNALS,
    lambda inner: st.one_of(
        st.builds(Ema, inner, UNIT),
        st.builds(Steadiness, inner, UNIT, st.integers(0, 5)),
        st.builds(Change, inner),
        st.builds(Highest, inner),
        st.builds(lambda of, weight: Logistic((of,), (weight,), -0.5), inner, UNIT),
        st.builds(lambda of, at: Boosted((of,), Trees(-0.5, (stump(at),))), inner, UNIT),
    ),
    max_leaves=3,
)
UPPERS = st.builds(UpperThreshold, SIGNALS, st.floats(-2, 2000), st.integers(0, 500))
LOWERS = st.builds(LowerThreshold, SIGNALS, st.floats(0, 2000), UNIT, st.just(-0.1), UNIT)
PLAIN = st.one_of(UPPERS, LOWERS, st.builds(Both, UPPERS, LOWERS))
SPACED = st.one_of(PLAIN, st.builds(Spaced, PLAIN, st.integers(1, 600)))
RULES: st.SearchStrategy[StoppingRule] = st.one_of(SPACED, st.builds(Gated, SPACED, UNIT))
TRACES = st.sampled_from(synthetic_traces("wavering", 40).traces)


@given(RULES)
def test_json_round_trip(rule: StoppingRule) -> None:
    again = from_json(to_json(rule))

    assert again == rule
    assert hash(again) == hash(rule)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "the rule is no JSON"),
        ('{"kind": "oracle"}', "the rule: value: Input tag 'oracle'"),
        ('{"kind": "upper_threshold", "signal": {"kind": "agreement"}}', "threshold: Field required"),
        ('{"kind": "upper_threshold", "signal": {"kind": "agreement"}, "threshold": NaN}', "must be finite, got nan"),
        (
            '{"kind": "upper_threshold", "signal": {"kind": "agreement", "k": 3}, "threshold": 1}',
            "agreement.k: Unexpected",
        ),
    ],
)
def test_json_of_no_rule_is_refused(text: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        from_json(text)


@given(RULES, TRACES)
def test_a_rule_is_a_function_of_the_history(rule: StoppingRule, trace: Trace) -> None:
    """Step by step, as live serving calls it, and anew for each history: the same stop, and the same as replay's."""
    watch = Watch(rule)
    stop = None
    for index, checkpoint in enumerate(trace.checkpoints):
        action = watch.see(checkpoint) if watch.wants(checkpoint.tokens) else Action.GO_ON
        if action is Action.GIVE_UP or (action is Action.ANSWER and is_answer(checkpoint.answer)):
            stop = index
            break
    known = len(trace.checkpoints) if stop is None else stop + 1
    shortened = Trace("prefix", trace.checkpoints[:known], trace.full_tokens, None)

    assert replay(rule, trace).index == stop
    assert replay(rule, shortened).index == stop  # what comes later does not matter


@given(SIGNALS, st.lists(st.floats(-5, 5), min_size=2, max_size=8), TRACES)
def test_a_lower_threshold_never_stops_later(signal: Signal, thresholds: list[float], trace: Trace) -> None:
    outcomes = [replay(rule, trace) for rule in upper_threshold_rules(signal, thresholds)]

    stops = [math.inf if outcome.index is None else outcome.index for outcome in outcomes]
    assert stops == sorted(stops, reverse=True)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8))
def test_upper_family_is_ordered_and_carries_its_thresholds(thresholds: list[float]) -> None:
    family = upper_threshold_rules("confidence", [*thresholds, *thresholds])

    assert [rule.threshold for rule in family] == sorted(set(thresholds), reverse=True)


def test_a_threshold_that_is_met_exactly_stops() -> None:
    trace = Trace("p", [Checkpoint(10, "a", {"x": 0.5}), Checkpoint(20, "b", {"x": 0.7})], 30, "c")

    (rule,) = upper_threshold_rules("x", [0.7])
    assert (replay(rule, trace).index, replay(rule, trace).answer) == (1, "b")
    (late,) = upper_threshold_rules("x", [0.5], after_tokens=20)
    assert replay(late, trace).index == 1


def test_lower_threshold_follows_the_published_curve() -> None:
    rule = LowerThreshold(Recorded("x"), shift_tokens=8000, slope_per_token=0.001, low=0.1, high=0.98)

    for tokens in (0, 5000, 8000, 20_000, 10_000_000):
        expected = 0.1 + 0.88 / (1 + math.exp(-0.001 * (tokens - 8000)))
        assert rule.threshold_at(tokens) == pytest.approx(expected)


def test_giving_up_returns_no_answer() -> None:
    (rule,) = lower_threshold_rules("x", [15], slope_per_token=1.0, low=0.0, high=0.5)
    trace = Trace("p", [Checkpoint(10, "a", {"x": 0.1}, 5), Checkpoint(20, "b", {"x": 0.1}, 5)], 30, "c")

    outcome = replay(rule, trace)

    assert (outcome.action, outcome.index, outcome.answer, outcome.net_tokens) == (Action.GIVE_UP, 1, None, 30)


def test_where_both_would_stop_the_answer_is_given() -> None:
    upper = upper_threshold_rules("x", [0.4])
    lower = lower_threshold_rules("x", [0], slope_per_token=1.0, low=0.0, high=0.9)

    outcome = replay(joint_rules(upper, lower)[0], Trace("p", [Checkpoint(50, "a", {"x": 0.5})], 60, "c"))

    assert outcome.action is Action.ANSWER


@given(st.integers(1, 6), st.integers(1, 6))
def test_joint_family_holds_every_pair_and_never_puts_a_bolder_pair_first(num_uppers: int, num_lowers: int) -> None:
    uppers = upper_threshold_rules("x", range(num_uppers))
    lowers = lower_threshold_rules("x", range(num_lowers), slope_per_token=1.0, low=0.0, high=1.0)

    family = joint_rules(uppers, lowers)

    places = [(uppers.index(rule.upper), lowers.index(rule.lower)) for rule in family]
    assert len(set(places)) == num_uppers * num_lowers
    for index, (i, j) in enumerate(places):
        assert not [place for place in places[index + 1 :] if place[0] <= i and place[1] <= j]


def test_probes_are_paid_for_where_they_are_looked_at() -> None:
    points = [Checkpoint(tokens, "a", {"x": 0.0}, 7) for tokens in range(10, 100, 10)]
    trace = Trace("p", points, 100, "a")

    assert replay(upper_threshold_rules("x", [1.0])[0], trace).net_tokens == 100 + 9 * 7
    assert replay(dynasor_rules([9], every_tokens=30)[0], trace).net_tokens == 100 + 3 * 7
    assert replay(dynasor_rules([2], every_tokens=30)[0], trace).net_tokens == 40 + 2 * 7
    assert replay(budget_rules([50])[0], trace).net_tokens == 50 + 7  # it asks only when it stops
    assert replay(budget_rules([500])[0], trace).net_tokens == 100


def test_gate_asks_for_the_answer_only_where_the_entropy_is_low() -> None:
    entropies = [2.0, 0.1, 2.0, 0.1, 0.1]
    points = [
        Checkpoint(10 * place, "a", {"x": 1.0, "entropy_after_thinking": entropy}, 7)
        for place, entropy in enumerate(entropies, 1)
    ]
    trace = Trace("p", points, 100, "a")
    eager, patient = upper_threshold_rules("x", [1.0])[0], upper_threshold_rules(Agreement(), [2.0])[0]

    assert (replay(Gated(eager, 0.5), trace).index, replay(Gated(eager, 0.5), trace).net_tokens) == (1, 20 + 2 + 7)
    assert replay(Gated(patient, 0.5), trace).index == 4  # where it is not asked, no answer agrees with the next one
    assert replay(Gated(eager, 0.0), trace).net_tokens == 100 + 5
    assert replay(eager, trace).net_tokens == 10 + 7


def test_gate_may_look_at_the_end_of_thinking() -> None:
    points = [
        Checkpoint(10 * place, "a", {"x": 1.0, "end_of_thinking": end}, 7)
        for place, end in enumerate([0.1, 0.9, 0.1], 1)
    ]
    trace = Trace("p", points, 100, "a")
    eager = upper_threshold_rules("x", [1.0])[0]

    assert replay(Gated(eager, at_least=0.5), trace).net_tokens == 20 + 2 + 7
    assert replay(Gated(eager, at_least=0.95), trace).net_tokens == 100 + 3
    assert Gated(eager, at_least=0.5).reads == {"x", "end_of_thinking"}
    assert not Gated(eager, at_least=0.5).is_open({})  # a look that was dropped speaks for nothing


def test_a_rule_that_looks_only_pays_for_the_answer_when_it_stops() -> None:
    points = [
        Checkpoint(10 * place, answer, {"x": 1.0, "entropy_after_thinking": 0.0}, 7)
        for place, answer in enumerate(["a", "", "b"], 1)
    ]
    (rule,) = eat_rules([1e-3], after=1)

    outcome = replay(rule, Trace("p", points, 100, "a"))

    assert (outcome.answer, outcome.net_tokens) == ("b", 30 + 3 + 2 * 7)  # a blank answer cannot be returned


def test_dropped_probe_means_go_on() -> None:
    trace = Trace("p", [Checkpoint(10, None, {}), Checkpoint(20, "b", {"x": 1.0})], 30, "c")

    assert replay(upper_threshold_rules("x", [0.5])[0], trace).index == 1


def test_published_rules_have_the_settings_of_their_papers() -> None:
    assert published_rules()["DEER"] == deer_rules([0.95])[0]
    assert published_rules()["Dynasor"] == Spaced(UpperThreshold(Agreement(), 3.0), 64)
    assert published_rules()["EAT"] == eat_rules([0.001], weight=0.1, after=40)[0]


def test_unknown_signal_is_refused() -> None:
    traces = synthetic_traces("honest", 3)

    with pytest.raises(CalibrationError, match="no checkpoint has the signal 'sure'; there are confidence"):
        refuse_unknown_signals(upper_threshold_rules("sure", [0.5]), traces)
    refuse_unknown_signals(dynasor_rules([2]), traces)


def test_quantile_thresholds_lie_within_the_values_and_split_them_evenly() -> None:
    traces = synthetic_traces("honest", 100)
    values = sorted(point.signals["confidence"] for trace in traces for point in trace.checkpoints)

    thresholds = quantile_thresholds(traces, "confidence", 19)

    assert len(thresholds) == 19
    for index, threshold in enumerate(thresholds, 1):
        below = sum(value < threshold for value in values) / len(values)
        assert below == pytest.approx(index / 20, abs=0.01)
    with pytest.raises(CalibrationError, match="was measured 0 times"):
        quantile_thresholds(traces, "sure", 5)
