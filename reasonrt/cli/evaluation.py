"""`reasonrt eval`: policies on a task, side by side, resumable."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from reasonrt.cli.common import (
    ConcurrencyOption,
    ConfigOption,
    JsonOption,
    MaxTokensOption,
    SplitOption,
    SuffixOption,
    TaskOption,
    TemperatureOption,
    YesOption,
    bars,
    change_limits,
    complete_policy,
    confirm_by,
    console,
    read_policy,
    run,
    start,
    write_json,
)
from reasonrt.evals.report import Report, plot
from reasonrt.evals.run import EvalProgress, PolicySpec, RunSettings, check_run
from reasonrt.evals.run import evaluate as evaluate_policies


def evaluate(
    task: TaskOption,
    policy: Annotated[
        list[str],
        typer.Option(
            help="Evaluate this policy, written as NAME or NAME@OPTION=VALUE,OPTION=VALUE; may be repeated.",
            autocompletion=complete_policy,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Write the journal, results.json and plot.png into this folder.")],
    limit: Annotated[int, typer.Option(help="Take this many problems, the first ones of the task.")] = 200,
    split: SplitOption = "test",
    concurrency: ConcurrencyOption = None,
    max_tokens: MaxTokensOption = None,
    deadline_s: Annotated[
        float | None, typer.Option("--deadline", help="Stop a problem after this many seconds.")
    ] = None,
    temperature: TemperatureOption = 0.0,
    suffix: SuffixOption = "",
    texts: Annotated[bool, typer.Option("--texts", help="Keep whole texts in the journal, compressed.")] = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Evaluate policies on the same problems, side by side; the same command continues after a kill."""
    from reasonrt.config import load_config
    from reasonrt.evals.tasks import load_task
    from reasonrt.runtime import Runtime

    settings = load_config(config)
    limits = change_limits(settings.limits.to_limits(), max_tokens, deadline_s)
    specs = [PolicySpec(*read_policy(text)) for text in policy]
    problems = load_task(task, limit, split)
    runtime = Runtime.of(settings, policies=[(spec.name, spec.options) for spec in specs])
    run_settings = RunSettings(
        task, limits, concurrency or settings.concurrency, temperature, prompt_suffix=suffix, keeps_texts=texts
    )
    check_run(runtime, problems, specs, run_settings, out, confirm_by(yes))  # engines take a while to start

    async def work() -> Report:
        await start(runtime)
        try:
            with bars() as advance:

                def show(told: EvalProgress) -> None:
                    advance(task, told.done, told.total)

                return await evaluate_policies(
                    runtime, problems, specs, run_settings, out, show, confirm=confirm_by(yes)
                )
        finally:
            await runtime.__aexit__()

    report = run(work(), out)
    print_report(report)
    write_json(out / "results.json", report.to_json())
    write_json(json_file, report.to_json())
    plot(report, out / "plot.png")
    console.print(f"[dim]journal, results.json and plot.png are in {escape(str(out))}[/]")


def print_report(report: Report) -> None:
    """The tables of a report on the console."""
    rows = report.rows()
    columns = ("policy", "n", "accuracy", "s/problem", "of the target's", "p50", "p95", "tokens")
    table = Table(*columns, title=f"task {escape(report.task)}")
    for row in rows:
        table.add_row(
            escape(row["policy"]),
            str(row["n"]),
            f"{row['accuracy']:.1%} ({row['accuracy_low']:.0%}-{row['accuracy_high']:.0%})",
            f"{row['seconds_per_problem']:.3f}",
            f"{row['ratio_to_target']:.2f} ({row['ratio_to_target_low']:.2f}-{row['ratio_to_target_high']:.2f})"
            if "ratio_to_target" in row
            else "",
            f"{row['seconds_p50']:.2f}",
            f"{row['seconds_p95']:.2f}",
            f"{row['tokens_per_problem']:.0f}",
        )
    console.print(table)
    for pair in report.paired():
        console.print(
            f"{escape(pair['policy'])} minus {escape(pair['against'])}: {100 * pair['difference']:+.1f} points "
            f"({100 * pair['difference_low']:+.1f} to {100 * pair['difference_high']:+.1f}), p = {pair['p_value']:.2g}"
        )
    for row in rows:
        for part, found in row["warnings"].items():
            where = f"{found['n']} of {row['n']} problems"
            console.print(
                f"[yellow]{escape(row['policy'])}: no {part} in {where}[/]: {escape(found['reason'])}", soft_wrap=True
            )
        if "does_not_pay" in row:
            console.print(
                f"[yellow]{escape(row['policy'])} does not pay here[/]: {escape(row['does_not_pay'])}", soft_wrap=True
            )
        if row["errors"]:
            first = escape(next(record.error for record in report.of(row["policy"]) if record.error))
            told = f"{escape(row['policy'])}: {row['errors']} failed and count as wrong; the first: {first}"
            console.print(f"[yellow]{told}[/]")
