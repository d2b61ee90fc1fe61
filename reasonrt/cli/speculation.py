"""`reasonrt bench speculation` and `plan speculation`: what calling the large model only where it pays is worth."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from reasonrt.cli.common import (
    ConfigOption,
    JsonOption,
    SplitOption,
    SuffixOption,
    TaskOption,
    TemperatureOption,
    bars,
    complete_policy,
    console,
    read_policy,
    run,
    start,
    write_json,
)
from reasonrt.config import Config, DiffusionConfig, VllmConfig, load_config
from reasonrt.errors import ConfigError, shown
from reasonrt.evals.report import Report
from reasonrt.evals.run import EvalProgress, PolicySpec, RunSettings
from reasonrt.evals.tasks import TaskProblem
from reasonrt.runtime import Runtime
from reasonrt.types import Limits

OUT = Path("runs/speculation")
_BLOCK = 20  # problems that an arm solves alone, so that its time is its own
_AGREEING = 40  # problems that the agreement of draft and target is measured on


def bench(
    out: Annotated[
        Path, typer.Option(help="Write into this folder; the same command continues from what is there.")
    ] = OUT,
    task: TaskOption = "zoo",
    split: SplitOption = "test",
    problems: Annotated[int, typer.Option(min=10, help="Measure accuracy on this many problems.")] = 400,
    timed: Annotated[
        int, typer.Option(min=10, help="Measure time on this many of these problems, the first ones.")
    ] = 100,
    inflate: Annotated[
        int, typer.Option(min=1, max=64, help="Measure time with a target that is this many times as wide.")
    ] = 1,
    concurrency: Annotated[
        list[int] | None, typer.Option(min=1, help="Measure time with this many concurrent problems; may be repeated.")
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option(help="Sweep the settings of this family of policies; may be repeated; by default all are swept."),
    ] = None,
    tokens_ahead: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=64, help="Let an engine of the target draft this many tokens ahead by itself; may be repeated."
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="Time this arm, by its name in the table, and leave out the others; may be repeated."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Leave out the timing of this arm, by its name in the table; may be repeated."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="End a problem after this many tokens.")] = 640,
    temperature: TemperatureOption = 0.0,
    suffix: SuffixOption = "",
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Measure accuracy and time of step-level policies against the target alone, in alternation.

    Speculation of the target's engine itself, token by token, is measured with each number of tokens ahead (2, 4, 8, 16
    and 32 by default), each in an engine of its own.
    """
    from reasonrt.benches import speculation_arms as arms
    from reasonrt.benches.agreement import step_agreement, token_agreement
    from reasonrt.benches.speculation import Pair, alone_speeds, bench_rows
    from reasonrt.benches.speculation_plot import plot_bench
    from reasonrt.evals.tasks import load_task

    settings = load_config(config)
    families = family or list(arms.SWEEPS)
    if unknown := sorted(set(families) - set(arms.SWEEPS)):
        raise ConfigError(f"unknown family {shown(unknown[0])}; there are {', '.join(arms.SWEEPS)}")
    engines = arms.token_level(sorted(set(tokens_ahead or arms.TOKENS_AHEAD)))
    left_out = arms.left_out(families, list(engines), skip or (), arm or ())
    drawn = load_task(task, max(problems, timed), split)
    levels = concurrency or [1, 8, 32]

    def run_settings(at_once: int, block: int) -> RunSettings:
        return RunSettings(task, Limits(max_tokens), at_once, temperature, prompt_suffix=suffix, block=block)

    async def agreeing(runtime: Runtime) -> tuple[float | None, float | None]:
        tokens = await token_agreement(runtime, drawn[:_AGREEING], Limits(max_tokens), suffix)
        steps = await step_agreement(runtime, drawn[:_AGREEING], max_tokens, out / "agreement", suffix)
        return tokens.share, steps

    async def work() -> tuple[Report, list[dict[str, Any]]]:
        specs = arms.accuracy_arms(families)
        if "reward" not in settings.engines:
            specs = [spec for spec in specs if spec.name != "oracle"]
        sweep = (drawn[:problems], specs, run_settings(48, 100), out / "accuracy")
        async with _evaluating(settings, [sweep]) as (runtime, evaluate_all):
            (swept,) = await evaluate_all()
            agreements = await agreeing(runtime)
        points = arms.operating_points(swept, families)
        timing = _timing_config(settings, inflate, {role: engines[role] for role in engines if role not in left_out})
        extra = [role for role in timing.engines if role in engines]
        timed_arms = arms.timing_arms(points, extra, left_out)
        timings = [
            (drawn[:timed], [arm.policy for arm in timed_arms], run_settings(level, 10 if level == 1 else 50),
             out / f"timed-{level}")
            for level in levels
        ]  # fmt: skip
        reading = _reading(drawn, RunSettings(task, Limits(1), min(levels), block=_BLOCK), out)
        async with _evaluating(timing, [*timings, reading]) as (_, evaluate_all):
            *reports, read = await evaluate_all()
        speeds = alone_speeds([*reports, read])
        rows = []
        for level, report in zip(levels, reports, strict=True):
            ahead = {role: arms.tokens_ahead_of(engines[role], level) for role in extra if role in engines}
            by_itself = frozenset(role for role in ahead if engines[role]["method"] != "draft_model")
            pair = Pair(_pair_name(timing), ahead, *agreements, _is_shared(timing), by_itself)
            rows += bench_rows(timed_arms, report, swept, level, speeds, pair)
        return swept, rows

    swept, rows = run(work(), out)
    label = f"target inflated {inflate} times (the same function, {inflate**2} times the work)" if inflate > 1 else ""
    _print_rows(rows, label)
    found = {"rows": rows, "swept": swept.rows(), "inflate": inflate, "temperature": temperature}
    for file in (out / "speculation.json", json_file):
        write_json(file, found)
    plot_bench(rows, swept, label or task, out / "speculation.png")
    console.print(f"[dim]journals, speculation.json and speculation.png are in {escape(str(out))}[/]")


