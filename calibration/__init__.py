"""What is learned before serving, with its guarantee.

Importing this package imports neither numpy nor scipy; the functions that need them load them.
"""

from reasonrt.calibration.stopping.certification import Level, Order, certify, certify_levels, order_rules, verify
from reasonrt.calibration.stopping.families import lower_threshold_rules, upper_threshold_rules
from reasonrt.calibration.stopping.ledger import Ledger
from reasonrt.calibration.stopping.sample_size import Infeasible, Plan, plan
from reasonrt.policies.stopping.certificate import Certificate, check_matches
from reasonrt.policies.stopping.replay import Outcome, replay
from reasonrt.policies.stopping.rules import Action, StoppingRule, Watch
from reasonrt.policies.stopping.traces import Checkpoint, Fingerprints, Trace, TraceSet, read_traces, write_traces

__all__ = [
    "Action",
    "Certificate",
    "Checkpoint",
    "Fingerprints",
    "Infeasible",
    "Ledger",
    "Level",
    "Order",
    "Outcome",
    "Plan",
    "StoppingRule",
    "Trace",
    "TraceSet",
    "Watch",
    "certify",
    "certify_levels",
    "check_matches",
    "lower_threshold_rules",
    "order_rules",
    "plan",
    "read_traces",
    "replay",
    "upper_threshold_rules",
    "verify",
    "write_traces",
]
