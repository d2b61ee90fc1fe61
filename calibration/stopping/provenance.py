"""Where a certificate's rules and their order come from: from problems that it was not certified on, or nobody knows.

`certification.verify` recomputes what the certified traces gave. A promise also needs that these had no part in the
rules and in their order, which only the other splits can show.
"""

from collections.abc import Iterator, Sequence

from reasonrt.calibration.stopping.candidates import FAMILIES, LEARNED, Splits, candidate_rules, not_certified
from reasonrt.calibration.stopping.certification import order_rules
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.certificate import Certificate
from reasonrt.policies.stopping.rules import StoppingRule
from reasonrt.policies.stopping.traces import TraceSet, refuse_overlap


def check_provenance(certificate: Certificate, parts: Splits) -> list[str]:
    """What of the rules and of their order these splits cannot show; nothing where they show all of it.

    Raises:
        CalibrationError: they are not the splits that the certificate names, or they give another order.
    """
    if (whole := not_certified(parts)).split.sha256 == certificate.splits.get("train"):
        parts = parts._replace(train=whole)
    named = {role: part for role, part in parts._asdict().items() if role in certificate.splits}
    for role, part in named.items():
        if part.split.sha256 != certificate.splits[role]:
            raise CalibrationError(
                f"the certificate names other traces to {role} than these {len(part)}; give those that it was made from"
            )
    refuse_overlap({role: part.split for role, part in named.items()})
    return [*_order_gaps(certificate, parts), *_rule_gaps(certificate, parts.train)]


def _order_gaps(certificate: Certificate, parts: Splits) -> Iterator[str]:
    risks = [finding.risk for finding in certificate.findings]
    if "order" not in certificate.splits:
        is_known = "train" in certificate.splits and any(
            certificate.order == tuple(_rules_of(name, parts.train, risks)) for name in LEARNED
        )
        if not is_known:
            yield "the order of its rules; it was learned from no traces, and is right if it is the family's own"
        return
    alphas = [finding.alpha for finding in certificate.findings]
    if order_rules(parts.order, certificate.order, risk=risks, alpha=alphas).rules != certificate.order:
        raise CalibrationError(
            "the traces to order give another order than the certificate has; who takes it from elsewhere, from the "
            "certified problems for instance, promises nothing: certify anew"
        )


def _rule_gaps(certificate: Certificate, train: TraceSet) -> Iterator[str]:
    if "train" not in certificate.splits:
        yield "its rules; they were made from no traces, and are right if they were named beforehand"
        return
    unknown = set(certificate.order)
    for name in sorted(FAMILIES, key=LEARNED.__contains__):  # last those that take training
        unknown.difference_update(_rules_of(name, train, [f.risk for f in certificate.findings]) if unknown else ())
    if unknown:
        yield f"{len(unknown)} of its {len(certificate.order)} rules; no family makes them from the traces to train"


def _rules_of(family: str, train: TraceSet, risks: Sequence[str]) -> list[StoppingRule]:
    try:
        return candidate_rules(train, [family], risks)
    except CalibrationError:  # its signals were not recorded
        return []
