"""The picture of a comparison: how fast either way of decoding is, and what diffusion has to commit to keep up."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reasonrt.calibration.roofline.passes import BlockDecoding, Comparison
from reasonrt.errors import ConfigError
from reasonrt.files import write_figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def plot_comparisons(points: Sequence[Comparison], decoding: BlockDecoding, title: str, file: Path) -> None:
    """Draw two panels over the batch, with a colour for each context: tokens/s, and the break-even tokens per pass.

    Points that do not fit into the memory of the GPU are left out.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigError("a plot needs matplotlib: pip install 'reasonrt[calibrate]', or leave --plot out") from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))
    for index, context in enumerate(sorted({point.context for point in points})):
        own = sorted(
            (point for point in points if point.context == context and point.fits), key=lambda point: point.batch
        )
        _plot_context(left, right, own, f"context {context:,}", _COLOURS[index % len(_COLOURS)])
    left.plot([], [], "k-", label="diffusion")
    left.plot([], [], "k--", label="autoregressive")
    left.set(xlabel="batch", ylabel="tokens/s, at most", title=f"{decoding.tokens_per_pass:g} tokens per pass")
    right.axhline(decoding.tokens_per_pass, color="black", lw=0.8, ls=":")
    right.set(xlabel="batch", ylabel="tokens per pass", title="What diffusion needs to be as fast", ylim=(0.9, None))
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=10 if axes is left else 2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    right.yaxis.set_major_formatter("{x:g}")
    left.legend(fontsize=7)
    figure.suptitle(title)
    figure.tight_layout()
    try:
        write_figure(file, figure, dpi=120)
    finally:
        plt.close(figure)


def _plot_context(left: Any, right: Any, points: Sequence[Comparison], label: str, colour: str) -> None:
    batches = [point.batch for point in points]
    left.plot(batches, [point.diffusion_tokens_per_s for point in points], "o-", ms=3, color=colour, label=label)
    left.plot(batches, [point.autoregressive_tokens_per_s for point in points], "o--", ms=3, color=colour)
    even = [(point.batch, point.break_even_tokens_per_pass) for point in points if point.break_even_tokens_per_pass]
    right.plot([batch for batch, _ in even], [tokens for _, tokens in even], "o-", ms=3, color=colour)
