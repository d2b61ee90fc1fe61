"""Keys and values of committed tokens, in buffers that stay where they are, and attention over them.

What a row of a pass may attend to is one number, its *limit*: all positions of its sequence below it. A causal row has
its own position plus one, a row of a block the end of the block, a row with full attention the end of the text. Each
layer writes the keys and values of all rows before any row reads them, so that rows of one pass see each other: a block
that is committed and the next one, which is denoised in the same pass, need no second pass.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reasonrt.diffusion.model import Attend
from reasonrt.diffusion.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows of one sequence in a pass.

    Attributes:
        slot: of the sequence.
        positions: [rows] of the rows.
        limits: [rows] what each may attend to.
    """

    slot: int
    positions: NDArray[np.int64]
    limits: NDArray[np.int64]


class KvCache:
    """`slots` sequences of at most `length` tokens.

    Raises:
        RuntimeError: there is not so much memory.
    """

    def __init__(self, shape: ModelShape, slots: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.slots, self.length, self.device = shape, slots, length, device
        size = (slots, length, shape.kv_heads, shape.head_dim)
        # zeros: where padding is read, its weight is 0, and 0 times what happens to be in memory may be NaN
        self.keys = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]
        self.values = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.layers)]

    @staticmethod
    def num_bytes(shape: ModelShape, slots: int, length: int, dtype: torch.dtype) -> int:
        """What a cache of this size takes."""
        return int(2 * shape.layers * slots * length * shape.kv_heads * shape.head_dim * dtype.itemsize)

    def copy(self, source: int, target: int, length: int) -> None:
        """Let slot `target` begin with the first `length` tokens of slot `source`."""
        for buffer in (*self.keys, *self.values):
            buffer[target, :length] = buffer[source, :length]

    def clear(self, slot: int) -> None:
        """Forget what slot `slot` holds, be it NaN."""
        for buffer in (*self.keys, *self.values):
            buffer[slot] = 0

    def attention(self, segments: list[Segment]) -> Attend:
        """Attention for one pass over the rows of `segments`, one segment after the other."""
        places = np.concatenate([segment.slot * self.length + segment.positions for segment in segments])
        index = torch.from_numpy(places).to(self.device)
        read = self._one_by_one(segments) if self.device.type == "cpu" else self._padded(segments)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self.keys[layer].flatten(0, 1).index_copy_(0, index, keys)
            self.values[layer].flatten(0, 1).index_copy_(0, index, values)
            return read(layer, queries, self.keys[layer], self.values[layer])

        return attend

    def _one_by_one(self, segments: list[Segment]) -> Attend:
        """For CPUs, where a call costs little and padding costs time: nothing is copied, nothing computed in vain."""
        masks = []
        for segment in segments:
            limits = torch.from_numpy(segment.limits)
            end = int(segment.limits.max())
            is_even = bool((segment.limits == end).all())
            masks.append((end, None if is_even else torch.arange(end) < limits[:, None]))
        heads, groups = self.shape.kv_heads, self.shape.heads // self.shape.kv_heads

        def read(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            mixed = torch.empty_like(queries)
            begin = 0
            for segment, (end, mask) in zip(segments, masks, strict=True):
                rows = slice(begin, begin + len(segment.positions))
                begin = rows.stop
                asked = queries[rows].unflatten(1, (heads, groups)).permute(1, 2, 0, 3)  # [kv_heads, groups, rows, dim]
                size = (heads, groups, end, self.shape.head_dim)
                told = keys[segment.slot, :end].transpose(0, 1).unsqueeze(1).expand(size)
                carried = values[segment.slot, :end].transpose(0, 1).unsqueeze(1).expand(size)
                answer = nn.functional.scaled_dot_product_attention(asked, told, carried, mask)
                mixed[rows] = answer.permute(2, 0, 1, 3).flatten(1, 2)
            return mixed

        return read

    def _padded(self, segments: list[Segment]) -> Attend:
        """For GPUs, where a call costs more than padding: all segments as one batch."""
        counts = [len(segment.positions) for segment in segments]
        which = np.repeat(np.arange(len(segments)), counts)
        offsets = np.concatenate([np.arange(count) for count in counts])
        limits = np.ones((len(segments), max(counts)), np.int64)
        limits[which, offsets] = np.concatenate([segment.limits for segment in segments])
        end = int(limits.max())
        slots, batch, column, limit = (
            torch.from_numpy(np.asarray(array)).to(self.device)
            for array in ([segment.slot for segment in segments], which, offsets, limits)
        )
        mask = torch.arange(end, device=self.device) < limit[:, None, :, None]

        def read(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            padded = queries.new_zeros(len(segments), max(counts), *queries.shape[1:])
            padded[batch, column] = queries
            told, carried = (buffer[:, :end].index_select(0, slots).transpose(1, 2) for buffer in (keys, values))
            answer = nn.functional.scaled_dot_product_attention(
                padded.transpose(1, 2), told, carried, mask, enable_gqa=True
            )
            return answer.transpose(1, 2)[batch, column]

        return read
