"""From recorded traces to a promise: the cheapest stopping rule whose risk is certified to be below alpha.

`certify` is fixed-sequence testing with exact binomial p-values, along an order that the problems to certify on had
no part in. It either returns a certificate or raises `Infeasible`. `certify_levels` makes several that hold together,
and a `Ledger` has all tries on the same problems share one delta.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from reasonrt.calibration.stopping.bounds import (
    anytime_p_value,
    anytime_upper_bound,
    binomial_p_value,
    binomial_upper_bound,
)
from reasonrt.calibration.stopping.ledger import Declaration, Ledger, ProblemSet
from reasonrt.calibration.stopping.multiple_testing import TESTS, pareto_order
from reasonrt.calibration.stopping.sample_size import Infeasible, check_level, least_n, plan
from reasonrt.calibration.stopping.trials import Limit, Trial, count, p_value, try_rules
from reasonrt.errors import CalibrationError, shown
from reasonrt.policies.stopping.attempt import Attempt
from reasonrt.policies.stopping.certificate import Certificate, Finding, Group, Saving, first_difference, normal
from reasonrt.policies.stopping.files import canonical
from reasonrt.policies.stopping.rules import StoppingRule, from_json, to_json
from reasonrt.policies.stopping.traces import Split, Trace, TraceSet, refuse_overlap

_NORMAL_975 = 1.959963984540054  # the quantile of a 95 % interval


@dataclass(frozen=True, slots=True)
class Order:
    """Rules in the order to test them, and the problems from which that was decided."""

    rules: tuple[StoppingRule, ...]
    split: Split


@dataclass(frozen=True, slots=True)
class Level:
    """One promise to certify: every risk below its alpha, with the order to test the rules in.

    Attributes:
        risk, alpha, order: as in `certify`.
        rules, train: as in `certify`, of this level alone; None are those of all levels.
    """

    risk: str | Sequence[str]
    alpha: float | Sequence[float]
    order: Order | None = None
    rules: Sequence[StoppingRule] | None = None
    train: Iterable[Trace] | None = None


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
    growing: bool = False,
    ledger: Ledger | None = None,
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
        delta: the probability that the promise is wrong, in (0, 1); under a ledger, that any certificate is which ever
            comes from these problems.
        order: from `order_rules` on other problems; without it the rules are tested as they stand.
        train: what the rules themselves were made from: a grid of thresholds, a learned signal.
        test: a name in `multiple_testing.TESTS`.
        growing: whether the same may be certified again when problems have been added, as often as one likes: with
            p-values that hold at any time, which take more problems.
        ledger: where this try is written down before its result is known, and from which it has its part of delta.
            Without one nothing else may ever be tried on these problems.

    Raises:
        Infeasible: no rule that saves tokens can be certified; the message says why, and which n would do.
        CalibrationError: a value cannot be used, a problem is in two splits, or the ledger does not allow it.
    """
    (found,) = certify_levels(
        traces, rules, [Level(risk, alpha, order)],
        delta=delta, train=train, test=test, growing=growing, ledger=ledger,
    )  # fmt: skip
    if isinstance(found, Infeasible):
        raise found
    return found


