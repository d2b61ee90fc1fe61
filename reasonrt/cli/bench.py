"""`reasonrt bench`: measurements that docs/figures.md quotes."""

from typing import Annotated

import typer
from rich.table import Table

from reasonrt.cli.common import JsonOption, console, run, write_json

app = typer.Typer(
    no_args_is_help=True, help="Measure what the runtime costs, what speculation gains, and whether certificates hold."
)


@app.command(epilog="Example: reasonrt bench overhead --rounds 50 --json overhead.json")
def overhead(
    rounds: Annotated[int, typer.Option(min=10, help="Take this many samples per concurrency.")] = 200,
    json_file: JsonOption = None,
) -> None:
    """Measure the CPU time that the runtime adds per committed step, with 1, 8 and 64 concurrent requests."""
    from reasonrt.benches.overhead import measure_overhead

    rows = run(measure_overhead(rounds=rounds))
    table = Table("concurrency", "p50 ms/step", "p99 ms/step", title="runtime overhead, scripted engine, CPU time")
    for row in rows:
        table.add_row(
            f"{row['concurrency']:.0f}",
            f"{row['overhead_ms_per_step_p50']:.3f}",
            f"{row['overhead_ms_per_step_p99']:.3f}",
        )
    console.print(table)
    write_json(json_file, {"rows": rows})
