"""What stopping saves on fresh problems in real engines: every family under its certificate, and papers' settings.

Each arm is a policy of `reasonrt eval`, compared problem by problem with the same policy thinking to the end.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reasonrt.calibration.stopping.candidates import FAMILIES, Splits, candidates
from reasonrt.calibration.stopping.certification import Level, certify_levels
from reasonrt.calibration.stopping.families import published_rules
from reasonrt.calibration.stopping.ledger import Ledger
from reasonrt.calibration.stopping.sample_size import Infeasible
from reasonrt.errors import EvalError, shown
from reasonrt.evals.report import Report
from reasonrt.evals.run import EvalProgress, PolicySpec, RunSettings, evaluate
from reasonrt.evals.statistics import wilson_interval
from reasonrt.evals.tasks import TaskProblem
from reasonrt.evals.trace_recording import TraceSettings, trace_of
from reasonrt.policies.stopping.certificate import Certificate
from reasonrt.policies.stopping.files import FILES
from reasonrt.policies.stopping.loop import AUTHOR
from reasonrt.policies.stopping.replay import replay
from reasonrt.policies.stopping.rules import StoppingRule
from reasonrt.policies.stopping.schedule import Schedule
from reasonrt.policies.stopping.traces import TraceSet
from reasonrt.runtime import Runtime
from reasonrt.types import Completion, Limits, Request
from reasonrt.writing import seed_of

ALL = "all"  # families that are ordered on other problems, together
CERTIFIED = ", certified"  # ends the name of a family's arm


@dataclass(frozen=True, slots=True)
class Arm:
    """One row: what it is called, what runs, and what it is certified by, with the family of its rules."""

    name: str
    policy: PolicySpec
    family: str | None = None
    certificate: Certificate | None = None


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """What is measured.

    Attributes:
        out: the run's folder; what its journals hold is not done again.
        problems: for risk and tokens.
        timed: for seconds, at each of `levels` concurrent problems; the first ones of these problems.
        timed_arms: of these, the ones that are timed; None times all.
        replayed: recorded and served, to compare where they stop; 0 leaves it out.
        replayed_at_once: how many of these run concurrently.
        arms: names of the arms other than thinking to the end; None runs all.
    """

    out: Path
    task: str
    limits: Limits
    problems: int = 500
    timed: int = 100
    replayed: int = 200
    levels: Sequence[int] = (1, 16)
    replayed_at_once: int = 1
    arms: Sequence[str] | None = None
    timed_arms: Sequence[str] | None = None


async def measure_live(
    model: str,
    runtime: Runtime,
    problems: Sequence[TaskProblem],
    traces: TraceSet,
    certificates: Mapping[str, Certificate | str],
    settings: LiveSettings,
    on_progress: Callable[[str, EvalProgress], None] = lambda name, progress: None,
) -> dict[str, Any]:
    """Measure every arm on the same problems: `rows`, and under `replay` whether live stops are those of replay.

    Args:
        model: what the rows call it.
        traces: those certified on; they name the policy and the schedule.
        certificates: by family, from `certify_families`.
    """
    arms = _named(live_arms(certificates, traces, settings.out / "certificates"), settings.arms)
    to_time = _named(arms, settings.timed_arms)
    temperature = FILES.parse_json(traces.fingerprints.sampling, "the sampling of the traces")["temperature"]

    async def solved(name: str, num: int, at_once: int, arms: Sequence[Arm]) -> Report:
        block = 10 if at_once == 1 else 50
        how = RunSettings(settings.task, settings.limits, at_once, temperature, block=block)
        return await evaluate(
            runtime, problems[:num], [arm.policy for arm in arms], how, settings.out / name,
            lambda progress: on_progress(name, progress),
        )  # fmt: skip

    report = await solved("risk", settings.problems, max(settings.levels), arms)
    timed = {level: await solved(f"timed-{level}", settings.timed, level, to_time) for level in settings.levels}
    found: dict[str, Any] = {"rows": live_rows(model, arms, report, timed)}
    certified = next((arm for arm in arms if arm.certificate), None)
    if certified and settings.replayed:
        schedule = Schedule.from_json(traces.fingerprints.schedule)
        full = arms[0].policy
        recording = TraceSettings(
            full.name,
            full.options,
            schedule,
            limits=settings.limits,
            temperature=temperature,
            concurrency=settings.replayed_at_once,
        )
        found["replay"] = await replay_row(runtime, problems[: settings.replayed], recording, certified)
    return found


def _named(arms: Sequence[Arm], names: Sequence[str] | None) -> list[Arm]:
    """The first arm, which the others are compared with, and those of these names."""
    known = [arm.name for arm in arms]
    if unknown := sorted(set(names or ()) - set(known)):
        raise EvalError(f"there is no arm {shown(unknown[0])}; there are {', '.join(known)}")
    return [arm for arm in arms if names is None or arm.name in (known[0], *names)]


def certify_families(
    parts: Splits,
    alpha: float,
    delta: float,
    risk: str = "lost_correct",
    families: Sequence[str] = (ALL, *FAMILIES),
    ledger: Ledger | None = None,
) -> dict[str, Certificate | str]:
    """A certificate for each family, or why there is none.

    Args:
        ledger: under it the families are the levels of one try and hold together; without one, each is at `delta` by
            itself.
    """
    levels: dict[str, Level] = {}
    for name in families:
        made = candidates(parts, [] if name == ALL else [name], risk)
        levels[name] = Level(risk, alpha, made.order(risk, alpha), made.rules, made.train)
    tests = {name: level.order.rules if level.order else tuple(level.rules or ()) for name, level in levels.items()}
    different = {test: levels[name] for name, test in tests.items()}  # all may be ordered like one of them
    found: dict[tuple[StoppingRule, ...], Certificate | str] = {}
    for together in [list(different)] if ledger and different else [[test] for test in different]:
        try:
            tried = [different[test] for test in together]
            certified = certify_levels(parts.certify, (), tried, delta=delta, ledger=ledger)
        except Infeasible as error:
            certified = [error] * len(together)
        for test, each in zip(together, certified, strict=True):
            found[test] = str(each) if isinstance(each, Infeasible) else each
    return {name: found[test] for name, test in tests.items()}


def policy_of(traces: TraceSet) -> PolicySpec:
    """The policy that generated these traces.

    Raises:
        CalibrationError: the traces do not say.
    """
    found = FILES.parse_json(traces.fingerprints.policy, "the policy of the traces")
    return PolicySpec(found["name"], found["options"])


def live_arms(certificates: Mapping[str, Certificate | str], traces: TraceSet, folder: Path) -> list[Arm]:
    """The arms, thinking to the end first. The certificates are written into `folder`, where the engine reads them."""
    full = policy_of(traces)
    name, own = full.name, full.options
    arms = [Arm("to the end", full)]
    folder.mkdir(parents=True, exist_ok=True)
    for family, certificate in certificates.items():
        if isinstance(certificate, Certificate):
            file = folder / f"{family}-{certificate.sha256[:12]}.json"  # a journal knows it by its name
            certificate.write(file)
            options = {**own, "stopping": {"certificate": str(file), "shadow": 0}}
            arms.append(Arm(family + CERTIFIED, PolicySpec(name, options), family, certificate))
    recorded = Schedule.from_json(traces.fingerprints.schedule)
    schedule = asdict(replace(recorded, first_tokens=1, growth=1.0, block_tokens=1))  # every step
    for paper, rule in published_rules().items():
        stopping = {"rule": asdict(rule), "schedule": schedule}
        arms.append(Arm(f"{paper}, as published", PolicySpec(name, {**own, "stopping": stopping})))
    return arms


def live_rows(model: str, arms: Sequence[Arm], report: Report, timed: Mapping[int, Report]) -> list[dict[str, Any]]:
    """One row per arm: what it loses against thinking to the end, and what it saves; `ok` of one under a certificate.

    Args:
        report: of all arms on the same problems; risk and tokens are from it.
        timed: by the number of concurrent problems; seconds are from these.
    """
    full = {record.problem: record for record in report.of(arms[0].policy.label)}
    rows = []
    for arm in arms:
        records = [record for record in report.of(arm.policy.label) if record.problem in full]
        lost = sum(full[record.problem].correct and not record.correct for record in records)
        low, high = wilson_interval(lost, len(records))
        outcomes = [record.details.get("stopping", {}) for record in records]
        tokens = sum(record.tokens for record in records)
        discarded = sum(d.get("probe_tokens", 0) - d.get("returned_tokens", 0) for d in outcomes)
        thrown_away = sum(usage["discarded"] for record in records for usage in record.usage.values())
        row = {
            "part": "live",
            "model": model,
            "arm": arm.name,
            "family": arm.family,
            "n": len(records),
            "risk": lost / len(records),
            "risk_low": low,
            "risk_high": high,
            "accuracy": sum(record.correct for record in records) / len(records),
            "accuracy_to_the_end": sum(full[record.problem].correct for record in records) / len(records),
            "tokens_per_problem": tokens / len(records),
            "net_saving": 1 - tokens / sum(full[record.problem].tokens for record in records),
            "probe_share": discarded / tokens,  # without the answers that were returned
            "in_vain_tokens_per_problem": (thrown_away - discarded) / len(records),  # before a decision
            "other_answers": sum(record.answer != full[record.problem].answer for record in records) / len(records),
            "stopped": sum(d.get("action") == "answer" for d in outcomes) / len(records),
            "gave_up": sum(d.get("action") == "give_up" for d in outcomes) / len(records),
            "dropped_probes": sum(d.get("num_dropped", 0) for d in outcomes),
            "fallbacks": sum("fallback" in d for d in outcomes),
        }
        if arm.certificate:
            alpha = arm.certificate.alpha
            row |= {"alpha": alpha, "ok": low <= alpha, "certified_saving": arm.certificate.saving.net}
        rows.append(row | _times(arm, arms[0], timed))
    return rows


def _times(arm: Arm, full: Arm, timed: Mapping[int, Report]) -> dict[str, float]:
    """At each number of concurrent problems, and `seconds_saving` at the last one."""
    times = {}
    for at_once, report in timed.items():
        seconds = {row["policy"]: row["seconds_per_problem"] for row in report.rows()}
        if arm.policy.label in seconds:
            times[f"seconds_per_problem_at_{at_once}"] = seconds[arm.policy.label]
            saving = 1 - seconds[arm.policy.label] / seconds[full.policy.label]
            times |= {f"seconds_saving_at_{at_once}": saving, "seconds_saving": saving}
    return times


async def replay_row(
    runtime: Runtime, problems: Sequence[TaskProblem], settings: TraceSettings, arm: Arm
) -> dict[str, Any]:
    """Each problem recorded in full, and served by a certified `arm`: whether both stop at the same token.

    An engine whose numbers depend on what else is in its batch may write another text the second time; requests
    whose text up to the stop is the same are also counted by themselves.
    """
    if arm.certificate is None:
        raise EvalError(f"{arm.name} has no certificate to compare with")
    recorded = await _completed(
        runtime, [settings.request(problem.question, problem.id) for problem in problems], settings
    )
    served_by = arm.policy
    requests = [
        Request.ask(
            problem.question,
            served_by.name,
            options=served_by.options,
            limits=settings.limits,
            temperature=settings.temperature,
            seed=seed_of(settings.seed, problem.id),
        )
        for problem in problems
    ]
    live = await _completed(runtime, requests, settings)
    same_stop = same_text = same_both = 0
    for problem, full, served in zip(problems, recorded, live, strict=True):
        trace = trace_of(problem, full)
        outcome = replay(arm.certificate.rule, trace)
        expected = None if outcome.index is None else trace.checkpoints[outcome.index].tokens
        is_stop = served.details.get("stopping", {}).get("tokens") == expected
        is_text = _begins_alike(full, served)
        same_stop, same_text, same_both = same_stop + is_stop, same_text + is_text, same_both + (is_stop and is_text)
    return {"n": len(problems), "same_stop": same_stop, "same_text": same_text, "same_stop_of_same_text": same_both}


async def _completed(runtime: Runtime, requests: Sequence[Request], settings: TraceSettings) -> list[Completion]:
    found: dict[int, Completion] = {}
    async with aclosing(runtime.solve_all(requests, settings.concurrency)) as results:
        async for index, result in results:
            if not isinstance(result, Completion):
                raise EvalError(f"a request failed: {result}; run it again") from result
            found[index] = result
    return [found[index] for index in range(len(requests))]


def _begins_alike(full: Completion, served: Completion) -> bool:
    steps = [step.text for step in served.steps if step.author != AUTHOR]
    stopped = served.details.get("stopping", {}).get("action") == "answer"
    steps = steps[:-1] if stopped else steps
    return [step.text for step in full.steps[: len(steps)]] == steps
