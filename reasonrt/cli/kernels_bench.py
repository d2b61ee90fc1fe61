"""`reasonrt bench kernels`: what the kernels become on each target, compiled without a device."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from reasonrt.cli.common import JsonOption, bars, console, write_json


def bench(
    compile_only: Annotated[
        bool, typer.Option("--compile", help="Compile every kernel for every target; no device is needed.")
    ] = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="Show what a kernel for the attention of blocks could gain.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Show what each kernel takes of each target: registers, spills, shared memory, tensor cores, and its roofline.

    Times are those that the memory's and the cores' rates allow, not measurements: these are made on a device by
    benchmarks/kernels.py. The exit code is 1 where a kernel spills, does not fit, or leaves tensor cores unused.
    """
    from reasonrt.benches.block_attention import block_attention
    from reasonrt.benches.kernels import compile_kernels, failures

    if compile_only == attention:
        raise typer.BadParameter("one of --compile and --attention; what is measured is by benchmarks/kernels.py")
    if attention:
        rows = block_attention()
        write_json(json_file, {"rows": rows})
        _print("attention of blocks, one layer, H200", rows, list(rows[0]))
        return
    with bars() as advance:
        result = compile_kernels(advance)
    write_json(json_file, result)
    columns = ["target", "kernel", "shape", "config", "registers", "spilled_bytes", "shared_bytes", "occupancy"]
    _print("kernels, compiled", result["rows"], [*columns, "tensor_core", "roofline_us"])
    if failed := failures(result["rows"]):
        for line in failed:
            console.print(f"[red]does not fit[/] {escape(line)}")
        raise typer.Exit(1)


def _print(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    table = Table(*(column.replace("_", " ") for column in columns), title=title)
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    console.print(table)
