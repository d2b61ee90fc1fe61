"""The simulated part of the stopping bench says what it should of families that are good, poor and wrong."""

from dataclasses import replace

import pytest

from reasonrt.benches.stopping import (
    Case,
    boundary_rows,
    cases,
    control_rows,
    joint_boundary_rows,
    levels_row,
    looks_row,
    most_cases,
    tightness_row,
    tries_row,
    validity_rows,
)
from reasonrt.benches.validity import Population
from reasonrt.calibration import Trace, TraceSet, order_rules
from reasonrt.calibration.stopping.candidates import candidate_rules, splits
from reasonrt.calibration.stopping.synthetic import KINDS, synthetic_traces
from reasonrt.calibration.stopping.trials import Limit


@pytest.fixture(scope="module")
def deer() -> Case:
    return next(case for case in cases(None, ["deer"]) if case.name == "wavering")


def test_cases_are_every_population_with_every_family_that_it_has_signals_for() -> None:
    heard = synthetic_traces("honest", 200, 5)
    recorded = splits(TraceSet(tuple(map(_with_confidence_alone, heard))))

    found = [(case.name, case.family) for case in cases(recorded, ["deer", "eat"])]

    assert found == [
        *((name, family) for name in KINDS for family in ("deer", "eat", "all")),
        ("recorded", "deer"),
        ("recorded", "all"),
    ]
    assert len(found) == most_cases(recorded, ["deer", "eat"]) - 1  # of which the traces know nothing


def _with_confidence_alone(trace: Trace) -> Trace:
    points = [replace(point, signals={"confidence": point.signals["confidence"]}) for point in trace.checkpoints]
    return replace(trace, checkpoints=points)


def test_validity_rows(deer: Case) -> None:
    rows = list(validity_rows(deer, num_draws=300))

    assert [(row["alpha"], row["n"]) for row in rows] == [(a, n) for a in (0.02, 0.05, 0.1) for n in (100, 300, 1000)]
    assert all(row["ok"] and row["rate_low"] <= row["rate"] <= 0.15 for row in rows)
    assert rows[-1]["certified"] == 1.0


def test_a_learned_family_keeps_its_promise_and_choosing_without_a_bound_does_not() -> None:
    """Rules from 200 problems, certified on draws from 500 others."""
    rules = candidate_rules(synthetic_traces("wavering", 200, 1), ["learned_looks"])
    looks = Case("wavering", "learned_looks", rules, None, synthetic_traces("wavering", 500, 0))

    rows, controls = list(validity_rows(looks, 500)), list(control_rows(looks, 500))

    assert all(row["ok"] for row in rows)
    assert max(row["certified"] for row in rows) == 1.0
    assert all(row["ok"] for row in controls)  # found out: they break it more often than delta


def test_controls_are_found_out(deer: Case) -> None:
    rows = [*control_rows(deer), *boundary_rows()]

    assert {row["choice"] for row in rows if row["part"] == "control"} == {
        "observed", "wrong_n", "uncorrected", "reused_split",
    }  # fmt: skip
    assert all(row["ok"] for row in rows)


def test_several_certificates_from_one_set_hold_together_and_apart_they_do_not() -> None:
    """Where every rule is just worse than its limit."""
    rows = list(joint_boundary_rows(num_draws=500))

    assert [row["part"] for row in rows] == ["levels", "control", "tries", "control", "looks", "control"]
    assert [row["choice"] for row in rows[1::2]] == [
        "levels apart", "tries without a ledger", "looks with tests for one look",
    ]  # fmt: skip
    assert all(row["ok"] for row in rows)
    assert all((row["rate"] > 0.1) == (row["part"] == "control") for row in rows)


def test_what_holds_together_saves_less_than_what_does_not(deer: Case) -> None:
    rows = [levels_row(deer, 300), tries_row([deer] * 3, 300), looks_row(deer, 300)]

    assert [(row["part"], row["population"]) for row in rows] == [
        ("levels", "wavering"), ("tries", "wavering"), ("looks", "wavering"),
    ]  # fmt: skip
    for row in rows:
        assert 0 < row["saving"] < row["mistake_saving"]
        assert row["rate"] <= row["mistake_rate"]
        assert row["ok"]


def test_the_order_is_that_of_order_rules(deer: Case) -> None:
    assert deer.order is not None
    order = order_rules(deer.order, deer.rules, risk="lost_correct", alpha=0.05)

    population = deer.along_its_order(0.05)

    replayed = Population.of(deer.truth, order.rules, [Limit("lost_correct", 0.05)])
    assert population.tokens.tolist() == replayed.tokens.tolist()


def test_tightness_row(deer: Case) -> None:
    row = tightness_row(deer, num_draws=300)

    assert 0 < row["saving"] <= row["best_saving"]
    assert row["share_of_best"] == row["saving"] / row["best_saving"]
    assert row["mean_risk"] < 0.05
    assert 0 < row["one_test_saving"] < row["best_saving"]
