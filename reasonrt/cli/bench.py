"""`reasonrt bench`: measurements that the README and the docs quote."""

from typing import Annotated

import typer
from rich.table import Table

from reasonrt.cli.common import JsonOption, console, run, write_json

app = typer.Typer(no_args_is_help=True, help="Measurements of the engine room.")


@app.command()
def overhead(
    rounds: Annotated[int, typer.Option(min=10, help="Samples per concurrency.")] = 200,
    json_file: JsonOption = None,
) -> None:
    """CPU time that the runtime adds per committed step, at 1, 8 and 64 requests at once."""
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
