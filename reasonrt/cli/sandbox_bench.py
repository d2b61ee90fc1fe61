"""`reasonrt bench sandbox`: what the sandboxes of program search hold, and what they cost."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from reasonrt.cli.common import JsonOption, bars, console, run, write_json

_KEEPS_NOTHING = "nothing is kept, the same command begins anew; with --sandboxes 5 it is done sooner"


def bench(
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Measure this backend; may be repeated; by default cpython and monty."),
    ] = None,
    sandboxes: Annotated[int, typer.Option(min=2, help="Open this many sessions at the same time.")] = 50,
    json_file: JsonOption = None,
) -> None:
    """Try to escape from each sandbox, and measure memory and start of many with contexts of 10 MB.

    The exit code is 1 where an attempt does not hold.
    """
    from reasonrt.benches.sandbox import measure_sandboxes
    from reasonrt.programs.sandbox.build import BACKENDS

    with bars() as advance:
        result = run(measure_sandboxes(backend or sorted(BACKENDS), sandboxes, advance), _KEEPS_NOTHING)
    write_json(json_file, result)
    _print(result["rows"])
    if any(row.get("failed") for row in result["rows"]):
        raise typer.Exit(1)


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("backend", "attempts", "held", title="attempts to escape")
    for row in rows:
        if "attempts" in row:
            table.add_row(row["backend"], str(row["attempts"]), str(row["held"]))
    console.print(table)
    for row in rows:
        for name, reason in row.get("failed", {}).items():
            console.print(f"[red]does not hold[/] {row['backend']}: {name}: {escape(reason)}")
    table = Table("backend", "sessions", "context MB", "rss GB", "pss GB", "start ms", "p95 ms", "CPU ms", title="cost")
    for row in rows:
        if "sandboxes" in row:
            table.add_row(row["backend"], *(str(value) for name, value in row.items() if name != "backend"))
    console.print(table)
