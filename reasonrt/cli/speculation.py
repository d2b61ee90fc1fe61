"""`reasonrt bench speculation` and `plan speculation`: what calling the large model only where it pays is worth."""

from collections.abc import Callable, Sequence
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
TOKEN_LEVEL: dict[str, dict[str, Any]] = {
    "target, n-gram": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4},
    "target, draft model": {"method": "draft_model", "num_speculative_tokens": 4},
}


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
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Leave out the timing of this arm, by its name in the table; may be repeated."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="End a problem after this many tokens.")] = 640,
    suffix: SuffixOption = "",
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Measure accuracy and time of step-level policies against the target alone, in alternation."""
    from reasonrt.benches import speculation_arms as arms
    from reasonrt.benches.speculation import alone_speeds, bench_rows, plot_bench
    from reasonrt.evals.tasks import load_task

    settings = load_config(config)
    families = family or list(arms.SWEEPS)
    if unknown := sorted(set(families) - set(arms.SWEEPS)):
        raise ConfigError(f"unknown family {shown(unknown[0])}; there are {', '.join(arms.SWEEPS)}")
    arms.check_skipped(families, list(TOKEN_LEVEL), skip or ())
    drawn = load_task(task, max(problems, timed), split)
    levels = concurrency or [1, 8, 32]

    def run_settings(at_once: int, block: int) -> RunSettings:
        return RunSettings(task, Limits(max_tokens), at_once, prompt_suffix=suffix, block=block)

    async def work() -> tuple[Report, list[dict[str, Any]]]:
        specs = arms.accuracy_arms(families)
        if "reward" not in settings.engines:
            specs = [spec for spec in specs if spec.name != "oracle"]
        (swept,) = await _evaluate(settings, [(drawn[:problems], specs, run_settings(48, 100), out / "accuracy")])
        points = arms.operating_points(swept, families)
        timing = _timing_config(settings, inflate, [role for role in TOKEN_LEVEL if role not in (skip or ())])
        extra = [role for role in timing.engines if role in TOKEN_LEVEL]
        chosen = [arms.timing_arms(points, extra, skip or ()) for _ in levels]
        *reports, read = await _evaluate(
            timing,
            [
                (
                    drawn[:timed],
                    [arm.policy for arm in arms_of],
                    run_settings(level, 10 if level == 1 else 50),
                    out / f"timed-{level}",
                )
                for level, arms_of in zip(levels, chosen, strict=True)
            ]
            + [_reading(drawn, RunSettings(task, Limits(1), min(levels), block=_BLOCK), out)],
        )
        speeds, is_shared = alone_speeds([*reports, read]), _is_shared(timing)
        rows = [
            row
            for level, arms_of, report in zip(levels, chosen, reports, strict=True)
            for row in bench_rows(arms_of, report, swept, level, speeds, is_shared)
        ]
        return swept, rows

    swept, rows = run(work())
    label = f"target inflated {inflate} times (the same function, {inflate**2} times the work)" if inflate > 1 else ""
    _print_rows(rows, label)
    write_json(json_file or out / "speculation.json", {"rows": rows, "swept": swept.rows(), "inflate": inflate})
    plot_bench(rows, swept, label or task, out / "speculation.png")
    console.print(f"[dim]journals, speculation.json and speculation.png are in {out}[/]")


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
    reports = run(_evaluate(load_config(config), evaluations))
    rows, powers = bench_of.verification_rows(reports), bench_of.powers(reports)
    table = Table("policy", "n", "accuracy", "as the target: p", "target's passes", "s/problem")
    for row in rows:
        table.add_row(
            row["policy"],
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


def _timing_config(settings: Config, inflate: int, token_level: Sequence[str]) -> Config:
    target = settings.engines["target"]
    if not isinstance(target, VllmConfig):
        if inflate > 1:
            raise ConfigError("only a target that runs in vLLM here can be inflated; leave --inflate out")
        return settings
    target = target.model_copy(update={"inflate": inflate})
    engines = dict(settings.engines) | {"target": target}
    draft = settings.engines["draft"]
    if isinstance(draft, VllmConfig):
        for role in token_level:
            speculative = TOKEN_LEVEL[role]
            known = speculative | ({"model": draft.model} if speculative["method"] == "draft_model" else {})
            engines[role] = target.model_copy(update={"speculative": known})
    return settings.model_copy(update={"engines": engines})


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
    from reasonrt.evals.run import check_run, evaluate

    policies = [(spec.name, spec.options) for _, specs, _, _ in evaluations for spec in specs]
    runtime = Runtime.of(settings, policies=policies)
    for evaluation in evaluations:
        check_run(runtime, *evaluation)
    reports = []
    await start(runtime)
    try:
        with console.status("solving ...") as status:
            for problems, specs, run_settings, out in evaluations:

                def advance(progress: EvalProgress, name: str = out.name) -> None:
                    status.update(f"{name}: {progress.done} of {progress.total}, {progress.label}")

                reports.append(await evaluate(runtime, problems, specs, run_settings, out, advance))
            return reports
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
        "by draft",
        "useless",
        title=title,
    )
    for row in rows:
        table.add_row(
            str(row["concurrency"]),
            row["policy"],
            f"{row['accuracy']:.1%}",
            "" if row["accuracy_minus_target"] is None else f"{100 * row['accuracy_minus_target']:+.1f}",
            f"{row['seconds_per_problem']:.3f}",
            f"{row['speedup_vs_target']:.2f} ({row['speedup_low']:.2f}-{row['speedup_high']:.2f})",
            f"{row['predicted_speedup']:.2f}" if row["predicted_speedup"] else "",
            f"x {row['times_arbitrage_s']:.2f} ({row['times_arbitrage_s_low']:.2f}-{row['times_arbitrage_s_high']:.2f})"
            if "times_arbitrage_s" in row
            else "",
            f"{row['draft_token_share']:.0%}",
            f"{row['useless_escalation_rate']:.0%}" if row["escalation_rate"] else "",
        )
    console.print(table)


def plan(
    task: TaskOption = "zoo",
    problems: Annotated[int, typer.Option(min=2, help="Measure both models on this many problems.")] = 20,
    concurrency: Annotated[int, typer.Option(min=1, help="Plan for this many concurrent problems.")] = 1,
    inflate: Annotated[int, typer.Option(min=1, max=64, help="Plan for a target that is this many times as wide.")] = 1,
    policy: Annotated[
        str, typer.Option(help="Say whether this policy pays, by what it asks of the target on the same problems.")
    ] = "arbitrage",
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Measure both models alone, predict what speculation gains with them, and say whether a policy of it pays."""
    import tempfile

    from reasonrt.benches.speculation import alone_speeds
    from reasonrt.calibration.speedup import break_even_share, planned, predicted_speedup
    from reasonrt.evals.tasks import load_task

    settings = _timing_config(load_config(config), inflate, token_level=())
    drawn = load_task(task, problems)
    levels = sorted({1, concurrency if concurrency > 1 else 8})  # two tell what a pass costs, and what a token

    async def measure(folder: Path) -> list[Report]:
        specs = [PolicySpec("target"), PolicySpec("draft")]
        runs = [RunSettings(task, Limits(640), at_once, block=max(5, at_once)) for at_once in levels]
        timed = [(drawn, specs, each, folder / str(each.concurrency)) for each in runs]
        reading = _reading(drawn, RunSettings(task, Limits(1), levels[0], block=_BLOCK), folder)
        asked = (drawn, [PolicySpec(*read_policy(policy))], runs[levels.index(concurrency)], folder / "speculation")
        return await _evaluate(settings, [*timed, reading, asked])

    with tempfile.TemporaryDirectory() as folder:
        *reports, speculated = run(measure(Path(folder)))
    speeds, alone = alone_speeds(reports), reports[levels.index(concurrency)].rows()[0]
    written = reports[0].of("target")
    pair: dict[str, Any] = {
        "tokens": alone["tokens_per_problem"],
        "prompt_tokens": sum(record.usage["target"]["prefilled"] for record in written) / len(written),
        "at_once": concurrency,
        "is_shared": _is_shared(settings),
    }
    ways = {"whole_steps": False, "verified": True}
    gains = {
        name: {
            share: predicted_speedup(planned(speeds["draft"], speeds["target"], share, is_verified=flag, **pair))
            for share in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
        }
        for name, flag in ways.items()
    }
    for role, speed in speeds.items():
        console.print(
            f"{role}: {1000 * speed.pass_s:.2f} ms per pass, {1000 * speed.write_s:.3f} ms more for each token that it "
            f"writes and {1000 * speed.read_s:.3f} ms for each that it reads"
        )
    table = Table(
        "not asked about", "target writes the others: times as fast", "target verifies them",
        title=f"{concurrency} concurrently; the target alone takes {alone['seconds_per_problem']:.3f} s per problem",
    )  # fmt: skip
    for share in gains["verified"]:
        table.add_row(f"{share:.0%}", *(f"{gains[name][share]:.2f}" for name in ways))
    console.print(table)
    enough = {
        name: break_even_share(speeds["draft"], speeds["target"], is_verified=flag, **pair)
        for name, flag in ways.items()
    }
    for name, least in enough.items():
        way = name.replace("_", " ")
        console.print(
            f"[yellow]{way}: speculation does not pay here, whatever the target is spared.[/]"
            if least is None
            else f"{way}: it pays when the target is not asked about {least:.0%} of the tokens or more."
        )
    verdict = _verdict(
        speculated,
        lambda share, is_verified: predicted_speedup(
            planned(speeds["draft"], speeds["target"], share, is_verified=is_verified, **pair)
        ),
    )
    colour = "green" if verdict["pays"] else "yellow"
    console.print(f"[bold {colour}]{escape(verdict['says'])}[/]", soft_wrap=True)
    write_json(
        json_file,
        {"speeds": {role: asdict(speed) for role, speed in speeds.items()}, "break_even_share": enough,
         "predicted_speedup": gains, "verdict": verdict},
    )  # fmt: skip


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
