"""`reasonrt plan`: what a way of decoding can gain before it is built or served, by measurement or by peak figures."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from reasonrt.calibration.roofline.passes import BlockDecoding, Comparison, Crossing, Roofline
from reasonrt.calibration.roofline.tables import GPUS, MODELS, find_gpu, find_model
from reasonrt.cli.common import JsonOption, console, write_json

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (1024, 4096, 16384, 32768)


class _SpeculationByDefault(TyperGroup):
    """`reasonrt plan --problems 20` was there before it had commands: without one, it plans speculation."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["speculation", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_SpeculationByDefault,
    help="Predict what a way of decoding gains: speculation, which is meant where no command is named, or diffusion.",
)


@app.command(
    epilog="Example: reasonrt plan diffusion --gpu H200 --model Qwen3-8B --tokens-per-pass 4 --json F --plot F.png"
)
def diffusion(
    gpu: Annotated[str, typer.Option(help=f"Plan for this GPU: {', '.join(GPUS)}.")] = "H200",
    model: Annotated[
        str, typer.Option(help=f"Plan for a model of this size: {', '.join(MODELS)}, or a folder with config.json.")
    ] = "Qwen3-8B",
    block_length: Annotated[int, typer.Option(help="Denoise this many positions together.")] = 32,
    tokens_per_pass: Annotated[
        float, typer.Option(help="Commit this many tokens per denoising pass, on average.")
    ] = 4.0,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Decode this many sequences; may be repeated.")] = None,
    context: Annotated[
        list[int] | None, typer.Option(min=1, help="Attend to this many tokens, on average; may be repeated.")
    ] = None,
    merge_commits: Annotated[
        bool,
        typer.Option(
            "--merge-commits/--separate-commits",
            help="Write a finished block to the cache in the pass that begins the next one, or in one of its own.",
        ),
    ] = True,
    masked_rows_only: Annotated[
        bool,
        typer.Option(
            "--masked-rows/--all-rows", help="Compute logits and residuals where a mask remains, or everywhere."
        ),
    ] = True,
    residual: Annotated[
        bool,
        typer.Option("--residual/--no-residual", help="Include residual context, a second product with the table."),
    ] = False,
    residual_top_k: Annotated[
        int | None, typer.Option(min=1, help="Expect over this many tokens only; by default over all.")
    ] = None,
    bandwidth_efficiency: Annotated[
        float, typer.Option(help="Reach this share of the GPU's peak memory bandwidth.")
    ] = 1.0,
    compute_efficiency: Annotated[float, typer.Option(help="Reach this share of the GPU's peak operations.")] = 1.0,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw the comparison into this PNG file.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Predict from peak figures when block diffusion is faster than autoregressive decoding, and what it must commit.

    Nothing is measured: the figures are bounds. Prompts, the start of kernels and the host are left out.
    """
    decoding = BlockDecoding(block_length, tokens_per_pass, merge_commits, masked_rows_only, residual, residual_top_k)
    roofline = Roofline(find_gpu(gpu), find_model(model), bandwidth_efficiency, compute_efficiency)
    batches, contexts = sorted(set(batch or BATCHES)), sorted(set(context or CONTEXTS))
    points = {at: [roofline.compare(decoding, n, at) for n in batches] for at in contexts}
    crossings = {at: roofline.crossing(decoding, at) for at in contexts}
    _print_setting(roofline, decoding)
    _print_points(points, decoding)
    for at in contexts:
        console.print(_in_words(roofline.compare(decoding, 1, at), crossings[at], points[at], decoding))
    rows = [point for at in contexts for point in points[at]]
    write_json(
        json_file,
        {
            "gpu": asdict(roofline.gpu),
            "model": asdict(roofline.size),
            "bandwidth_efficiency": bandwidth_efficiency,
            "compute_efficiency": compute_efficiency,
            "decoding": asdict(decoding),
            "ridge_rows": roofline.ridge_rows,
            "rows": [asdict(point) for point in rows],
            "crossings": [asdict(crossing) for crossing in crossings.values()],
        },
    )
    if plot_file:
        from reasonrt.calibration.roofline.plot import plot_comparisons

        title = f"{roofline.size.name} on {roofline.gpu.name}, blocks of {block_length}"
        plot_comparisons(rows, decoding, title, plot_file)


def _print_setting(roofline: Roofline, decoding: BlockDecoding) -> None:
    size, gpu, rows = roofline.size, roofline.gpu, decoding.load.rows
    console.print(
        f"{escape(f'{size.name} on {gpu.name}')}: {size.weight_bytes / 1e9:.1f} GB of weights in "
        f"{gpu.memory_bytes / 1e9:g} GB, {size.kv_bytes / 1e6:.3f} MB a token of context. The layers are compute-bound "
        f"from {roofline.ridge_rows:.0f} rows a pass on: a batch of {roofline.ridge_rows:.0f}, or "
        f"{roofline.ridge_rows / rows:.1f} with blocks of {decoding.block_length} ({rows:g} rows each)."
    )


def _print_points(points: dict[int, list[Comparison]], decoding: BlockDecoding) -> None:
    console.print(
        f"How many times as fast as autoregressive decoding diffusion is with {decoding.tokens_per_pass:g} tokens per "
        "pass, and how many it needs to be just as fast. Below that tokens/s, at most: diffusion / autoregressive, "
        "bound by memory (m) or by compute (c)."
    )
    table = Table("batch", *(f"context {at:,}" for at in points))
    for of_batch in zip(*points.values(), strict=True):
        table.add_row(str(of_batch[0].batch), *map(_cell, of_batch))
    console.print(table)


def _cell(point: Comparison) -> str:
    if not point.fits:
        return "[dim]does not fit[/]"
    even = point.break_even_tokens_per_pass
    needs = "no number" if even is None else f"{even:.1f}"
    colour = "green" if point.ratio > 1 else "red"
    speeds = (
        f"{point.diffusion_tokens_per_s:,.0f} {point.diffusion_bound[0]} / "
        f"{point.autoregressive_tokens_per_s:,.0f} {point.autoregressive_bound[0]}"
    )
    return f"[{colour}]{point.ratio:.2f}[/], needs {needs}\n[dim]{speeds}[/]"


def _in_words(first: Comparison, crossing: Crossing, points: Sequence[Comparison], decoding: BlockDecoding) -> str:
    """Who is faster at one context, from which batch on, and what would change it."""
    where = f"context {crossing.context:,}:"
    if not crossing.most_batch:
        return f"{where} not one sequence fits into memory."
    at_one = (
        f"{where} at batch 1 diffusion with {decoding.tokens_per_pass:g} tokens a pass is {first.ratio:.1f} times as "
        "fast as autoregressive decoding"
    )
    turn = crossing.autoregressive_from_batch
    if turn is None:
        return f"{at_one}, and it is not slower at any batch up to {crossing.most_batch}."
    beyond = [point for point in points if point.batch >= turn and point.fits]
    enough = [point for point in beyond if point.break_even_tokens_per_pass is not None]
    ends = dict.fromkeys(enough[:1] + enough[-1:])
    needs = " and ".join(f"{point.break_even_tokens_per_pass:.1f} tokens at batch {point.batch}" for point in ends)
    unless = f", unless a pass makes {needs}" if needs else ""
    never = next((point.batch for point in beyond if point.break_even_tokens_per_pass is None), None)
    return f"{at_one}; from batch {turn} on autoregressive decoding is faster{unless}." + (
        f" From batch {never} on not even a whole block a pass is enough." if never else ""
    )
