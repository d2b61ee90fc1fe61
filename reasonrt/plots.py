"""How our pictures look: a message as the title, words beside what they name, colours that everybody tells apart."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from reasonrt.errors import ConfigError
from reasonrt.files import write_figure

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart with any kind of colour vision. Source: Okabe & Ito (2008), Color Universal Design."""

_BESIDE_POINTS, _GAP_POINTS = 8.0, 4.0
_MOST_WIDENED = 40


@contextmanager
def picture(file: Path, num_panels: int = 1, *, width: float = 7.0, height: float = 4.4) -> Iterator[list[Any]]:
    """Panels beside each other, as matplotlib's axes; what was drawn on them is written to `file` at the end.

    Args:
        file: its suffix names the format.
        width, height: of one panel, in inches.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigError("a plot needs matplotlib: pip install 'reasonrt[calibrate]', or leave --plot out") from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, num_panels, figsize=(width * num_panels, height), dpi=140, squeeze=False)
    try:
        for axes in panels[0]:
            axes.grid(alpha=0.2)
            axes.spines[["top", "right"]].set_visible(False)
        yield list(panels[0])
        for axes in panels[0]:
            axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=11, wrap=True)
        figure.tight_layout()
        write_figure(file, figure)
    finally:
        plt.close(figure)


def label(axes: Any, marks: Sequence[tuple[float, float, str, str]], rise: float = 0.0) -> None:
    """Write words beside points of a panel, to the right of each; where they would cover each other, they move apart.

    The panel becomes as large as they take. To be called when everything is drawn.

    Args:
        marks: x, y, the words, and their colour.
        rise: how far above the point they begin, in points: beside an interval that lies, some.
    """
    figure = axes.figure
    figure.tight_layout()
    texts = [
        axes.annotate(
            words, (x, y), (_BESIDE_POINTS, rise), textcoords="offset points", color=colour, fontsize=9, va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 0, "shrinkB": 3},
            bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1},
        )
        for x, y, words, colour in marks
    ]  # fmt: skip
    for _ in range(_MOST_WIDENED):
        for text in texts:
            text.xyann = (_BESIDE_POINTS, rise)
        figure.draw_without_rendering()
        _move_apart(figure, texts)
        frame, boxes = axes.get_window_extent(), [text.get_window_extent() for text in texts]
        is_wide, is_high = any(box.x1 > frame.x1 for box in boxes), any(box.y1 > frame.y1 for box in boxes)
        if is_wide:
            axes.set_xlim(*_widened(axes.get_xlim(), axes.get_xscale()))
        if is_high:
            axes.set_ylim(*_widened(axes.get_ylim(), axes.get_yscale()))
        if not (is_wide or is_high):
            break


def _widened(limits: tuple[float, float], scale: str) -> tuple[float, float]:
    """Limits of an axis with a tenth more at their second end."""
    first, second = limits
    return (first, second * (second / first) ** 0.1) if scale == "log" else (first, second + 0.1 * (second - first))


def _move_apart(figure: Any, texts: Sequence[Any]) -> None:
    """Move texts up until none touches another, from the lowest to the highest."""
    scale = 72 / figure.dpi
    placed: list[tuple[float, float, float, float]] = []  # left, right, bottom and top, in pixels
    for text in sorted(texts, key=lambda text: text.get_window_extent().y0):
        box = text.get_window_extent()
        up = 0.0
        for left, right, bottom, top in sorted(placed, key=lambda box: box[2]):
            if box.x0 < right and left < box.x1 and box.y0 + up < top and bottom < box.y1 + up:
                up = top - box.y0 + _GAP_POINTS / scale / 2
        placed.append((box.x0, box.x1, box.y0 + up, box.y1 + up))
        x, y = text.xyann
        text.xyann = (x, y + up * scale)
