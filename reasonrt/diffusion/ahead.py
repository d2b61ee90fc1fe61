"""Denoising passes that follow each other on the device, before the host has seen what the first of them predicts.

What a pass commits decides what the next one reads. `kernels.denoise_update` decides it where the predictions are, by
the rule of `threshold`; writers take the predictions of all passes later, in their order, and decide the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasonrt.diffusion.cache import KvCache, Segment
from reasonrt.diffusion.decoding import Decoding
from reasonrt.diffusion.job import Job
from reasonrt.diffusion.model import DiffusionModel
from reasonrt.diffusion.residual import expect, needs_logits, num_expected
from reasonrt.diffusion.sampling import read_head, surest
from reasonrt.diffusion.strategies import Predictions
from reasonrt.diffusion.writers import BlockWriter, Work
from reasonrt.kernels.denoise_update import denoise_update
from reasonrt.kernels.denoising import Predicted, Residual, Update


def can_run_ahead(jobs: Sequence[Job], works: Sequence[Work]) -> bool:
    """Whether the passes after this one need nothing that only the host knows, such as what a request has drawn."""
    kinds = {(replace(job.decoding, threshold=0.0), job.task.end_ids) for job in jobs}
    return len(kinds) == 1 and all(
        type(job.writer) is BlockWriter
        and work.canvas > 0
        and len(work.heads) > 0
        and job.decoding.strategy == "threshold"
        and job.decoding.edit_threshold is None
        and job.decoding.residual_start != "self"
        and job.drawing.temperature == 0
        and job.watch is None
        for job, work in zip(jobs, works, strict=True)
    )


@dataclass(frozen=True, eq=False)
class Canvas:
    """What stands in the open block of each slot, on the device.

    Attributes:
        tokens: [slots * window] int64.
        embeds: [slots * window, hidden], the residual context of masked positions.
        window: positions of one slot.
    """

    tokens: Tensor
    embeds: Tensor
    window: int


@dataclass(frozen=True, eq=False)
class PassesAhead:
    """The passes over blocks of `jobs` that `can_run_ahead`, the first of which is planned as `works`."""

    model: DiffusionModel
    cache: KvCache
    canvas: Canvas
    jobs: Sequence[Job]
    works: Sequence[Work]

    def run(self, hidden: Tensor, num_passes: int) -> list[Predictions]:
        """Predictions at the heads of the first pass, in each of `num_passes`.

        Args:
            hidden: what the first one has computed at its heads.
        """
        seen: list[tuple[Tensor, ...]] = []
        canvas, is_open = self.canvas, torch.ones_like(self._slots, dtype=torch.bool)
        canvas.tokens[self._places] = self._tensor(np.concatenate([work.runs[-1].tokens for work in self.works]))
        is_blended = torch.zeros_like(canvas.tokens, dtype=torch.bool)
        is_blended[self._places] = self._tensor(np.concatenate([work.runs[-1].blended for work in self.works]))
        for index in range(num_passes):
            if index:
                hidden = self._forward(is_blended)
            seen.append(self._predict(hidden, is_open, is_blended))
            is_open = seen[-1][-1]
        tokens, confidences, entropies, logprobs = (
            torch.stack(column).cpu().numpy() for column in list(zip(*seen, strict=True))[:-1]
        )
        return [Predictions(*parts) for parts in zip(tokens, confidences, entropies, logprobs, strict=True)]

    def _forward(self, is_blended: Tensor) -> Tensor:
        embeds = self.model.embedding(self.canvas.tokens[self._places])
        if self._decoding.residual:
            reads = is_blended[self._places].unsqueeze(1)
            embeds = torch.where(reads, self.canvas.embeds[self._places], embeds)
        return self.model(embeds, self._positions, self._attend, self._heads)

    def _predict(self, hidden: Tensor, is_open: Tensor, is_blended: Tensor) -> tuple[Tensor, ...]:
        """Tokens, confidences, entropies, log-probabilities, and what is open after this pass; each [heads]."""
        decoding, slots = self._decoding, self._slots
        stats, logits = read_head(self.model, hidden, num_expected(self.model, decoding), needs_logits(decoding))
        tokens, confidences, entropies, logprobs = surest(stats)
        residual = None
        if decoding.residual:
            mean, spread = expect(self.model, stats, logits, decoding)
            mask = self.model.embedding.weight[self.model.shape.mask_token_id]
            embeds, weight = self.canvas.embeds, decoding.residual_weight
            residual = Residual(mean, spread, self.model.shape.tokens, mask, embeds, weight)
        sure = torch.where(self._is_certain, torch.ones_like(confidences), confidences)
        predicted = Predicted(tokens, sure, is_open, slots, self._starts)
        update: Update = denoise_update(predicted, self._thresholds, self._end_ids, self.canvas.tokens, residual)
        is_blended[slots] = torch.where(is_open, ~update.is_committed, is_blended[slots])
        return tokens, confidences, entropies, logprobs, update.is_open

    @property
    def _decoding(self) -> Decoding:
        """Of all jobs, but for the threshold."""
        return self.jobs[0].decoding

    @cached_property
    def _places(self) -> Tensor:
        """[rows], where each row of a block stands in the canvas."""
        return self._rows(lambda job, work: job.slot * self.canvas.window + np.arange(work.canvas))

    @cached_property
    def _positions(self) -> Tensor:
        """[rows], of the sequence."""
        return self._rows(lambda job, work: work.block_start + np.arange(work.canvas))

    @cached_property
    def _slots(self) -> Tensor:
        """[heads], what each head predicts, in the canvas."""
        return self._rows(lambda job, work: job.slot * self.canvas.window + work.targets - work.block_start)

    @cached_property
    def _heads(self) -> Tensor:
        """[heads], indices among the rows; those of a first position whose row stands before the block mean nothing."""
        firsts = np.cumsum([0, *(work.canvas for work in self.works)])
        shift = self.model.shape.is_shifted
        heads = [
            first + np.maximum(0, work.targets - work.block_start - shift)
            for first, work in zip(firsts.tolist(), self.works, strict=False)
        ]
        return self._tensor(np.concatenate(heads))

    @cached_property
    def _is_certain(self) -> Tensor:
        """[heads], whether the row before a block predicts it; see `decoding`, shifted models."""
        is_shifted = self.model.shape.is_shifted and self.model.shape.context == "causal"
        return self._rows(lambda job, work: (work.targets == work.block_start) & is_shifted)

    @cached_property
    def _starts(self) -> Tensor:
        return self._tensor(np.cumsum([0, *(len(work.heads) for work in self.works)]))

    @cached_property
    def _thresholds(self) -> Tensor:
        return self._tensor(np.array([job.decoding.threshold for job in self.jobs]))

    @cached_property
    def _end_ids(self) -> Tensor:
        return self._tensor(np.array(sorted(self.jobs[0].task.end_ids), np.int64))

    @cached_property
    def _attend(self) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        segments = [
            Segment(job.slot, work.block_start + np.arange(work.canvas), work.runs[-1].limits)
            for job, work in zip(self.jobs, self.works, strict=True)
        ]
        return self.cache.attention(segments)

    def _rows(self, rows_of: Callable[[Job, Work], NDArray[np.generic]]) -> Tensor:
        return self._tensor(np.concatenate([rows_of(*pair) for pair in zip(self.jobs, self.works, strict=True)]))

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.canvas.tokens.device)
