"""`reasonrt bench`: measurements that docs/figures.md quotes."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from reasonrt.cli.common import JsonOption, bars, complete_policy, console, run, write_json

app = typer.Typer(
    no_args_is_help=True, help="Measure what the runtime costs, what speculation gains, and whether certificates hold."
)


@app.command(epilog="Example: reasonrt bench overhead --streams 64 --json streams.json")
def overhead(
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Take this many samples; by default 200, and 3 of --streams.")
    ] = None,
    streams: Annotated[
        int | None,
        typer.Option(
            min=1, max=256, help="Measure a server instead, by the CPU time per token with this many callers."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Let the server of --streams run these engines in place of scripted ones.")
    ] = None,
    policy: Annotated[
        str, typer.Option(help="Ask the server of --streams for this policy.", autocompletion=complete_policy)
    ] = "target",
    json_file: JsonOption = None,
) -> None:
    """Measure the CPU time that the runtime adds per committed step, or that a server takes per token.

    The first is measured with 1, 8 and 64 concurrent requests.
    """
    if streams is not None:
        _serve_streams(streams, rounds or 3, config, policy, json_file)
        return
    from reasonrt.benches.overhead import measure_overhead

    with bars() as advance:
        rows = run(measure_overhead(rounds=rounds or 200, advance=advance))
    table = Table("concurrency", "p50 ms/step", "p99 ms/step", title="runtime overhead, scripted engine, CPU time")
    for row in rows:
        table.add_row(
            f"{row['concurrency']:.0f}",
            f"{row['overhead_ms_per_step_p50']:.3f}",
            f"{row['overhead_ms_per_step_p99']:.3f}",
        )
    console.print(table)
    write_json(json_file, {"rows": rows})


def _serve_streams(streams: int, rounds: int, config: Path | None, policy: str, json_file: Path | None) -> None:
    from reasonrt.benches.streams import measure_streams

    with bars() as advance:
        row = run(measure_streams(streams, rounds, config, policy, advance))
    title = f"CPU time of the serving process, {escape(str(row['engine']))}, policy {escape(policy)}"
    table = Table("streams", "CPU us/token", "of the slowest round", "tokens/s", title=title)
    figures = (row[name] for name in ("cpu_us_per_token", "cpu_us_per_token_max", "tokens_per_s"))
    table.add_row(str(streams), *(f"{figure:.1f}" for figure in figures))
    console.print(table)
    write_json(json_file, {"rows": [row]})
