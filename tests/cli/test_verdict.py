"""`reasonrt plan speculation` says whether it pays."""

from typing import Any

import pytest

from reasonrt.cli.speculation import _verdict
from reasonrt.evals.journal import Record
from reasonrt.evals.report import Report


def _report(**fields: Any) -> Report:
    return Report("sums", ["arbitrage"], [Record("arbitrage", f"p{n}", "", "1", 1.0, **fields) for n in range(4)])


@pytest.mark.parametrize(("verifications", "times", "does"), [(2, 1.5, "pays"), (0, 0.75, "does not pay")])
def test_the_share_that_was_spared_decides(verifications: int, times: float, does: str) -> None:
    report = _report(details={"steps": 8, "escalations": 2, "verifications": verifications})

    verdict = _verdict(report, lambda share, is_verified: share * (2 if is_verified else 1))

    assert (verdict["share"], verdict["predicted_speedup"], verdict["pays"]) == (0.75, times, times > 1)
    assert f"arbitrage {does} here: it does not ask the target about 75% of the steps" in verdict["says"]


def test_a_policy_that_does_not_speculate_does_not_pay() -> None:
    tally = {"steps": 8, "escalations": 0, "verifications": 0}

    verdict = _verdict(_report(warnings={"speculation": "no router"}, details=tally), lambda *_: 2.0)

    assert verdict["says"] == "arbitrage does not speculate with this pair: no router"
    assert not verdict["pays"]
