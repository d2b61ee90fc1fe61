"""Block diffusion as its rules are written down: one request, no batches, no cache of what is committed.

The rules are those of `decoding`. The engine is proved against this: it shares the transformer and the noise with it,
nothing else. Every pass computes every row again, but for the two approximations that are part of the rules: `caching`
of models with full attention, and `sub_blocks`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from reasonrt.diffusion.decoding import Decoding
from reasonrt.diffusion.model import Attend, DiffusionModel
from reasonrt.diffusion.sampling import Drawing
from reasonrt.diffusion.writers import Task
from reasonrt.types import FinishReason


@dataclass(frozen=True, slots=True)
class Written:
    """Tokens, with the one that ended the text; their log-probabilities, unscaled, when they were committed; and passes
    that predicted something or only committed a block: of `self_speculation` one a token.
    """

    tokens: list[int]
    logprobs: list[float]
    finish: FinishReason
    passes: int


@dataclass(frozen=True, slots=True)
class _Guess:
    """What a pass predicts at one position."""

    position: int
    logits: Tensor  # [tokens]
    token: int
    logprob: float
    confidence: float
    entropy: float


@torch.inference_mode()  # type: ignore[untyped-decorator]
def write(
    model: DiffusionModel, task: Task, decoding: Decoding, drawing: Drawing, reference: DiffusionModel | None = None
) -> Written:
    """What follows `task.prompt`, by a model on the CPU; `reference` is that of `residual_start: reference`."""
    writing = _Writing(model, task, decoding, drawing)
    return writing.token_by_token() if writing.is_lossless else writing.block_by_block(reference)


class _Memory:
    """Keys and values of each position, as they were computed last."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._kept: dict[int, Tensor] = {}

    def attend(self, rows: list[int], limits: list[int]) -> Attend:
        hides = torch.arange(self._length) >= torch.tensor(limits)[:, None, None]

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            if layer not in self._kept:
                self._kept[layer] = keys.new_zeros(2, self._length, *keys.shape[1:])
            self._kept[layer][:, rows] = torch.stack((keys, values))
            groups = queries.shape[1] // keys.shape[1]
            told, carried = self._kept[layer].repeat_interleave(groups, dim=2)
            scores = torch.einsum("rhd,phd->rhp", queries, told) / math.sqrt(queries.shape[-1])
            return torch.einsum("rhp,phd->rhd", scores.masked_fill(hides, -torch.inf).softmax(-1), carried)

        return attend


