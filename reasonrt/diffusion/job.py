"""One request on its way through the passes."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from reasonrt.diffusion.decoding import Decoding
from reasonrt.diffusion.sampling import Drawing
from reasonrt.diffusion.shape import ModelShape
from reasonrt.diffusion.writers import Settled, Task, Writer, make_writer
from reasonrt.kernels.online import RowStats


@dataclass(eq=False)
class Job:
    """One request.

    Attributes:
        task: what to write.
        decoding: read by `read_decoding`.
        drawing: how tokens are drawn.
        report: called after each pass that settled tokens, or ended the text.
        salt: jobs with different ones share nothing of the cache.
        watch: called in each pass that predicts something for it, before its writer takes that, with the positions
            [heads], the statistics of what is predicted there, and the logits [heads, tokens].
        make: its writer, as `make_writer` does.
        passes: that denoised, committed or verified something for it.
        canvas: positions of its blocks over all these passes.
        cached: tokens of the prompt that were in the cache.
    """

    task: Task
    decoding: Decoding
    drawing: Drawing
    report: Callable[["Job", Settled], None]
    salt: str = ""
    watch: Callable[[NDArray[np.int64], RowStats, Tensor], None] | None = None
    make: Callable[[Task, Decoding, ModelShape, int], Writer] = make_writer
    passes: int = 0
    canvas: int = 0
    cached: int = 0
    writer: Writer = field(init=False)
    slot: int = field(init=False, default=-1)