def certify_levels(
    traces: Iterable[Trace],
    rules: Sequence[StoppingRule],
    levels: Sequence[Level],
    *,
    delta: float,
    train: Iterable[Trace] = (),
    test: str = "fixed_sequence",
    growing: bool = False,
    ledger: Ledger | None = None,
) -> list[Certificate | Infeasible]:
    """A certificate for each level, which hold together with probability at least 1 - delta, or why there is none.

    They share delta in equal parts, so that requests may choose among them. The arguments are those of `certify`.

    Raises:
        Infeasible: there are too few problems for every level, which is known without a try.
        CalibrationError: as in `certify`.
    """
    check_level("delta", delta)
    if test not in TESTS:
        raise CalibrationError(f"unknown test {shown(test)}; there are {', '.join(TESTS)}")
    if not levels:
        raise CalibrationError("there are no levels to certify; give at least one")
    recorded, trained_on = TraceSet.of(traces), tuple(train)
    split = recorded.split
    tried = []
    for level in levels:
        limits, order = _limits(level.risk, level.alpha), level.order
        if not isinstance(order, Order | None):  # a list does not say what it was learned on
            raise CalibrationError("an order is what order_rules returns, so that the problems behind it are known")
        splits = _disjoint(split, order, trained_on if level.train is None else tuple(level.train))
        own = rules if level.rules is None else level.rules
        ordered = list(own if order is None else order.rules)
        if not set(ordered) <= set(own):
            raise CalibrationError("the order holds rules that are not in the family; order the same rules")
        # counted before the try is written down, so that what is invalid costs none; told to nobody until it is
        tried.append(_Tried(try_rules(recorded, ordered, limits), limits, splits, test, growing))
    declared = Declaration(tuple(each.promise for each in tried), tuple(each.sha256 for each in tried), delta, growing)
    if len(set(declared.levels)) < len(levels):
        raise CalibrationError("two levels are the same, and both would pay for it; give each once")

    def check(attempt: Attempt) -> None:
        too_few = [each.too_few(attempt.tested_at(delta), "record more") for each in tried]
        if all(too_few):  # known without a look, which costs no try
            raise Infeasible(str(too_few[0]))

    first = Attempt(split.sha256, 1 if ledger else None, declared.levels)
    check(first)
    attempt = ledger.enter(ProblemSet.of_traces(recorded), declared, check) if ledger else first
    found: list[Certificate | Infeasible] = []
    for each in tried:
        try:
            found.append(_certificate(recorded, each, delta, attempt))
        except Infeasible as error:
            found.append(error)
    return found


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


def verify(certificate: Certificate, traces: Iterable[Trace], ledger: Ledger | None = None) -> None:
    """Recompute a certificate from the traces that it was made from.

    Args:
        ledger: that it was certified under, in which its try must stand; of a certificate that was made without one,
            any that may know of tries on its problems.

    Raises:
        CalibrationError: these are other traces, or they do not give this certificate; the message names the field.
    """
    recorded = TraceSet.of(traces)
    if recorded.split.sha256 != certificate.splits.get("certify"):
        raise CalibrationError("these are not the traces that the certificate was made from; give those")
    if ledger:
        ledger.confirm(certificate, recorded)
    limits = [Limit(finding.risk, finding.alpha) for finding in certificate.findings]
    trials = try_rules(recorded, certificate.order, limits)
    tried = _Tried(trials, limits, certificate.splits, certificate.test, certificate.growing)
    different = first_difference(certificate, _certificate(recorded, tried, certificate.delta, certificate.attempt))
    if different:
        raise CalibrationError(f"the traces give another {different} than the certificate says; certify again")
    if tried.sha256 not in certificate.attempt.levels:
        raise CalibrationError("the certificate is of another test than its try has declared; certify again")


@dataclass(frozen=True, slots=True)
class _Tried:
    """The rules of one level, in their order, on the problems to certify on, and how they are to be tested."""

    trials: Sequence[Trial]
    limits: Sequence[Limit]
    splits: Mapping[str, str]
    test: str
    growing: bool

    @property
    def promise(self) -> str:
        return " and ".join(f"{limit.risk} below {limit.alpha:g}" for limit in self.limits)

    @property
    def sha256(self) -> str:
        """Of all that decides the test, and of nothing that the problems have shown."""
        # as they are read back, since 1 and 1.0 are one threshold
        rules = [to_json(from_json(to_json(trial.rule))) for trial in self.trials]
        declared = [rules, [asdict(limit) for limit in self.limits], self.test, self.growing]
        return hashlib.sha256(canonical(declared).encode()).hexdigest()

    def too_few(self, level: float, more: str) -> str | None:
        """Why nothing can be certified, whatever the problems show; None where there are enough of them."""
        num_problems, limit = len(self.trials[0].net_tokens), min(self.limits, key=lambda limit: limit.alpha)
        if num_problems >= (least := least_n(limit.alpha, level, self.growing)):
            return None
        return (
            f"{limit.risk} below {limit.alpha:g} at delta {level:.3g} takes at least {least} problems, even without a "
            f"loss; there are {num_problems}: {more} or allow a larger alpha"
        )


