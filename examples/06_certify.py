"""From recorded traces to a certificate: the cheapest stopping rule whose risk is below alpha, with a guarantee.

The traces are made up here; `reasonrt calibrate traces` records those of a model of yours.
"""

import tempfile
from pathlib import Path

from reasonrt.calibration import Certificate, Infeasible, Ledger, certify, plan, upper_threshold_rules
from reasonrt.calibration.stopping.families import quantile_thresholds
from reasonrt.calibration.stopping.synthetic import synthetic_traces
from reasonrt.policies.stopping.traces import split_traces


def main() -> None:
    print("a risk below 5 % takes at least", plan(alpha=0.05, delta=0.1).least_n, "problems")
    train, held_out = split_traces(synthetic_traces("honest", 1000), shares=(0.3, 0.7))
    rules = upper_threshold_rules("confidence", quantile_thresholds(train, "confidence", 60))
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.jsonl")  # for traces in a file: Ledger.beside(file)
        for alpha in (0.05, 0.001):
            try:
                found = certify(
                    held_out, rules, risk="lost_correct", alpha=alpha, delta=0.1, train=train, ledger=ledger
                )
            except Infeasible as error:
                print(f"risk below {alpha:g}: {error}")
                continue
            finding = found.findings[0]
            print(f"risk below {alpha:g}: {finding.k} of {finding.n} lost, {found.saving.net:.0%} of the tokens saved")
            print("the rule:", found.rule)
            print(
                f"try {found.attempt.number} on these problems, tested at {found.tested_at:g} of delta {found.delta:g}"
            )
            file = Path(folder) / "certificate.json"
            found.write(file)
            print("read again and unchanged:", Certificate.read(file).sha256 == found.sha256)


if __name__ == "__main__":
    main()
