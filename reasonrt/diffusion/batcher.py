"""One forward pass after the other, each over all requests that are being written, in whatever phase they are.

Requests join and leave between passes. What a request gets does not depend on who shares its passes: its rows attend to
its own sequence only, and what is drawn for a position depends on its seed and the position alone.
"""

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasonrt.diffusion.ahead import Canvas, PassesAhead, can_run_ahead
from reasonrt.diffusion.cache import KvCache, Segment
from reasonrt.diffusion.decoding import Decoding
from reasonrt.diffusion.job import Job
from reasonrt.diffusion.model import DiffusionModel, attend_among_rows
from reasonrt.diffusion.residual import blend, needs_logits, num_expected
from reasonrt.diffusion.sampling import predict, read_head
from reasonrt.diffusion.strategies import Predictions
from reasonrt.diffusion.writers import ADAPTIVE_WINDOW, Work, reusable
from reasonrt.kernels.row_stats import row_stats

MOST_CONTEXT = 256  # rows of a request's context in one pass: longer prompts take several
_LOGIT_BYTES = 256 * 2**20  # of one chunk of rows


@dataclass(eq=False)
class _Slot:
    """What the cache holds in one slot: keys and values of the first `count` of `ids`."""

    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    salt: str = ""
    grid: int = 0  # block length that they were computed with; blocks of other lengths give other values
    job: Job | None = None
    used: int = 0  # when, in passes


