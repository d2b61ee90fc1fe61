"""`reasonrt bench diffusion`: what residual context is worth, what commit merging saves, and how fast it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from reasonrt.cli.common import JsonOption, SplitOption, TaskOption, bars, console, run, write_json

OUT = Path("runs/diffusion")
SHIPPED = ["control:1=zoo:nano-diffusion", "residual:1=zoo:nano-diffusion-rcd"]


def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(help="Compare this trained model, as ARM:SEED=MODEL; the arm to compare with is control."),
    ] = None,
    threshold: Annotated[
        list[float] | None, typer.Option(min=0.0, max=1.0, help="Measure at this threshold; may be repeated.")
    ] = None,
    task: TaskOption = "zoo",
    split: SplitOption = "test",
    problems: Annotated[int, typer.Option(min=10, help="Measure accuracy on this many problems.")] = 400,
    timed: Annotated[
        int, typer.Option(min=0, help="Measure speed on this many problems, at least 8 for each place; 0: not at all.")
    ] = 64,
    concurrency: Annotated[
        list[int] | None, typer.Option(min=1, help="Measure speed with this many concurrent problems; repeat it.")
    ] = None,
    ablation: Annotated[bool, typer.Option(help="Measure the models with residual context also without it.")] = True,
    max_tokens: Annotated[int, typer.Option(min=1, help="End a problem after this many tokens.")] = 512,
    out: Annotated[
        Path, typer.Option(help="Write into this folder; the same command continues from what is there.")
    ] = OUT,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy against tokens per pass into this PNG.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Compare residual context with an equally trained control, and both with a model that writes token by token.

    Models of other seeds: `reasonrt zoo train nano-diffusion-rcd --seed 2 --out FOLDER`.
    """
    from reasonrt.benches.diffusion import plot_curves, read_model
    from reasonrt.benches.diffusion_runs import DiffusionBench

    models = [read_model(text) for text in model or SHIPPED]
    bench = DiffusionBench(models, task, split, max_tokens, out)
    with bars() as advance:
        result = run(
            bench.measure(
                thresholds=sorted(set(threshold or (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0))),
                problems=problems,
                timed=timed,
                concurrencies=sorted(set(concurrency or (1, 8, 32))),
                ablation=ablation,
                advance=advance,
            ),
            out,
        )
    write_json(json_file, result)
    if plot:
        plot_curves(result["rows"], plot)
    _print(result)


def _print(result: Mapping[str, Any]) -> None:
    table = Table("arm", "seed", "threshold", "n", "accuracy", "tokens a pass", "s a problem", title="every setting")
    for row in result["rows"]:
        table.add_row(
            escape(row["arm"]),
            str(row["seed"]),
            f"{row['threshold']:g}",
            str(row["n"]),
            f"{row['accuracy']:.1%}",
            f"{row['tokens_per_pass']:.2f}",
            f"{row['seconds_per_problem']:.3f}",
        )
    console.print(table)
    table = Table("arm", "threshold", "seeds", "control", "accuracy", "difference", "by seed", title="against control")
    for row in result["against_control"]:
        by_seed = ", ".join(f"{100 * value:+.1f}" for value in row["differences"])
        table.add_row(
            escape(row["arm"]),
            f"{row['threshold']:g}",
            str(row["seeds"]),
            f"{row['control_accuracy']:.1%} at {row['control_tokens_per_pass']:.2f}",
            f"{row['accuracy']:.1%} at {row['tokens_per_pass']:.2f}",
            "{:+.1f} ({:+.1f} to {:+.1f})".format(
                *(100 * row[name] for name in ("difference", "difference_low", "difference_high"))
            ),
            by_seed,
        )
    console.print(table)
    _print_summary(result["summary"])
    if merging := result.get("merging"):
        console.print(
            f"commit merging: {merging['saved']:.1%} fewer passes per token, {merging['identical']} of "
            f"{merging['n']} texts identical"
        )
    if result.get("speed"):
        _print_speed(result["speed"])


def _print_summary(summary: Mapping[str, Any]) -> None:
    span = f"{summary['from_tokens_per_pass']:.2f} to {summary['to_tokens_per_pass']:.2f} tokens a pass"
    for row in summary["areas"]:
        console.print(f"mean accuracy over {span}: {escape(row['arm'])}, seed {row['seed']}: {row['area']:.1%}")
    for row in summary["equal_accuracy"]:
        times = f"{row['times']:.2f} times as many" if row["times"] else "never as accurate"
        console.print(
            f"{escape(row['arm'])}, seed {row['seed']}, at the control's {row['accuracy']:.1%} with "
            f"{row['control_tokens_per_pass']:.2f} tokens a pass: {times}"
        )


def _print_speed(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("arm", "concurrent", "n", "accuracy", "tokens/s", "times the target", title="speed")
    for row in rows:
        times = f"{row['times_target']:.2f}" if row.get("times_target") else ""
        table.add_row(
            escape(row["arm"]),
            str(row["concurrency"]),
            str(row["n"]),
            f"{row['accuracy']:.1%}",
            f"{row['tokens_per_s']:.0f}",
            times,
        )
    console.print(table)