def _certificate(recorded: TraceSet, tried: _Tried, delta: float, attempt: Attempt) -> Certificate:
    """Raises: Infeasible."""
    level, trials, limits = attempt.tested_at(delta), tried.trials, tried.limits
    p_values = [p_value(trial, limits, tried.growing) for trial in trials]
    certified = TESTS[tried.test](p_values, level)
    if not certified:
        raise Infeasible(_why(tried, level, "record more and look again" if tried.growing else "take new problems"))
    best = min((trials[index] for index in certified), key=lambda trial: sum(trial.net_tokens))
    _refuse_without_saving(recorded.traces, best, len(certified))
    find = partial(_findings, limits=limits, level=level, growing=tried.growing)
    return normal(
        Certificate(
            rule=best.rule,
            findings=find(best),
            delta=delta,
            attempt=attempt,
            growing=tried.growing,
            test=tried.test,
            order=tuple(trial.rule for trial in trials),
            p_values=tuple(p_values),
            num_certified=len(certified),
            num_problems=len(recorded),
            saving=_saving(recorded.traces, best),
            groups=_groups(recorded.traces, best, find),
            unlabelled=_unlabelled(recorded.traces, best.rule, limits[0].alpha, level, tried.growing),
            splits=tried.splits,
            fingerprints=recorded.fingerprints,
        )
    )


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


def _findings(trial: Trial, limits: Sequence[Limit], level: float, growing: bool) -> tuple[Finding, ...]:
    of_one, upper_bound = (
        (anytime_p_value, anytime_upper_bound) if growing else (binomial_p_value, binomial_upper_bound)
    )
    findings = []
    for limit, losses in zip(limits, trial.losses, strict=True):
        k, n = count(losses)
        findings.append(Finding(limit.risk, limit.alpha, n, k, of_one(k, n, limit.alpha), upper_bound(k, n, level)))
    return tuple(findings)


def _unlabelled(traces: Sequence[Trace], rule: StoppingRule, alpha: float, level: float, growing: bool) -> Finding:
    limits = [Limit("lost_correct", alpha)]
    (trial,) = try_rules([replace(trace, gold=None) for trace in traces], [rule], limits)
    return _findings(trial, limits, level, growing)[0]


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


def _groups(traces: Sequence[Trace], trial: Trial, find: Callable[[Trial], tuple[Finding, ...]]) -> tuple[Group, ...]:
    groups = []
    for name in sorted({trace.group for trace in traces}):
        members = [index for index, trace in enumerate(traces) if trace.group == name]
        losses = tuple(tuple(row[index] for index in members) for row in trial.losses)
        net_tokens = tuple(trial.net_tokens[index] for index in members)
        part = Trial(trial.rule, losses, net_tokens, tuple(trial.stopped[index] for index in members))
        saving = _saving([traces[index] for index in members], part)
        groups.append(Group(name, len(members), find(part), saving))
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


def _why(tried: _Tried, level: float, more: str) -> str:
    """Why the first rule of the order could not be certified, and what would help.

    Args:
        more: how to come to more problems, which depends on what has been looked at.
    """
    if too_few := tried.too_few(level, more):
        return too_few
    first = tried.trials[0]
    findings = _findings(first, tried.limits, level, tried.growing)
    worst = max(findings, key=lambda finding: finding.p_value)
    limit = f"{worst.risk} below {worst.alpha:g}"
    if worst.n < (least := least_n(worst.alpha, level, tried.growing)):
        return (
            f"{limit} at delta {level:.3g} takes at least {least} problems, even without a loss; the first rule of the "
            f"order stopped {worst.n} of {len(first.net_tokens)}: let order_rules find an order on other problems, or "
            f"{more}"
        )
    seen = f"the first rule of the order lost {worst.k} of {worst.n}, too many for {limit}"
    try:
        needed = plan(worst.alpha, level, expected_risk=worst.k / worst.n, growing=tried.growing)
    except Infeasible:
        return f"{seen}; no n will do at that rate, a limit above {worst.upper_bound:.3g} would hold for it"
    would_do = "problems would do nine times out of ten, these and more"
    if not tried.growing:
        would_do = "new problems would do nine times out of ten; to add to these takes growing=True (--growing)"
    return f"{seen} at delta {level:.3g}; at that rate {needed.n} {would_do}"