class Batcher:
    """Not for several threads: one thread calls everything.

    Args:
        model: on its device, in its dtype.
        slots: how many requests are written concurrently; more wait.
        length: prompt and new tokens of one request, at most.
        reference: the model of `residual_start: reference`, with the same tokens, and the same mask token.
        passes_together: so many passes over open blocks follow each other before the host sees what they predict, where
            all requests commit by `threshold` and draw nothing. The tokens are the same.
    """

    def __init__(
        self,
        model: DiffusionModel,
        slots: int,
        length: int,
        reference: DiffusionModel | None = None,
        passes_together: int = 1,
    ) -> None:
        weight = model.embedding.weight
        self.model, self.reference, self.length = model, reference, length
        self._passes_together = passes_together
        self._device = weight.device
        block = model.shape.block_length
        window = block * (ADAPTIVE_WINDOW if model.shape.context == "full" else 1)
        self._cache = KvCache(model.shape, slots, length + block, weight.dtype, self._device)
        self._blends = torch.zeros(slots, window, model.shape.hidden, dtype=weight.dtype, device=self._device)
        tokens = torch.zeros(slots * window, dtype=torch.int64, device=self._device)
        self._canvas = Canvas(tokens, self._blends.flatten(0, 1), window)
        self._slots = [_Slot() for _ in range(slots)]
        self._waiting: deque[Job] = deque()
        self._pass = 0

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._running()

    def add(self, job: Job) -> None:
        """Let `job` take part from the next pass on, or wait for a slot."""
        self._waiting.append(job)

    def cancel(self, job: Job) -> None:
        """Take `job` out. Its prompt and finished blocks stay in the cache. Idempotent."""
        if job in self._waiting:
            self._waiting.remove(job)
        if job.slot >= 0 and self._slots[job.slot].job is job:
            self._release(job)

    def abandon(self) -> list[Job]:
        """After a pass that failed: take out all jobs that took part, and forget what their slots hold."""
        jobs = self._running()
        for job in jobs:
            self._release(job)
            self._slots[job.slot].ids = np.zeros(0, np.int64)
            self._cache.clear(job.slot)
            self._blends[job.slot] = 0
        return jobs

    def _running(self) -> list[Job]:
        return [slot.job for slot in self._slots if slot.job is not None]

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def step(self) -> None:
        """One forward pass over all jobs that have a slot."""
        while self._waiting and (free := self._best_slot(self._waiting[0])) is not None:
            self._admit(self._waiting.popleft(), *free)
        jobs = self._running()
        if not jobs:
            return
        self._pass += 1
        works = [job.writer.plan(MOST_CONTEXT) for job in jobs]
        hidden = self._forward(jobs, works)
        if self._passes_together > 1 and len(hidden) <= self._most_rows and can_run_ahead(jobs, works):
            self._run_ahead(jobs, works, hidden)
            return
        self._predict(jobs, works, hidden)
        for job, work in zip(jobs, works, strict=True):
            if self._slots[job.slot].job is job:  # no other one's report has cancelled it
                job.passes += work.canvas > 0 or len(work.heads) > 0 or not self._is_prompt(job, work)
                job.canvas += work.canvas
                self._settle(job)

    def _settle(self, job: Job) -> None:
        """Hand over what does not change any more, after a writer has taken its predictions."""
        settled = job.writer.settled()
        if settled.finish is not None:
            self._release(job)
        if settled.tokens or settled.finish is not None:
            job.report(job, settled)

    def _run_ahead(self, jobs: list[Job], works: list[Work], hidden: Tensor) -> None:
        """Several passes over the blocks; each writer takes its predictions until its block is full."""
        ahead = PassesAhead(self.model, self._cache, self._canvas, jobs, works)
        passes = ahead.run(hidden, self._passes_together)
        begin = 0
        for job, first in zip(jobs, works, strict=True):
            rows = begin + np.arange(len(first.heads))
            job.passes += len(passes)  # those after its block is full are in vain, and paid for
            job.canvas += len(passes) * first.canvas
            begin += len(first.heads)
            for predictions in passes:
                if self._slots[job.slot].job is not job:  # ended, or cancelled by another one's report
                    break
                work = first if predictions is passes[0] else job.writer.plan(MOST_CONTEXT)
                if work.block_start != first.block_start:
                    break
                taken = predictions[rows[np.searchsorted(first.targets, work.targets)]]
                _check_finite(taken)
                job.writer.take(taken)
                self._settle(job)

    @staticmethod
    def _is_prompt(job: Job, work: Work) -> bool:
        """Whether a pass only read the prompt."""
        return all(run.start + len(run.tokens) <= len(job.task.prompt) for run in work.runs)

    # slots and what they hold

    def _best_slot(self, job: Job) -> tuple[int, int, int] | None:
        """A free slot, and the slot that shares the longest prefix with `job`, with the length of it."""
        free = [index for index, slot in enumerate(self._slots) if slot.job is None]
        if not free:
            return None
        common = [self._common(slot, job) for slot in self._slots]
        best = max(range(len(common)), key=common.__getitem__)
        if best in free and common[best] > 0:
            return best, best, common[best]
        oldest = min(free, key=lambda index: self._slots[index].used)
        return oldest, best, common[best]

    def _common(self, slot: _Slot, job: Job) -> int:
        grid = job.decoding.block if self.model.shape.context == "block" else 0
        if slot.salt != job.salt or slot.grid not in (0, grid):
            return 0
        held = np.array(slot.job.writer.ids[: slot.job.writer.num_cached], np.int64) if slot.job else slot.ids
        count = min(len(held), len(job.task.prompt))
        differs = held[:count] != np.array(job.task.prompt[:count], np.int64)
        common = int(np.argmax(differs)) if differs.any() else count
        return reusable(common, len(job.task.prompt), job.decoding, self.model.shape)

    def _admit(self, job: Job, index: int, source: int, common: int) -> None:
        if source != index and common:
            self._cache.copy(source, index, common)
        job.slot, job.writer = index, job.make(job.task, job.decoding, self.model.shape, common)
        job.cached = job.writer.num_cached
        slot = self._slots[index]
        slot.job, slot.salt, slot.used = job, job.salt, self._pass
        slot.grid = job.decoding.block if self.model.shape.context == "block" else 0

    def _release(self, job: Job) -> None:
        slot = self._slots[job.slot]
        kept = 0 if self.model.shape.context == "full" else job.writer.num_cached
        slot.ids = np.array(job.writer.ids[:kept], np.int64)
        slot.job, slot.used = None, self._pass

    # the pass itself

    def _forward(self, jobs: list[Job], works: list[Work]) -> Tensor:
        """Hidden states at the heads, job after job."""
        for job, work in zip(jobs, works, strict=True):
            if len(work.begins):
                self._begin_blended(job, work)
        segments, tokens, blended, slots, offsets, heads = [], [], [], [], [], []
        num_rows = 0
        for job, work in zip(jobs, works, strict=True):
            heads.append(num_rows + work.heads)
            for run in work.runs:
                num_rows += len(run.tokens)
                positions = np.arange(run.start, run.start + len(run.tokens))
                segments.append(Segment(job.slot, positions, run.limits))
                tokens.append(run.tokens)
                blended.append(run.blended)
                slots.append(np.full(np.count_nonzero(run.blended), job.slot))
                offsets.append(positions[run.blended] - work.block_start)
        embeds = self.model.embedding(self._tensor(np.concatenate(tokens)))
        if len(rows := np.flatnonzero(np.concatenate(blended))):
            read = self._blends[self._tensor(np.concatenate(slots)), self._tensor(np.concatenate(offsets))]
            embeds[self._tensor(rows)] = read
        positions = self._tensor(np.concatenate([segment.positions for segment in segments]))
        return self.model(embeds, positions, self._cache.attention(segments), self._tensor(np.concatenate(heads)))

    def _predict(self, jobs: list[Job], works: list[Work], hidden: Tensor) -> None:
        """Let each writer take the predictions at its heads; as many jobs at a time as the memory for logits allows."""
        first, rows = 0, [len(work.heads) for work in works]
        for last in range(1, len(jobs) + 1):
            if last == len(jobs) or sum(rows[first : last + 1]) > self._most_rows:
                count = sum(rows[first:last])
                self._predict_some(jobs[first:last], works[first:last], hidden[:count])
                first, hidden = last, hidden[count:]

    @property
    def _most_rows(self) -> int:
        """Whose logits may be in memory together."""
        return max(1, _LOGIT_BYTES // (4 * self.model.shape.tokens))

    def _predict_some(self, jobs: list[Job], works: list[Work], hidden: Tensor) -> None:
        """The same, and keep the residual context that each wants."""
        needs = [job.watch is not None or job.drawing.temperature > 0 or needs_logits(job.decoding) for job in jobs]
        top_k = max(num_expected(self.model, job.decoding) for job in jobs)
        stats, logits = read_head(self.model, hidden, top_k, any(needs))
        predicted = predict(stats, logits, [job.drawing for job in jobs], [work.targets for work in works])
        _check_finite(predicted)
        blends: dict[Decoding, list[tuple[NDArray[np.intp], Job, NDArray[np.int64]]]] = {}
        begin = 0
        for job, work in zip(jobs, works, strict=True):
            part = slice(begin, begin + len(work.heads))
            if job.watch is not None and len(work.heads):
                assert logits is not None  # noqa: S101 - for the type checker
                job.watch(work.targets, stats.at(part), logits[part])
            stays = np.flatnonzero(job.writer.take(predicted[part]))
            if len(stays):
                offsets = work.targets[stays] - work.block_start
                blends.setdefault(job.decoding, []).append((begin + stays, job, offsets))
            begin = part.stop
        for decoding, group in blends.items():
            rows_of = self._tensor(np.concatenate([stays for stays, _, _ in group]))
            slots = self._tensor(np.concatenate([np.full(len(offsets), job.slot) for _, job, offsets in group]))
            places = self._tensor(np.concatenate([offsets for _, _, offsets in group]))
            self._blends[slots, places] = blend(self.model, stats, logits, decoding, rows_of)

    def _begin_blended(self, job: Job, work: Work) -> None:
        """Residual context for the first pass of a block."""
        shape, decoding = self.model.shape, job.decoding
        if decoding.residual_start == "dirichlet":
            probs = torch.cat([job.drawing.dirichlet(int(at), shape, decoding) for at in work.begins]).to(self._device)
            logits, decoding = probs.log(), replace(decoding, residual_temperature=1.0)
        else:
            logits = self._reference_logits(job, work)
        blends = blend(self.model, row_stats(logits, top_k=num_expected(self.model, decoding)), logits, decoding)
        self._blends[job.slot, self._tensor(work.begins - work.block_start)] = blends

    def _reference_logits(self, job: Job, work: Work) -> Tensor:
        """What the reference model predicts at the masked positions of a block that begins, without a cache."""
        assert self.reference is not None  # noqa: S101 - checked by read_decoding
        shape, start = self.reference.shape, work.block_start
        run = work.runs[-1]
        tokens = np.concatenate((np.array(job.writer.ids[:start], np.int64), run.tokens[start - run.start :]))
        positions = np.arange(len(tokens))
        block = job.decoding.block
        limits = (positions // block + 1) * block if shape.context == "block" else positions + 1
        limits[start:] = len(tokens)
        if shape.context == "full":
            limits[:] = len(tokens)
        embeds = self.reference.embedding(self._tensor(tokens))
        attend = attend_among_rows(self._tensor(limits))
        wanted = self._tensor(work.begins - shape.is_shifted)
        return self.reference.logits(self.reference(embeds, self._tensor(positions), attend, wanted))

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _check_finite(predictions: Predictions) -> None:
    if not np.isfinite(predictions.logprobs).all():
        raise FloatingPointError("the model computes no finite log-probabilities")
