"""The arithmetic of the diffusion bench, on records made by hand."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.benches.diffusion import (
    CONTROL,
    Arm,
    BenchModel,
    area,
    arm_rows,
    arms_of,
    compare,
    merging_row,
    read_model,
    summarize,
    tokens_per_pass_at,
)
from reasonrt.errors import ConfigError
from reasonrt.evals.journal import Record
from reasonrt.evals.report import Report

RESIDUAL, OFF = "residual", "residual, off"
MODELS = [
    BenchModel(CONTROL, 1, "a"),
    BenchModel(RESIDUAL, 1, "b"),
    BenchModel(CONTROL, 2, "c"),
    BenchModel(RESIDUAL, 2, "d"),
]


def record(arm: Arm, problem: int, correct: bool, passes: int, text: str = "") -> Record:
    usage = {arm.policy.options["engine"]: {"generated": 100, "passes": passes}}
    return Record(arm.policy.label, str(problem), "g", "1", share_s=0.5, correct=correct, text=text, usage=usage)


def report_of(arms: Sequence[Arm], right: dict[str, int], passes: dict[str, int]) -> Report:
    """Ten problems an arm, of which the first `right` are solved, in `passes` each."""
    records = [record(arm, i, i < right[arm.name], passes[arm.name]) for arm in arms for i in range(10)]
    return Report("zoo/test", [arm.policy.label for arm in arms], records)


def test_every_model_has_an_arm_for_each_threshold_and_residual_ones_one_without_it() -> None:
    arms = arms_of(MODELS, [0.5, 0.9])
    assert [(arm.name, arm.seed, arm.threshold) for arm in arms if arm.seed == 1] == [
        (CONTROL, 1, 0.5),
        (CONTROL, 1, 0.9),
        (RESIDUAL, 1, 0.5),
        (OFF, 1, 0.5),
        (RESIDUAL, 1, 0.9),
        (OFF, 1, 0.9),
    ]
    assert len({arm.policy.label for arm in arms}) == len(arms)


def test_row_divides_tokens_by_passes_and_seconds_by_problems() -> None:
    arms = arms_of(MODELS[:1], [0.9])
    (row,) = arm_rows(arms, report_of(arms, {CONTROL: 4}, {CONTROL: 25}))
    assert (row["n"], row["accuracy"], row["tokens_per_pass"], row["seconds_per_problem"]) == (10, 0.4, 4.0, 0.5)
    assert row["accuracy_low"] < 0.4 < row["accuracy_high"]


def test_comparison_pairs_the_same_seed_and_threshold() -> None:
    arms = arms_of(MODELS, [0.5])
    report = report_of(arms, {CONTROL: 3, RESIDUAL: 8, OFF: 2}, {CONTROL: 50, RESIDUAL: 25, OFF: 20})
    residual, off = compare(arms, report)
    assert (residual["arm"], residual["seeds"]) == (RESIDUAL, 2)
    assert residual["differences"] == pytest.approx([0.5, 0.5])
    assert residual["difference_low"] < 0.5 < residual["difference_high"]
    assert residual["difference_low"] > 0
    assert residual["by_seed_low"] == pytest.approx(residual["by_seed_high"])  # both seeds say the same
    assert off["difference"] == pytest.approx(-0.1)
    assert (residual["control_tokens_per_pass"], residual["tokens_per_pass"], off["tokens_per_pass"]) == (2.0, 4.0, 5.0)


def test_a_seed_that_is_there_twice_makes_no_interval_over_problems_narrower() -> None:
    def difference(models: Sequence[BenchModel]) -> tuple[float, float]:
        arms = arms_of(models, [0.5], ablation=False)
        row = compare(arms, report_of(arms, {CONTROL: 3, RESIDUAL: 8}, {CONTROL: 50, RESIDUAL: 25}))[0]
        return row["difference_low"], row["difference_high"]

    assert difference(MODELS) == pytest.approx(difference(MODELS[:2]))


@given(st.lists(st.tuples(st.floats(1, 9), st.floats(0, 1)), min_size=2, max_size=8, unique_by=lambda point: point[0]))
def test_equal_curves_are_equal_at_every_accuracy(points: list[tuple[float, float]]) -> None:
    rows = [
        {"arm": arm, "seed": 1, "threshold": index, "accuracy": accuracy, "tokens_per_pass": tokens}
        for arm in (CONTROL, RESIDUAL)
        for index, (tokens, accuracy) in enumerate(points)
    ]

    assert {row["times"] for row in summarize(rows)["equal_accuracy"]} <= {1.0}


def test_one_seed_gives_no_interval_over_seeds() -> None:
    arms = arms_of(MODELS[:2], [0.5])
    report = report_of(arms, {CONTROL: 3, RESIDUAL: 8, OFF: 2}, {CONTROL: 50, RESIDUAL: 25, OFF: 20})
    assert "by_seed_low" not in compare(arms, report)[0]


def test_area_is_the_mean_height_of_the_lines_between_points() -> None:
    assert area([(1.0, 0.8), (3.0, 0.4)], 1.0, 3.0) == pytest.approx(0.6)
    assert area([(1.0, 0.8), (2.0, 0.8), (4.0, 0.0)], 1.5, 3.0) == pytest.approx((0.5 * 0.8 + 1.0 * 0.6) / 1.5)


def test_area_outside_of_the_curve_is_refused() -> None:
    with pytest.raises(ValueError, match=r"spans 1\.00 to 3\.00, not 0\.50 to 2\.00"):
        area([(1.0, 0.8), (3.0, 0.4)], 0.5, 2.0)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_area_lies_between_the_lowest_and_the_highest_accuracy(heights: list[float]) -> None:
    curve = [(1.0 + index, height) for index, height in enumerate(heights)]
    assert min(heights) - 1e-9 <= area(curve, 1.0, float(len(heights))) <= max(heights) + 1e-9


def test_tokens_per_pass_at_an_accuracy_are_read_off_the_lines() -> None:
    curve = [(1.0, 0.8), (2.0, 0.6), (4.0, 0.2)]
    assert tokens_per_pass_at(curve, 0.4) == pytest.approx(3.0)
    assert tokens_per_pass_at(curve, 0.8) == pytest.approx(1.0)
    assert tokens_per_pass_at(curve, 0.1) == 4.0
    assert tokens_per_pass_at(curve, 0.9) is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0, 1))
def test_accuracy_at_the_tokens_per_pass_that_are_found_is_the_one_asked_for(
    heights: list[float], wanted: float
) -> None:
    curve = [(1.0 + index, height) for index, height in enumerate(heights)]
    found = tokens_per_pass_at(curve, wanted)
    if found is None:
        assert max(heights) < wanted
    else:
        below = curve[int(found) - 1 : int(found) + 1]
        assert max(height for _, height in below) >= wanted - 1e-9
        assert all(height < wanted for x, height in curve if x > found + 1e-9)


def test_summary_compares_at_equal_accuracy_where_the_control_makes_three_tokens_a_pass() -> None:
    rows = [
        {"arm": arm, "seed": 1, "threshold": threshold, "accuracy": accuracy, "tokens_per_pass": tokens}
        for arm, threshold, accuracy, tokens in (
            (CONTROL, 0.9, 0.6, 2.0),
            (CONTROL, 0.5, 0.3, 4.0),
            (RESIDUAL, 0.9, 0.7, 2.0),
            (RESIDUAL, 0.5, 0.1, 8.0),
        )
    ]
    summary = summarize(rows)
    (equal,) = summary["equal_accuracy"]
    assert (equal["threshold"], equal["tokens_per_pass"], equal["times"]) == (0.5, pytest.approx(6.0), 1.5)
    assert (summary["from_tokens_per_pass"], summary["to_tokens_per_pass"]) == (2.0, 4.0)
    areas = {row["arm"]: row["area"] for row in summary["areas"]}
    assert areas == {CONTROL: pytest.approx(0.45), RESIDUAL: pytest.approx(0.6)}


def test_merging_counts_equal_texts_and_passes_saved() -> None:
    merged, separate = arms_of(MODELS[:2], [0.9])[:2]
    records = [record(merged, i, True, 40, text=f"{i}") for i in range(4)]
    records += [record(separate, i, True, 50, text=f"{i}" if i else "other") for i in range(4)]
    row = merging_row(Report("t", [], records), merged.policy.label, separate.policy.label)
    assert (row["n"], row["identical"], row["saved"]) == (4, 3, pytest.approx(0.2))


def test_model_of_the_bench_is_spelled_arm_seed_folder() -> None:
    assert read_model("residual:3=runs/zoo/x=y") == BenchModel(RESIDUAL, 3, "runs/zoo/x=y")
    for text in ("residual=x", "residual:one=x", "residual:1=", "Residual:1=x", ":1=x"):
        with pytest.raises(ConfigError, match="ARM:SEED=MODEL"):
            read_model(text)


def test_without_the_ablation_no_model_is_measured_twice() -> None:
    assert [arm.name for arm in arms_of(MODELS[:2], [0.5], ablation=False)] == [CONTROL, RESIDUAL]


def test_arms_of_any_name_are_compared_with_the_control() -> None:
    arms = arms_of([*MODELS[:2], BenchModel("constant", 1, "e"), BenchModel("constant", 5, "f")], [0.5], ablation=False)
    report = report_of(
        arms, {CONTROL: 3, RESIDUAL: 8, "constant": 9}, dict.fromkeys((CONTROL, RESIDUAL, "constant"), 50)
    )
    assert [(row["arm"], row["seeds"], row["differences"]) for row in compare(arms, report)] == [
        (RESIDUAL, 1, pytest.approx([0.5])),
        ("constant", 1, pytest.approx([0.6])),  # nothing to compare the fifth seed with
    ]
