"""Families made from the training split: their rules read what is there, and no problem is in two splits."""

from dataclasses import replace

import pytest

from reasonrt.calibration import TraceSet, certify, order_rules
from reasonrt.calibration.stopping.candidates import (
    FAMILIES,
    SHARES,
    candidate_rules,
    candidates,
    splits,
    without_gold,
)
from reasonrt.calibration.stopping.synthetic import synthetic_traces
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.replay import refuse_unknown_signals

TRACES = synthetic_traces("honest", 300)


def test_splits_are_disjoint_and_stay_what_they_are() -> None:
    parts = splits(TRACES)

    assert sum(map(len, parts)) == len(TRACES)
    assert [len(part) / len(TRACES) for part in parts] == pytest.approx(SHARES, abs=0.08)
    assert splits(TRACES)[2].split.sha256 == parts[2].split.sha256
    assert splits(without_gold(TRACES))[2].split.names == parts[2].split.names


def test_with_other_traces_to_learn_on_all_are_certified_on() -> None:
    other = synthetic_traces("honest", 100, seed=1)

    train, order, held_out = splits(TRACES, other)

    assert held_out is TRACES
    assert len(train) + len(order) == len(other)
    assert 20 < len(train) < len(order)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_can_be_certified(family: str) -> None:
    train, order, held_out = splits(TRACES)
    rules = candidate_rules(train, [family])
    some = rules[:: max(1, len(rules) // 40)]
    learned = order_rules(order, some, risk="lost_correct", alpha=0.3)

    refuse_unknown_signals(rules, held_out)
    assert len(rules) == len(set(rules)) > 5
    assert certify(held_out, some, risk="lost_correct", alpha=0.3, delta=0.1, order=learned, train=train).num_certified


def test_a_learned_family_trains_on_all_that_is_not_certified_on_and_knows_its_order() -> None:
    parts = splits(TRACES)

    made = candidates(parts, ["learned_looks"], "lost_correct")
    rules, train, _ = made

    assert made.order("lost_correct", 0.1) is None
    assert len(train) == len(parts.train) + len(parts.order)
    assert [rule.threshold for rule in rules] == sorted((rule.threshold for rule in rules), reverse=True)  # type: ignore[union-attr]
    assert all(rule.reads == {"end_of_thinking", "entropy_after_thinking"} for rule in rules)  # and no answer
    assert candidate_rules(train, ["learned_length"])[0].reads == frozenset()
    certificate = certify(parts.certify, rules, risk="lost_correct", alpha=0.1, delta=0.1, train=train)
    assert set(certificate.splits) == {"certify", "train"}
    assert certificate.saving.net > 0.15


def test_a_learned_family_learns_of_the_risk_that_is_asked_for() -> None:
    train = splits(TRACES).train

    lost, early = (candidate_rules(train, ["learned_looks"], risk) for risk in ("lost_correct", "early_error"))

    assert lost != early
    with pytest.raises(CalibrationError, match="unknown risk 'loss'"):
        candidate_rules(train, ["learned_looks"], "loss")
    with pytest.raises(CalibrationError, match="risk 'early_error' needs the right answer"):
        candidate_rules(without_gold(train), ["learned_looks"], "early_error")


def test_several_families_are_ordered_on_other_problems() -> None:
    parts = splits(TRACES)

    made = candidates(parts, ["deer", "dynasor"], "lost_correct")
    order = made.order("lost_correct", 0.1)

    assert made.train is parts.train
    assert order is not None
    assert order.split == parts.order.split
    assert set(order.rules) < set(made.rules)


def test_all_families_together_hold_each_rule_once() -> None:
    train = splits(TRACES)[0]

    together = candidate_rules(train)

    assert len(together) == len(set(together))
    assert not set(candidate_rules(train, ["learned_looks"])) & set(together)
    assert set(candidate_rules(train, ["deer", "cascade"])) <= set(together)


def test_traces_that_lack_a_signal_and_unknown_families_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"'entropy_after_thinking'.* was measured 0 times"):
        candidate_rules(_with_confidence_alone(TRACES), ["eat"])
    with pytest.raises(CalibrationError, match="unknown family 'magic'; there are learned_looks, learned_length, deer"):
        candidate_rules(TRACES, ["magic"])


def _with_confidence_alone(traces: TraceSet) -> TraceSet:
    return TraceSet(
        tuple(
            replace(
                trace,
                checkpoints=[
                    replace(point, signals={"confidence": point.signals["confidence"]}) for point in trace.checkpoints
                ],
            )
            for trace in traces
        )
    )
