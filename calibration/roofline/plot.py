"""The picture of a comparison: how fast either way of decoding is, and what diffusion has to commit to keep up."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reasonrt.calibration.roofline.passes import BlockDecoding, Comparison
from reasonrt.plots import COLOURS, label, picture

Mark = tuple[float, float, str, str]


def plot_comparisons(points: Sequence[Comparison], decoding: BlockDecoding, title: str, file: Path) -> None:
    """Draw two panels over the batch, with a colour for each context: tokens/s, and the break-even tokens per pass.

    Points that do not fit into the memory of the GPU are left out.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    says = f"{decoding.tokens_per_pass:g} tokens a pass"
    with picture(file, 2) as (left, right):
        marks: tuple[list[Mark], list[Mark]] = ([], [])
        for index, context in enumerate(sorted({point.context for point in points})):
            own = sorted(
                (point for point in points if point.context == context and point.fits), key=lambda point: point.batch
            )
            _plot_context(left, right, own, marks, f"context {context:,}", COLOURS[index % len(COLOURS)])
        left.set(xlabel="batch", ylabel="tokens/s, at most")
        left.set_title(f"{says} of diffusion (solid) against autoregressive decoding (dashed)\n{title}", loc="left")
        right.axhline(decoding.tokens_per_pass, color="0.4", lw=0.8, ls=":")
        right.set(xlabel="batch", ylabel="tokens a pass", ylim=(0.9, None))
        right.set_title(f"What diffusion must commit in a pass to keep up\ndotted: {says}", loc="left")
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=10 if axes is left else 2)
            axes.xaxis.set_major_formatter("{x:g}")
        right.yaxis.set_major_formatter("{x:g}")
        label(left, marks[0])
        label(right, marks[1])


def _plot_context(
    left: Any, right: Any, points: Sequence[Comparison], marks: tuple[list[Mark], list[Mark]], name: str, colour: str
) -> None:
    batches = [point.batch for point in points]
    diffusion = [point.diffusion_tokens_per_s for point in points]
    left.plot(batches, diffusion, "o-", ms=3, color=colour)
    left.plot(batches, [point.autoregressive_tokens_per_s for point in points], "o--", ms=3, color=colour)
    if points:
        marks[0].append((batches[-1], diffusion[-1], name, colour))
    even = [(point.batch, point.break_even_tokens_per_pass) for point in points if point.break_even_tokens_per_pass]
    right.plot([batch for batch, _ in even], [tokens for _, tokens in even], "o-", ms=3, color=colour)
    if even:
        marks[1].append((*even[-1], name, colour))
