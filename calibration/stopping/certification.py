"""From recorded traces to a promise: the cheapest stopping rule whose risk is certified to be below alpha.

`certify` is fixed-sequence testing with exact binomial p-values, along an order that the problems to certify on had
no part in. It either returns a certificate or raises `Infeasible`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from reasonrt.calibration.stopping.bounds import binomial_p_value, binomial_upper_bound
from reasonrt.calibration.stopping.multiple_testing import TESTS, pareto_order
from reasonrt.calibration.stopping.sample_size import Infeasible, check_level, least_n, plan
from reasonrt.calibration.stopping.trials import Limit, Trial, count, p_value, try_rules
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.certificate import Certificate, Finding, Group, Saving, first_difference, normal
from reasonrt.policies.stopping.rules import StoppingRule
from reasonrt.policies.stopping.traces import Split, Trace, TraceSet, refuse_overlap

_NORMAL_975 = 1.959963984540054  # the quantile of a 95 % interval


@dataclass(frozen=True, slots=True)
class Order:
    """Rules in the order to test them, and the problems from which that was decided."""

    rules: tuple[StoppingRule, ...]
    split: Split


def certify(
    traces: Iterable[Trace],
    rules: Sequence[StoppingRule],
    *,
    risk: str | Sequence[str],
    alpha: float | Sequence[float],
    delta: float,
    order: Order | None = None,
    train: Iterable[Trace] = (),
    test: str = "fixed_sequence",
) -> Certificate:
    """The cheapest rule, by net tokens, among those whose risk is certified to be below alpha.

    With probability at least 1 - delta over the draw of `traces` every certified rule has every risk below its
    alpha, so that choosing among them costs nothing.

    Args:
        traces: of independent problems; used for nothing else before, and no problem twice, but in a `TraceSet` that
            was drawn with replacement. A `TraceSet` hands its fingerprints on.
        rules: a family in the order in which to test it, the most careful first.
        risk: a name in `risks.RISKS`, or several that must all hold.
        alpha: the limit of the risk, in (0, 1); one for each of several.
        delta: the probability that the promise is wrong, in (0, 1).
        order: from `order_rules` on other problems; without it the rules are tested as they stand.
        train: what the rules themselves were made from: a grid of thresholds, a learned signal.
        test: a name in `multiple_testing.TESTS`.

    Raises:
        Infeasible: no rule that saves tokens can be certified; the message says why, and which n would do.
        CalibrationError: a value cannot be used, or a problem is in two splits.
    """
    check_level("delta", delta)
    limits = _limits(risk, alpha)
    recorded = TraceSet.of(traces)
    splits = _disjoint(recorded.split, order, tuple(train))
    if test not in TESTS:
        raise CalibrationError(f"unknown test {test!r}; there are {', '.join(TESTS)}")
    ordered = list(rules if order is None else order.rules)
    if not set(ordered) <= set(rules):
        raise CalibrationError("the order holds rules that are not in the family; order the same rules")
    trials = try_rules(recorded, ordered, limits)
    p_values = [p_value(trial, limits) for trial in trials]
    certified = TESTS[test](p_values, delta)
    if not certified:
        raise Infeasible(_why(trials[0], limits, delta))
    best = min((trials[index] for index in certified), key=lambda trial: sum(trial.net_tokens))
    _refuse_without_saving(recorded.traces, best, len(certified))
    return normal(
        Certificate(
            rule=best.rule,
            findings=_findings(best, limits, delta),
            delta=delta,
            test=test,
            order=tuple(trial.rule for trial in trials),
            p_values=tuple(p_values),
            num_certified=len(certified),
            num_problems=len(recorded),
            saving=_saving(recorded.traces, best),
            groups=_groups(recorded.traces, best, limits, delta),
            unlabelled=_unlabelled(recorded.traces, best.rule, limits[0].alpha, delta),
            splits=splits,
            fingerprints=recorded.fingerprints,
        )
    )


def order_rules(
    traces: Iterable[Trace], rules: Sequence[StoppingRule], *, risk: str | Sequence[str], alpha: float | Sequence[float]
) -> Order:
    """The rules that nothing beats in both risk and net tokens on `traces`, from the safest to the cheapest.

    Rules of several families, signals and cadences may be ordered together: the first half of Pareto testing.

    Args:
        traces: of problems that are not to be certified on.
    """
    recorded = TraceSet.of(traces)
    limits = _limits(risk, alpha)
    trials = try_rules(recorded, rules, limits)
    p_values = [p_value(trial, limits) for trial in trials]
    indices = pareto_order(p_values, [sum(trial.net_tokens) for trial in trials])
    return Order(tuple(rules[index] for index in indices), recorded.split)


def verify(certificate: Certificate, traces: Iterable[Trace]) -> None:
    """Recompute a certificate from the traces that it was made from.

    Raises:
        CalibrationError: these are other traces, or they do not give this certificate; the message names the field.
    """
    recorded = TraceSet.of(traces)
    if recorded.split.sha256 != certificate.splits.get("certify"):
        raise CalibrationError("these are not the traces that the certificate was made from; give those")
    risks = [finding.risk for finding in certificate.findings]
    alphas = [finding.alpha for finding in certificate.findings]
    again = certify(
        recorded, certificate.order, risk=risks, alpha=alphas, delta=certificate.delta, test=certificate.test
    )
    different = first_difference(certificate, replace(again, splits=certificate.splits))
    if different:
        raise CalibrationError(f"the traces give another {different} than the certificate says; certify again")


def _limits(risk: str | Sequence[str], alpha: float | Sequence[float]) -> list[Limit]:
    risks = [risk] if isinstance(risk, str) else list(risk)
    alphas = list(alpha) if isinstance(alpha, Sequence) else [float(alpha)]
    if not risks or len(risks) != len(alphas):
        raise CalibrationError(f"{len(risks)} risks have {len(alphas)} alphas; give one for each")
    for value in alphas:
        check_level("alpha", value)
    return [Limit(name, value) for name, value in zip(risks, alphas, strict=True)]


def _disjoint(certify: Split, order: Order | None, train: tuple[Trace, ...]) -> dict[str, str]:
    splits = {"certify": certify}
    splits |= {"order": order.split} if order else {}
    splits |= {"train": TraceSet(train).split} if train else {}
    refuse_overlap(splits)
    return {role: split.sha256 for role, split in splits.items()}


def _findings(trial: Trial, limits: Sequence[Limit], delta: float) -> tuple[Finding, ...]:
    findings = []
    for limit, losses in zip(limits, trial.losses, strict=True):
        k, n = count(losses)
        p, bound = binomial_p_value(k, n, limit.alpha), binomial_upper_bound(k, n, delta)
        findings.append(Finding(limit.risk, limit.alpha, n, k, p, bound))
    return tuple(findings)


def _unlabelled(traces: Sequence[Trace], rule: StoppingRule, alpha: float, delta: float) -> Finding:
    limits = [Limit("lost_correct", alpha)]
    (trial,) = try_rules([replace(trace, gold=None) for trace in traces], [rule], limits)
    return _findings(trial, limits, delta)[0]


def _saving(traces: Sequence[Trace], trial: Trial) -> Saving:
    """The net saving, one minus a ratio of totals.

    Source: Cochran (1977), Sampling Techniques, chapter 6, for its variance.
    """
    n, full = len(traces), [trace.full_tokens for trace in traces]
    ratio = sum(trial.net_tokens) / sum(full)
    residuals = [net - ratio * tokens for net, tokens in zip(trial.net_tokens, full, strict=True)]
    variance = math.fsum(residual**2 for residual in residuals) / max(1, n - 1) / n
    margin = _NORMAL_975 * math.sqrt(variance) / (sum(full) / n)
    return Saving(1 - ratio, 1 - ratio - margin, 1 - ratio + margin)


def _groups(traces: Sequence[Trace], trial: Trial, limits: Sequence[Limit], delta: float) -> tuple[Group, ...]:
    groups = []
    for name in sorted({trace.group for trace in traces}):
        members = [index for index, trace in enumerate(traces) if trace.group == name]
        losses = tuple(tuple(row[index] for index in members) for row in trial.losses)
        net_tokens = tuple(trial.net_tokens[index] for index in members)
        part = Trial(trial.rule, losses, net_tokens, tuple(trial.stopped[index] for index in members))
        saving = _saving([traces[index] for index in members], part)
        groups.append(Group(name, len(members), _findings(part, limits, delta), saving))
    return tuple(groups)


def _refuse_without_saving(traces: Sequence[Trace], best: Trial, num_certified: int) -> None:
    """A rule that never stops is certified easily, and would be an edge of its family and no answer."""
    net, full = sum(best.net_tokens), sum(trace.full_tokens for trace in traces)
    if net > full or not any(best.stopped):
        raise Infeasible(
            f"{num_certified} rules can be certified and none saves anything: the cheapest stops {sum(best.stopped)} "
            f"of {len(traces)} problems and spends {net} tokens, probes counted, of {full}; allow a larger alpha, "
            "probe more cheaply or take another signal"
        )


def _why(first: Trial, limits: Sequence[Limit], delta: float) -> str:
    """Why the first rule of the order could not be certified, and what would help."""
    worst = max(_findings(first, limits, delta), key=lambda finding: finding.p_value)
    least, num_problems = least_n(worst.alpha, delta), len(first.net_tokens)
    limit = f"{worst.risk} below {worst.alpha:g}"
    promise = f"{limit} at delta {delta:g} takes at least {least} problems, even without a loss"
    if num_problems < least:
        return f"{promise}; there are {num_problems}: record more or allow a larger alpha"
    if worst.n < least:
        return (
            f"{promise}; the first rule of the order stopped {worst.n} of {num_problems}: "
            "let order_rules find an order on other problems, or record more"
        )
    seen = f"the first rule of the order lost {worst.k} of {worst.n}, too many for {limit}"
    try:
        needed = plan(worst.alpha, delta, expected_risk=worst.k / worst.n)
    except Infeasible:
        return f"{seen}; no n will do at that rate, a limit above {worst.upper_bound:.3g} would hold for it"
    return f"{seen} at delta {delta:g}; at that rate {needed.n} problems would do nine times out of ten"
