"""What a report says of time and of what did not take place."""

from typing import Any

import pytest

from reasonrt.cli.common import console
from reasonrt.cli.evaluation import print_report
from reasonrt.evals.journal import Record
from reasonrt.evals.report import Report


def _record(label: str, number: int, share_s: float, **fields: Any) -> Record:
    tokens = {"target": 100} if label == "target" else {"draft": 100}
    usage = {name: {"generated": num, "prefilled": 20} for name, num in tokens.items()}
    return Record(label, f"p{number}", "", "1", share_s, True, engine_tokens=tokens, usage=usage, **fields)


def _report(seconds: dict[str, float], **tally: float) -> Report:
    records = [
        _record(label, number, each * (1 + number % 3 / 10), details=tally if label == "arbitrage" else {})
        for label, each in seconds.items()
        for number in range(30)
    ]
    return Report("sums", list(seconds), records)


def _row(report: Report, label: str) -> dict[str, Any]:
    return next(row for row in report.rows() if row["policy"] == label)


def test_time_is_told_as_a_ratio_to_the_target_with_its_interval() -> None:
    report = _report({"target": 1.0, "draft": 0.5})

    row = _row(report, "draft")
    assert row["ratio_to_target"] == pytest.approx(0.5)
    assert row["ratio_to_target_low"] <= 0.5 <= row["ratio_to_target_high"]
    assert "ratio_to_target" not in _row(report, "target")
    assert "ratio_to_target" not in _row(_report({"draft": 1.0}), "draft")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"target": 1.0, "draft": 1.1, "arbitrage": 2.0}, "1.10 of what it takes the target: too much, whatever"),
        ({"target": 1.0, "draft": 0.95, "arbitrage": 2.0}, "asked about 92% of the text, and was not about 75%"),
        ({"target": 1.0, "draft": 0.3, "arbitrage": 1.5}, "was not asked about 75% of the text, 0% would be enough"),
        ({"target": 1.0, "arbitrage": 1.5}, "evaluate `draft` as well"),
        ({"target": 1.0, "draft": 0.3, "arbitrage": 0.9}, None),
    ],
)
def test_speculation_that_takes_longer_is_told_why(seconds: dict[str, float], expected: str | None) -> None:
    report = _report(seconds, steps=8, escalations=2)

    if expected is None:
        assert "does_not_pay" not in _row(report, "arbitrage")
    else:
        assert expected in _row(report, "arbitrage")["does_not_pay"]
        assert "does_not_pay" not in _row(report, "target")


def test_a_vote_takes_longer_by_intention() -> None:
    assert "does_not_pay" not in _row(_report({"target": 1.0, "self_consistency@k=5": 4.0}), "self_consistency@k=5")


def test_what_did_not_take_place_is_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    lost = {"speculation": "there is no [such] router"}
    records = [_record("arbitrage", number, 1.0, warnings=lost if number else {}) for number in range(3)]
    records.append(_record("arbitrage", 3, 1.0, error="the engine said [/x]"))

    report = Report("sums", ["arbitrage"], records)

    assert _row(report, "arbitrage")["warnings"] == {"speculation": {"n": 2, "reason": lost["speculation"]}}
    with console.capture() as printed:
        print_report(report)
    assert "arbitrage: no speculation in 2 of 4 problems: there is no [such] router" in printed.get()
    assert "1 failed and count as wrong; the first: the engine said [/x]" in printed.get()
