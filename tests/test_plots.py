"""Words beside points: inside of the panel, and none over another."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from reasonrt.plots import COLOURS, label, picture


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_words_stand_inside_of_the_panel_and_apart(tmp_path: Path, scale: str) -> None:
    file = tmp_path / "x.png"
    marks = [(10.0, 10.0 + n / 100, f"one of many words, {n}", COLOURS[0]) for n in range(6)]
    marks.append((100.0, 10.0, "far on the right, and long", COLOURS[1]))

    with picture(file) as (axes,):
        axes.plot([1, 100], [1, 10], "o")
        axes.set(xscale=scale, yscale=scale)
        label(axes, marks)
        boxes = [_box(text) for text in axes.texts]
        frame = axes.get_window_extent()

    assert all(box.x1 <= frame.x1 and box.y1 <= frame.y1 for box in boxes)
    assert not [pair for pair in combinations(boxes, 2) if _overlap(*pair)]
    assert file.stat().st_size > 5_000


def _box(text: Any) -> Any:
    from matplotlib.text import Text

    return Text.get_window_extent(text)  # without its line


def _overlap(a: Any, b: Any) -> bool:
    return bool(a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1)
