"""What `certify` chooses, what it refuses, and what it says then. That its promise holds: test_validity.py."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.calibration import (
    Certificate,
    Checkpoint,
    Fingerprints,
    Infeasible,
    Ledger,
    Level,
    Trace,
    TraceSet,
    certify,
    certify_levels,
    order_rules,
    replay,
    upper_threshold_rules,
    verify,
)
from reasonrt.calibration.stopping.bounds import binomial_p_value
from reasonrt.calibration.stopping.families import dynasor_rules, joint_rules, lower_threshold_rules
from reasonrt.calibration.stopping.synthetic import synthetic_traces
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.rules import StoppingRule, UpperThreshold

THRESHOLDS = [0.3, 0.6, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999]
RULES = upper_threshold_rules("confidence", THRESHOLDS)
TRACES = synthetic_traces("honest", 400)


def made(**changes: object) -> Certificate:
    arguments: dict[str, object] = {"risk": "lost_correct", "alpha": 0.05, "delta": 0.1} | changes
    traces, rules = arguments.pop("traces", TRACES), arguments.pop("rules", RULES)
    return certify(traces, rules, **arguments)  # type: ignore[arg-type]


def test_certificate_holds_what_was_found() -> None:
    certificate = made(traces=TraceSet(TRACES.traces, Fingerprints(model="m")))
    rule = certificate.rule

    assert isinstance(rule, UpperThreshold)
    assert rule.threshold in THRESHOLDS
    assert (certificate.risk, certificate.alpha, certificate.delta, certificate.n) == ("lost_correct", 0.05, 0.1, 400)
    assert certificate.p_values[certificate.num_certified - 1] <= 0.1 < certificate.p_values[certificate.num_certified]
    assert certificate.findings[0].p_value == binomial_p_value(certificate.k, 400, 0.05)
    assert certificate.k / certificate.n < certificate.findings[0].upper_bound < 0.05
    assert certificate.order == tuple(RULES)
    assert certificate.splits == {"certify": TRACES.split.sha256}
    assert certificate.fingerprints.model == "m"


def test_the_cheapest_certified_rule_is_chosen_with_its_probes_paid() -> None:
    certificate = made()
    assert isinstance(certificate.rule, UpperThreshold)

    assert certificate.rule.threshold == sorted(THRESHOLDS, reverse=True)[certificate.num_certified - 1]
    assert certificate.saving.low < certificate.saving.net < certificate.saving.high
    assert certificate.saving.net > 0.1


def test_rules_that_save_nothing_are_no_answer() -> None:
    dear = [
        replace(trace, checkpoints=[replace(point, probe_tokens=500) for point in trace.checkpoints])
        for trace in TRACES
    ]

    with pytest.raises(Infeasible, match="none saves anything: the cheapest stops"):
        made(traces=dear)
    with pytest.raises(Infeasible, match="the cheapest stops 0 of 400 problems"):
        made(rules=upper_threshold_rules("confidence", [1.0, 2.0]))


def test_group_rows_add_up() -> None:
    certificate = made()
    rows = certificate.groups

    assert [row.group for row in rows] == ["hopeless", "solvable"]
    assert sum(row.num_problems for row in rows) == 400
    assert sum(row.findings[0].k for row in rows) == certificate.k


def test_unlabelled_finding_is_what_no_gold_would_have_shown() -> None:
    certificate = made()

    departed = [replay(certificate.rule, trace).answer != trace.full_answer for trace in TRACES if trace.full_answer]
    assert certificate.unlabelled.k == sum(departed) > certificate.k
    assert certificate.unlabelled.n == 400


def test_the_order_of_the_traces_does_not_matter() -> None:
    assert made(traces=TRACES.traces[::-1]) == made()


@given(st.tuples(st.floats(0.02, 0.5), st.floats(0.02, 0.5)), st.tuples(st.floats(0.01, 0.5), st.floats(0.01, 0.5)))
@settings(max_examples=12)
def test_a_looser_promise_certifies_no_fewer(alphas: tuple[float, float], deltas: tuple[float, float]) -> None:
    def certified(alpha: float, delta: float) -> int:
        try:
            return made(alpha=alpha, delta=delta).num_certified
        except Infeasible:
            return 0

    assert certified(min(alphas), min(deltas)) <= certified(max(alphas), max(deltas))


def test_several_risks_hold_together() -> None:
    uppers = RULES[-5:]
    lowers = lower_threshold_rules("confidence", [6000, 3000, 1500], slope_per_token=0.01, low=0.0, high=0.3)
    family = joint_rules(uppers, lowers)

    certificate = made(rules=family, risk=["early_error", "premature_give_up"], alpha=[0.25, 0.1])

    assert [(finding.risk, finding.alpha) for finding in certificate.findings] == [
        ("early_error", 0.25),
        ("premature_give_up", 0.1),
    ]
    worst = max(finding.p_value for finding in certificate.findings)
    assert worst == certificate.p_values[family.index(certificate.rule)]  # type: ignore[arg-type]
    assert worst <= 0.1


@pytest.mark.parametrize(("growing", "keeps_ledger"), [(False, False), (True, True)])
def test_levels_share_delta_and_say_so(growing: bool, keeps_ledger: bool, tmp_path: Path) -> None:
    traces, other, rules = TRACES.traces[:250], synthetic_traces("honest", 50, seed=1), RULES[:4]
    levels = [
        Level("lost_correct", alpha, order_rules(other, rules, risk="lost_correct", alpha=alpha))
        for alpha in (0.1, 0.2, 0.3)
    ]
    ledger = Ledger(tmp_path / "ledger.jsonl") if keeps_ledger else None

    found = certify_levels(traces, rules, levels, delta=0.1, growing=growing, ledger=ledger)

    spent = (0.05 if keeps_ledger else 0.1) / 3
    certificates = [each for each in found if isinstance(each, Certificate)]
    assert [each.alpha for each in certificates] == [0.1, 0.2, 0.3]
    assert len({each.attempt for each in certificates}) == 1
    for certificate in certificates:
        assert certificate.tested_at == pytest.approx(spent)
        assert certificate.delta == 0.1
        assert certificate.p_values[certificate.num_certified - 1] <= spent
        assert certificate.findings[0].upper_bound < certificate.alpha
        verify(certificate, traces, ledger)


def test_a_level_that_cannot_be_certified_leaves_the_others() -> None:
    first, second, third = certify_levels(
        TRACES, RULES[:2], [Level("lost_correct", alpha) for alpha in (0.001, 0.05, 0.1)], delta=0.1
    )

    assert isinstance(first, Infeasible)
    assert isinstance(second, Certificate)
    assert isinstance(third, Certificate)
    with pytest.raises(CalibrationError, match="there are no levels"):
        certify_levels(TRACES, RULES, [], delta=0.1)


def test_growing_certificates_say_what_may_be_added(make_trace: Callable[..., Trace]) -> None:
    traces = [make_trace(f"p{index}", [("wrong" if index < 2 else "right", 1.0)]) for index in range(74)]
    rules = upper_threshold_rules("sure", [0.5])

    with pytest.raises(Infeasible, match=r"lost 2 of 74.* problems would do nine times out of ten, these and more"):
        certify(traces, rules, risk="lost_correct", alpha=0.05, delta=0.1, growing=True)
    with pytest.raises(Infeasible, match=r"new problems would do .*; to add to these takes growing=True"):
        certify(traces, rules, risk="lost_correct", alpha=0.05, delta=0.1)


def test_selective_error_counts_the_stopped_problems_alone() -> None:
    other = synthetic_traces("honest", 200, seed=1)
    order = order_rules(other, RULES, risk="selective_error", alpha=0.3)

    certificate = made(risk="selective_error", alpha=0.3, order=order)

    assert 0 < certificate.n < certificate.num_problems == 400
    assert certificate.splits["order"] == other.split.sha256


def test_order_holds_no_rule_that_another_beats() -> None:
    family: Sequence[StoppingRule] = [*RULES, *dynasor_rules(range(2, 8), every_tokens=128)]

    order = order_rules(synthetic_traces("honest", 200, seed=1), family, risk="lost_correct", alpha=0.05)

    assert 1 < len(order.rules) < len(family)
    assert made(rules=family, order=order).order == order.rules


def test_rules_are_tested_as_they_stand() -> None:
    with pytest.raises(Infeasible):
        made(rules=RULES[::-1])  # the boldest first: it fails, and nothing after it is tested


def test_an_order_says_what_it_was_learned_on() -> None:
    with pytest.raises(CalibrationError, match="an order is what order_rules returns"):
        made(order=RULES)


def test_only_what_says_so_was_drawn_with_replacement() -> None:
    """The same problem again is no further evidence; a simulation says that it draws traces anew."""
    drawn = [TRACES.traces[index % 200] for index in range(400)]

    with pytest.raises(CalibrationError, match="is in the traces twice"):
        certify(drawn, RULES, risk="early_error", alpha=0.1, delta=0.1)
    certificate = certify(TraceSet(tuple(drawn), is_drawn=True), RULES, risk="early_error", alpha=0.1, delta=0.1)

    assert certificate.num_problems == 400


@pytest.mark.parametrize("test", ["bonferroni", "holm"])
def test_other_tests_verify_too(test: str) -> None:
    certificate = made(test=test)

    assert certificate.test == test
    assert certificate.num_certified <= made().num_certified
    verify(certificate, TRACES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"traces": TRACES.traces[:44]}, "takes at least 45 problems, even without a loss; there are 44: record more"),
        (
            {"rules": upper_threshold_rules("confidence", [0.01, 0.02])},
            "the first rule of the order lost .* of 400, too many for lost_correct below 0.05; no n will do",
        ),
        (
            {"rules": upper_threshold_rules("confidence", [0.999999]), "risk": "selective_error"},
            r"the first rule of the order stopped \d+ of 400: let order_rules find an order",
        ),
    ],
)
def test_infeasible_says_why_and_what_would_do(changes: dict[str, object], message: str) -> None:
    with pytest.raises(Infeasible, match=message) as refused:
        made(**changes)

    assert "\n" not in str(refused.value)


def test_what_is_known_without_a_look_tells_nothing_of_the_problems(make_trace: Callable[..., Trace]) -> None:
    """That there are too few for one risk is said before losses of another one are."""
    traces = [make_trace(f"p{index}", [("wrong", 1.0)]) for index in range(50)]

    with pytest.raises(Infeasible, match=r"premature_give_up below 0\.01 at delta 0\.1 takes at least 230 problems"):
        certify(
            traces,
            upper_threshold_rules("sure", [0.5]),
            risk=["early_error", "premature_give_up"],
            alpha=[0.3, 0.01],
            delta=0.1,
        )


def test_infeasible_names_the_n_that_would_do(make_trace: Callable[..., Trace]) -> None:
    traces = [make_trace(f"p{index}", [("wrong" if index < 2 else "right", 1.0)]) for index in range(60)]

    with pytest.raises(Infeasible, match=r"at delta 0\.1; at that rate 940 new problems would do"):
        certify(traces, upper_threshold_rules("sure", [0.5]), risk="lost_correct", alpha=0.05, delta=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"traces": []}, "there are no traces"),
        ({"rules": []}, "there are no rules"),
        ({"rules": upper_threshold_rules("sure", [0.5])}, "no checkpoint has the signal 'sure'"),
        ({"risk": "error"}, "unknown risk 'error'"),
        ({"risk": ["lost_correct", "early_error"]}, "2 risks have 1 alphas"),
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\), got 0.0"),
        ({"delta": float("nan")}, r"delta must be in \(0, 1\), got nan"),
        ({"test": "fdr"}, "unknown test 'fdr'; there are bonferroni, fixed_sequence, holm"),
        ({"traces": [*TRACES, replace(TRACES.traces[0], gold="other")]}, "is in the traces twice"),
        ({"train": TRACES.traces[-1:]}, "the splits to certify and to train share 'honest-0-399'"),
        (
            {"order": order_rules(TRACES.traces[:50], RULES, risk="lost_correct", alpha=0.05)},
            "the splits to certify and to order share 'honest-0-0' and 49 more",
        ),
        (
            {"risk": "early_error", "traces": [*TRACES.traces[1:], replace(TRACES.traces[0], gold=None)]},
            "risk 'early_error' needs the right answer of every problem, 1 have no gold, one is 'honest-0-0'",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CalibrationError, match=message) as refused:
        made(**changes)

    assert not isinstance(refused.value, Infeasible)
    assert "\n" not in str(refused.value)


def test_the_same_level_twice_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")

    with pytest.raises(CalibrationError, match="two levels are the same"):
        certify_levels(TRACES, RULES, [Level("lost_correct", 0.1)] * 2, delta=0.1, ledger=ledger)
    assert not (tmp_path / "ledger.jsonl").exists()


def test_an_order_of_other_rules_is_refused() -> None:
    order = order_rules(synthetic_traces("honest", 50, seed=1), RULES, risk="lost_correct", alpha=0.05)

    with pytest.raises(CalibrationError, match="rules that are not in the family"):
        made(rules=RULES[:1], order=order)


@pytest.mark.parametrize("answer", ["right", "wrong"])
def test_populations_that_are_all_right_or_all_wrong(answer: str, make_trace: Callable[..., Trace]) -> None:
    traces = [make_trace(f"p{index}", [(answer, 1.0)]) for index in range(45)]
    rules = upper_threshold_rules("sure", [0.5])

    if answer == "right":
        assert certify(traces, rules, risk="early_error", alpha=0.05, delta=0.1).k == 0
    else:
        with pytest.raises(Infeasible):
            certify(traces, rules, risk="early_error", alpha=0.05, delta=0.1)


def test_one_problem_is_infeasible() -> None:
    trace = Trace("p", [Checkpoint(1, "1", {"sure": 1.0})], 2, "1", "1")

    with pytest.raises(Infeasible, match="at least 45 problems"):
        certify([trace], upper_threshold_rules("sure", [0.5]), risk="lost_correct", alpha=0.05, delta=0.1)