class _Writing:
    def __init__(self, model: DiffusionModel, task: Task, decoding: Decoding, drawing: Drawing) -> None:
        self.model, self.shape, self.is_full = model, model.shape, model.shape.context == "full"
        self.task, self.decoding, self.drawing = task, decoding, drawing
        self.block, self.prompt = decoding.block, len(task.prompt)
        self.last = self.prompt + task.max_tokens
        self.total = self.prompt + math.ceil(task.max_tokens / self.block) * self.block
        self.at = dict(enumerate(task.prompt))  # the committed token at each position; no entry: masked
        self.logprobs: dict[int, float] = {}
        self.fixed = set(self.at)  # positions that are never edited
        self.memory = _Memory(self.total + self.block)
        self.shift, self.passes = int(self.shape.is_shifted), 0
        self.is_lossless = decoding.strategy == "self_speculation"

    def token_by_token(self) -> Written:
        self.shift = 1  # the row of a committed token predicts the one after it
        while True:
            position = len(self.at)
            self._commit(self._guess(range(position), [position], position, position, {})[0])
            if self.at[position] in self.task.end_ids or position + 1 == self.last:
                return self._written(position + 1)

    def block_by_block(self, reference: DiffusionModel | None) -> Written:
        start = self.prompt // self.block * self.block if self.shape.context == "block" else self.prompt
        while True:
            end = self._fill(start, reference)
            stop = self._needed_end(start, end)
            if self.at[stop - 1] in self.task.end_ids or stop == self.last:
                return self._written(stop)
            is_inherited = self.shape.is_shifted and self.shape.context == "block"
            self.passes += not (self.is_full or is_inherited or self.decoding.merge_commits)  # for the commit
            start = end

    def _written(self, stop: int) -> Written:
        tokens, logprobs = zip(*[(self.at[p], self.logprobs[p]) for p in range(self.prompt, stop)], strict=True)
        finish = FinishReason.STOP if tokens[-1] in self.task.end_ids else FinishReason.LENGTH
        return Written(list(tokens), list(logprobs), finish, self.passes)

    def _needed_end(self, start: int, end: int) -> int:
        """Where the text, as far as it is known, leaves the block."""
        new = range(max(start, self.prompt), min(end, self.last))
        return next((p + 1 for p in new if self.at.get(p) in self.task.end_ids), new.stop)

    def _fill(self, start: int, reference: DiffusionModel | None) -> int:
        """Commit the needed tokens of the block at `start`; returns where it ends."""
        decoding, window = self.decoding, 4 if self.decoding.strategy == "adaptive" else 1
        end = min(start + window * self.block, self.total) if self.is_full else start + self.block
        if self.shape.is_shifted and self.shape.context == "block" and start not in self.at:
            self._commit(self._guess(range(start), [start], start, start, {})[0])
            self.fixed.add(start)
        residual = self._begin_residual(start, end, reference)
        waits = bool(decoding.residual) and decoding.residual_start == "self"  # for a pass that commits nothing
        num_passes, begun, can_edit = 0, set[int](), decoding.edit_threshold is not None
        is_sure = self.shape.is_shifted and self.shape.context == "causal"
        while masked := [p for p in range(start, self._needed_end(start, end)) if p not in self.at]:
            part, stop = self._part(start, end, masked[0]), self._needed_end(start, end)
            wanted = [p for p in part if p < stop and (p not in self.at or (can_edit and p not in self.fixed))]
            guesses = self._guess(self._rows(start, end, part, begun), wanted, start, end, residual)
            if decoding.strategy == "adaptive" and not begun:
                end = self._adapted_end(start, end, guesses)
                guesses = [guess for guess in guesses if guess.position < end]
                residual = {p: blended for p, blended in residual.items() if p < end}
            if is_sure and wanted[0] == start:  # it sees nothing of the block: certain, and never edited
                guesses[0] = replace(guesses[0], confidence=1.0, entropy=0.0)
                self.fixed.add(start)
            if begun or not waits:
                self._take(guesses, num_passes)
                num_passes += 1
            begun.add(part.start)
            if decoding.residual:
                residual |= {guess.position: self._blend(guess.logits) for guess in guesses}
        return end

    def _part(self, start: int, end: int, position: int) -> range:
        """The positions among which a pass commits: those of the block, or of the part that `position` is in."""
        if self.decoding.strategy != "sub_blocks":
            return range(start, end)
        size = self.decoding.sub_block_length
        first = start + (position - start) // size * size
        return range(first, min(first + size, end))

    def _take(self, guesses: list[_Guess], num_passes: int) -> None:
        chosen = self._chosen([guess for guess in guesses if guess.position not in self.at], num_passes)
        for guess in guesses:
            is_another = guess.token != self.at.get(guess.position, guess.token)
            if is_another and guess.confidence > (self.decoding.edit_threshold or 0):
                self._commit(guess)
                self.fixed.add(guess.position)
        for guess in chosen:
            self._commit(guess)

    def _commit(self, guess: _Guess) -> None:
        self.at[guess.position], self.logprobs[guess.position] = guess.token, guess.logprob

    def _rows(self, start: int, end: int, part: range, begun: set[int]) -> range:
        """Which rows a pass computes: all, but for the two approximations."""
        if self.is_full:
            begin = start - self.shift
            rows = {"none": range(self.total), "prefix": range(begin, self.total), "dual": range(begin, end)}
            return rows[self.decoding.caching if begun else "none"]
        if self.decoding.strategy == "sub_blocks" and part.start in begun:
            return range(max(start - self.shift * (self.shape.context == "causal"), part.start - self.shift), part.stop)
        return range(end)

    def _guess(self, rows: range, wanted: list[int], start: int, end: int, residual: dict[int, Tensor]) -> list[_Guess]:
        """What one pass over `rows` predicts at the positions `wanted`, for the block from `start` to `end`."""
        table, grid = self.model.embedding.weight, self.block if self.shape.context == "block" else 1
        limits = [end if row >= start else (row // grid + 1) * grid for row in rows]
        attend = self.memory.attend(list(rows), [self.total for _ in rows] if self.is_full else limits)
        embeds = [table[self.at[p]] if p in self.at else residual.get(p, table[self.shape.mask_token_id]) for p in rows]
        hidden = self.model(torch.stack(embeds), torch.tensor(rows), attend)
        self.passes += 1
        heads = [rows.index(position - self.shift) for position in wanted]
        return [self._drawn(p, logits) for p, logits in zip(wanted, self.model.logits(hidden[heads]), strict=True)]

    def _drawn(self, position: int, logits: Tensor) -> _Guess:
        token = logits.argmax()
        if self.drawing.temperature > 0:
            scaled = logits.double() / self.drawing.temperature
            probs, order = scaled.softmax(-1).sort(descending=True, stable=True)
            is_kept = probs.cumsum(-1) - probs < self.drawing.top_p  # the mass of those before it
            noisy = scaled + self.drawing.noise(np.array([position]), len(scaled))[0]
            token = order[noisy[order].where(is_kept, -torch.inf).argmax()]
        logprobs = logits.log_softmax(-1)
        entropy, logprob = -torch.special.xlogy(logprobs.exp(), logprobs.exp()).sum(), float(logprobs[token])
        return _Guess(position, logits, int(token), logprob, math.exp(logprob), float(entropy))

    def _chosen(self, guesses: list[_Guess], num_passes: int) -> list[_Guess]:
        """Those of the guesses at masked positions, from the left, that are committed."""
        decoding = self.decoding
        surest = sorted(guesses, key=lambda guess: -guess.confidence)  # stable: the leftmost among equals
        if decoding.strategy in ("sequential", "static"):
            each, more = divmod(self.block, decoding.passes or self.block)
            return (guesses if decoding.strategy == "sequential" else surest)[: each + (num_passes < more)]
        if decoding.strategy == "entropy":
            order = sorted(guesses, key=lambda guess: guess.entropy)
            fits = [n for n in range(1, len(order) + 1) if sum(g.entropy for g in order[:n]) <= decoding.entropy_bound]
            return order[: max(fits, default=1)]
        if decoding.strategy == "factor":
            fits = [n for n, guess in enumerate(surest, 1) if (n + 1) * (1 - guess.confidence) < decoding.factor]
            return surest[: max(fits, default=1)]
        return [guess for guess in guesses if guess.confidence > decoding.threshold] or surest[:1]

    def _adapted_end(self, start: int, end: int, guesses: list[_Guess]) -> int:
        line_ends = [guess for guess in guesses if guess.token in self.task.delimiter_ids]
        surest = max(line_ends, key=lambda guess: guess.confidence, default=None)  # the leftmost among equals
        is_sure = surest and surest.confidence >= self.decoding.delimiter_threshold
        return surest.position + 1 if surest and is_sure else min(start + self.block, end)

    def _begin_residual(self, start: int, end: int, reference: DiffusionModel | None) -> dict[int, Tensor]:
        """What the first pass of a block reads at its masked positions, where that is not the mask."""
        decoding, masked = self.decoding, [p for p in range(start, end) if p not in self.at]
        if decoding.residual and decoding.residual_start == "dirichlet":
            drawn = {p: self.drawing.dirichlet(p, self.shape, decoding)[0] for p in masked}
            return {p: self._expect(probs, probs) for p, probs in drawn.items()}
        if decoding.residual and decoding.residual_start == "reference" and reference is not None and masked:
            stop = self.total if self.is_full else end
            reading = _Writing(reference, self.task, decoding, Drawing())
            reading.at, reading.total = self.at, stop
            guesses = reading._guess(range(stop), masked, start, stop, {})
            return {guess.position: self._blend(guess.logits) for guess in guesses}
        return {}

    def _blend(self, logits: Tensor) -> Tensor:
        probs, scaled = logits.softmax(-1), (logits / self.decoding.residual_temperature).softmax(-1)
        return self._expect(scaled if self.decoding.residual_scaled else probs, scaled)

    def _expect(self, probs: Tensor, weighing: Tensor) -> Tensor:
        table, alpha = self.model.embedding.weight, self.decoding.residual_weight
        if alpha is None:
            alpha = float(-torch.special.xlogy(weighing, weighing).sum().to(table.dtype)) / math.log(self.shape.tokens)
        top = probs.argsort(descending=True, stable=True)[: self.decoding.residual_top_k]
        expected = (probs[top] / probs[top].sum()).to(table.dtype) @ table[top]
        return (1 - alpha) * table[self.shape.mask_token_id] + alpha * expected