def sampled_verification(
    out: Annotated[
        Path, typer.Option(help="Write into this folder; the same command continues from what is there.")
    ] = Path("runs/sampled-verification"),
    task: TaskOption = "zoo",
    split: SplitOption = "test",
    problems: Annotated[int, typer.Option(min=2, help="Draw answers to this many problems.")] = 100,
    seeds: Annotated[int, typer.Option(min=2, help="Draw this many answers to each problem.")] = 20,
    temperature: Annotated[float, typer.Option(min=0.01, max=2.0, help="Draw at this temperature.")] = 0.7,
    concurrency: Annotated[int, typer.Option(min=1, help="Solve this many problems concurrently.")] = 16,
    max_tokens: Annotated[int, typer.Option(min=1, help="End a problem after this many tokens.")] = 640,
    suffix: SuffixOption = "",
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Test whether verified answers at a temperature are drawn as the target draws its own."""
    from reasonrt.benches import sampled_verification as bench_of
    from reasonrt.evals.tasks import load_task

    drawn = load_task(task, problems, split)
    shared: dict[str, Any] = {"temperature": temperature, "prompt_suffix": suffix, "block": 50}
    runs = [RunSettings(task, Limits(max_tokens), concurrency, seed=seed, **shared) for seed in range(seeds)]
    evaluations = [(drawn, bench_of.ARMS, each, out / f"seed-{each.seed}") for each in runs]
    reports = run(_evaluate(load_config(config), evaluations), out)
    rows, powers = bench_of.verification_rows(reports), bench_of.powers(reports)
    table = Table("policy", "n", "accuracy", "as the target: p", "target's passes", "s/problem")
    for row in rows:
        table.add_row(
            escape(row["policy"]),
            str(row["n"]),
            f"{row['accuracy']:.1%}",
            "" if row["p_value"] is None else f"{row['p_value']:.4f}",
            f"{row['passes_per_problem']:.1f}",
            f"{row['seconds_per_problem']:.3f}",
        )
    console.print(table)
    seen = [share for share, power in powers.items() if share and power >= bench_of.POWER]
    console.print(
        f"at the level {bench_of.LEVEL} the test sees answers of which {min(seen):.0%} are the draft's with a "
        f"probability of {powers[min(seen)]:.0%}, and is wrong with {powers[0.0]:.0%}"
        if seen
        else "[yellow]the test would not see the draft's own answers: take more problems or seeds[/]"
    )
    about = {"temperature": temperature, "seeds": seeds, "problems": len(drawn)}
    write_json(json_file or out / "sampled-verification.json", about | {"rows": rows, "powers": powers})


def _timing_config(settings: Config, inflate: int, token_level: Mapping[str, Mapping[str, Any]]) -> Config:
    """The configuration with a target made wider, and with engines of it that speculate by themselves."""
    target = settings.engines["target"]
    if not isinstance(target, VllmConfig):
        if inflate > 1:
            raise ConfigError("only a target that runs in vLLM here can be inflated; leave --inflate out")
        return settings
    target = target.model_copy(update={"inflate": target.inflate * inflate})
    engines = dict(settings.engines) | {"target": target}
    draft = settings.engines["draft"]
    if isinstance(draft, VllmConfig):
        for role, speculative in token_level.items():
            known = {**speculative} | ({"model": draft.model} if speculative["method"] == "draft_model" else {})
            engines[role] = target.model_copy(update={"speculative": known})
    return settings.model_copy(update={"engines": engines})


def _pair_name(settings: Config) -> str:
    names = []
    for role in ("draft", "target"):
        engine = settings.engines[role]
        inflate = getattr(engine, "inflate", 1)
        model = str(getattr(engine, "model", None) or role).rpartition(":")[2].rpartition("/")[2]
        names.append(model + (f" x {inflate}" if inflate > 1 else ""))
    return " for ".join(names)


def _is_shared(settings: Config) -> bool:
    """Whether draft and target compute on the same device: engines on this machine do, unless their cores differ."""
    cores: list[set[int]] = []
    for role in ("draft", "target"):
        engine = settings.engines[role]
        if not isinstance(engine, VllmConfig | DiffusionConfig):
            return False
        spans = [part.split("-") for part in (engine.cores or "").split(",") if part]
        cores.append({core for span in spans for core in range(int(span[0]), int(span[-1]) + 1)})
    return not all(cores) or bool(cores[0] & cores[1])


Evaluation = tuple[Sequence[TaskProblem], Sequence[PolicySpec], RunSettings, Path]
"""On what to run, what, how, and where its journal is."""


def _reading(problems: Sequence[TaskProblem], settings: RunSettings, out: Path) -> Evaluation:
    from reasonrt.benches.speculation import reading_problems

    return reading_problems(problems), [PolicySpec("target"), PolicySpec("draft")], settings, out / "reading"


async def _evaluate(settings: Config, evaluations: Sequence[Evaluation]) -> list[Report]:
    """The reports of several evaluations on the same engines."""
    async with _evaluating(settings, evaluations) as (_, evaluate_all):
        return await evaluate_all()


@asynccontextmanager
async def _evaluating(
    settings: Config, evaluations: Sequence[Evaluation]
) -> AsyncIterator[tuple[Runtime, Callable[[], Awaitable[list[Report]]]]]:
    """The engines of several evaluations, and what runs these."""
    from reasonrt.evals.run import check_run, evaluate

    policies = [(spec.name, spec.options) for _, specs, _, _ in evaluations for spec in specs]
    runtime = Runtime.of(settings, policies=policies)
    for evaluation in evaluations:
        check_run(runtime, *evaluation)

    async def evaluate_all() -> list[Report]:
        reports = []
        with bars() as advance:
            for problems, specs, run_settings, out in evaluations:

                def show(told: EvalProgress, name: str = out.name) -> None:
                    advance(name, told.done, told.total)

                reports.append(await evaluate(runtime, problems, specs, run_settings, out, show))
        return reports

    await start(runtime)
    try:
        yield runtime, evaluate_all
    finally:
        await runtime.__aexit__()


def _print_rows(rows: Sequence[dict[str, Any]], title: str) -> None:
    table = Table(
        "concurrency",
        "policy",
        "accuracy",
        "- target",
        "s/problem",
        "speed-up",
        "plan",
        "arbitrage's s",
        "CPU s",
        "ahead",
        "by draft",
        title=title,
    )
    for row in rows:
        table.add_row(
            str(row["concurrency"]),
            escape(row["policy"]),
            f"{row['accuracy']:.1%}",
            "" if row["accuracy_minus_target"] is None else f"{100 * row['accuracy_minus_target']:+.1f}",
            f"{row['seconds_per_problem']:.3f}",
            f"{row['speedup_vs_target']:.2f} ({row['speedup_low']:.2f}-{row['speedup_high']:.2f})",
            f"{row['predicted_speedup']:.2f}" if row["predicted_speedup"] else "",
            f"x {row['times_arbitrage_s']:.2f} ({row['times_arbitrage_s_low']:.2f}-{row['times_arbitrage_s_high']:.2f})"
            if "times_arbitrage_s" in row
            else "",
            f"{row['cpu_s_per_problem']:.2f}",
            str(row["tokens_ahead"] or ""),
            f"{row['draft_token_share']:.0%}",
        )
    console.print(table)
    for row in rows:
        for part, told in row["warnings"].items():
            what = f"{row['policy']} at {row['concurrency']}: {told['n']} of {row['n_timed']} without {part}"
            console.print(f"[yellow]{escape(what)}: {escape(told['reason'])}[/]", soft_wrap=True)


def plan(
    task: TaskOption = "zoo",
    problems: Annotated[int, typer.Option(min=2, help="Measure both models on this many problems.")] = 20,
    concurrency: Annotated[int, typer.Option(min=1, help="Plan for this many concurrent problems.")] = 1,
    inflate: Annotated[int, typer.Option(min=1, max=64, help="Plan for a target that is this many times as wide.")] = 1,
    policy: Annotated[
        str,
        typer.Option(
            help="Say whether this policy pays, by what it asks of the target on the same problems.",
            autocompletion=complete_policy,
        ),
    ] = "arbitrage",
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="Plan for requests at this temperature.")] = 0.0,
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Measure both models alone, predict what each way of speculating takes, and say whether a policy of it pays."""
    import tempfile

    from reasonrt.benches.agreement import TokenAgreement, token_agreement
    from reasonrt.benches.speculation import alone_speeds, planned_arms
    from reasonrt.calibration.speedup import break_even_share
    from reasonrt.evals.tasks import load_task
    from reasonrt.policies.speculation.costs import planned, predicted_speedup
    from reasonrt.policies.speculation.verification import why_not_verify

    settings = _timing_config(load_config(config), inflate, {})
    drawn = load_task(task, problems)
    levels = sorted({1, concurrency if concurrency > 1 else 8})  # two tell what a pass costs, and what a token
    limits, name, options = Limits(640), *read_policy(policy)
    asked = {"": PolicySpec(name, options), "handed over": PolicySpec(name, {**options, "hand_over": True})}
    if "hand_over" in options or not _can_hand_over(name):
        del asked["handed over"]

    async def measure(folder: Path) -> tuple[list[Report], TokenAgreement, str]:
        specs = [PolicySpec("target"), PolicySpec("draft")]
        runs = [
            RunSettings(task, limits, at_once, temperature=temperature, block=max(5, at_once)) for at_once in levels
        ]
        timed = [(drawn, specs, each, folder / str(each.concurrency)) for each in runs]
        reading = _reading(drawn, RunSettings(task, Limits(1), levels[0], block=_BLOCK), folder)
        speculated = (drawn, list(asked.values()), runs[levels.index(concurrency)], folder / "speculation")
        async with _evaluating(settings, [*timed, reading, speculated]) as (runtime, evaluate_all):
            reports = await evaluate_all()
            agreement = TokenAgreement(why_not="the replay of its passes is greedy")
            if not temperature:
                agreement = await token_agreement(runtime, drawn, limits, concurrency=concurrency)
            reason = why_not_verify(runtime.engines["draft"], runtime.engines["target"], temperature)
            return reports, agreement, reason

    with tempfile.TemporaryDirectory() as folder:
        (*reports, speculated), agreement, not_verified = run(measure(Path(folder)))
    speeds, level = alone_speeds(reports), reports[levels.index(concurrency)]
    alone, written = level.rows()[0], reports[0].of("target")
    pair: dict[str, Any] = {
        "tokens": alone["tokens_per_problem"],
        "prompt_tokens": sum(record.usage["target"]["prefilled"] for record in written) / len(written),
        "at_once": concurrency,
        "is_shared": _is_shared(settings),
    }
    ways = {"whole_steps": False} | ({} if not_verified else {"verified": True})
    gains = {
        way: {
            share: predicted_speedup(planned(speeds["draft"], speeds["target"], share, is_verified=flag, **pair))
            for share in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
        }
        for way, flag in ways.items()
    }
    for role, speed in speeds.items():
        console.print(
            f"{escape(role)}: {1000 * speed.pass_s:.2f} ms per pass, {1000 * speed.write_s:.3f} ms more for each token "
            f"that it writes and {1000 * speed.read_s:.3f} ms for each that it reads"
        )
    if agreement.share is not None:
        console.print(f"the draft would have written {agreement.share:.1%} of the target's tokens")
    rows = planned_arms(level, speculated, speeds, agreement, pair["is_shared"])
    _print_plan(rows, f"{concurrency} concurrently")
    columns = {"whole_steps": "target writes the others: times as fast", "verified": "target verifies them"}
    table = Table("not asked about", *(columns[way] for way in gains))
    for share in gains["whole_steps"]:
        table.add_row(f"{share:.0%}", *(f"{gain[share]:.2f}" for gain in gains.values()))
    console.print(table)
    enough = {
        way: break_even_share(speeds["draft"], speeds["target"], is_verified=flag, **pair) for way, flag in ways.items()
    }
    for way, least in enough.items():
        words = way.replace("_", " ")
        console.print(
            f"[yellow]{words}: speculation does not pay here, whatever the target is spared.[/]"
            if least is None
            else f"{words}: it pays when the target is not asked about {least:.0%} of the tokens or more."
        )
    if not_verified:
        console.print(f"[yellow]verified: not with this pair: {escape(not_verified)}.[/]")
    verdict = _verdict(
        Report(speculated.task, [asked[""].label], speculated.of(asked[""].label)),
        lambda share, is_verified: predicted_speedup(
            planned(speeds["draft"], speeds["target"], share, is_verified=is_verified, **pair)
        ),
    )
    colour = "green" if verdict["pays"] else "yellow"
    console.print(f"[bold {colour}]{escape(verdict['says'])}[/]", soft_wrap=True)
    write_json(
        json_file,
        {"speeds": {role: asdict(speed) for role, speed in speeds.items()}, "break_even_share": enough,
         "predicted_speedup": gains, "arms": rows, "token_agreement": agreement.share, "not_verified": not_verified,
         "verdict": verdict},
    )  # fmt: skip


def _can_hand_over(policy: str) -> bool:
    from reasonrt.options import option_names
    from reasonrt.policies.registry import find_policy

    return any("hand_over" in option_names(kind) for kind in find_policy(policy).option_types())


def _print_plan(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    table = Table("way", "predicted s per problem", "times as fast", "measured s", title=title)
    for row in rows:
        if row["why_not"]:
            table.add_row(escape(row["way"]), f"[yellow]not with this pair: {escape(row['why_not'])}[/]")
            continue
        measured = "" if row["measured_s"] is None else f"{row['measured_s']:.3f}"
        table.add_row(escape(row["way"]), f"{row['predicted_s']:.3f}", f"{row['speedup']:.2f}", measured)
    console.print(table)


def _verdict(report: Report, gain: Callable[[float, bool], float]) -> dict[str, Any]:
    """Whether a policy pays, by the share of the steps that it did not ask the target about.

    Args:
        gain: how many times as fast as the target alone, by that share and whether the target verifies.
    """
    (label,) = report.labels
    records = [record for record in report.of(label) if record.details.get("steps")]
    warnings = [record.warnings["speculation"] for record in report.of(label) if "speculation" in record.warnings]
    if not records or len(warnings) == len(report.of(label)):
        reason = warnings[0] if warnings else "it wrote no step"
        return {"policy": label, "pays": False, "says": f"{label} does not speculate with this pair: {reason}"}
    steps, escalations = (sum(record.details[key] for record in records) for key in ("steps", "escalations"))
    share = 1 - escalations / steps
    times = gain(share, any(record.details["verifications"] for record in records))
    does = "pays" if times > 1 else "does not pay"
    says = (
        f"{label} {does} here: it does not ask the target about {share:.0%} of the steps, which is {times:.2f} times "
        "as fast as the target alone"
    )
    return {"policy": label, "share": share, "predicted_speedup": times, "pays": times > 1, "says": says}
