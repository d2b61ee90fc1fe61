"""What one request asks of the next pass, and what it makes of the answer: one class for each way to write.

A writer says which rows it wants computed (`plan`), gets what the model predicts at some of them (`take`), and hands
over the tokens that will not change any more (`settled`). Rows of committed tokens are *context*, rows of the block
that is being denoised are the *canvas*. Whether a position is masked is kept beside the tokens: the id of the mask
token in a prompt means nothing.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reasonrt.diffusion.decoding import Decoding
from reasonrt.diffusion.shape import ModelShape
from reasonrt.diffusion.strategies import Predictions, choose
from reasonrt.types import FinishReason

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]

ADAPTIVE_WINDOW = 4  # default blocks in which the end of a line is looked for


@dataclass(frozen=True, slots=True)
class Task:
    """What a writer is to write.

    Attributes:
        prompt: at least one token.
        max_tokens: at most so many new ones, >= 1.
        end_ids: the first of these ends the text, and is part of it.
        delimiter_ids: these end a line; for `adaptive`.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    end_ids: frozenset[int]
    delimiter_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows of one sequence in a pass.

    Attributes:
        start: position of the first row.
        tokens: [rows] what stands there; the mask token where nothing does.
        limits: [rows] what each row may attend to; see `cache`.
        blended: [rows] whether the row reads residual context in the place of its token's embedding.
    """

    start: int
    tokens: Ids
    limits: Ids
    blended: Flags


@dataclass(frozen=True, slots=True)
class Work:
    """What a writer wants from the next pass.

    Attributes:
        runs: rows to compute, in the order of their positions.
        heads: [heads] indices among the rows, at which predictions are wanted.
        targets: [heads] the positions that are predicted there.
        block_start: the first position of the block that is denoised.
        canvas: how many of the rows belong to that block.
        begins: [positions] those that need residual context of a start before this pass, such as a random one.
    """

    runs: list[Run]
    heads: Ids
    targets: Ids
    block_start: int
    canvas: int
    begins: Ids


@dataclass(frozen=True, slots=True)
class Settled:
    """Tokens that will not change any more, since the last time; `finish` is set once, with the last ones."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None


class Writer(Protocol):
    """One request's state. Its first `num_cached` tokens are in the cache."""

    decoding: Decoding
    num_cached: int

    @property
    def ids(self) -> list[int]:
        """The prompt and the blocks that are finished."""

    def plan(self, most_context: int) -> Work:
        """The rows of the next pass, of context about `most_context` at most; `take` follows, before the next one."""

    def take(self, predictions: Predictions) -> Flags:
        """Use what the pass predicts at the heads.

        Returns:
            [heads] those whose position reads residual context of this prediction in the next pass.
        """

    def settled(self) -> Settled: ...


class BlockWriter:
    """Block after block: SDAR, Fast-dLLM v2, and models with causal context.

    With context that is bidirectional within blocks, the grid of blocks starts at position 0: the rest of the prompt
    after its last whole block stands in the first canvas and is never changed. With causal context a block starts
    where the text ends.

    In a shifted model the row before a block predicts its first token. It sees nothing of the block, so that waiting
    would tell it nothing: that token is committed first. With bidirectional context that takes a pass, as in Fast-dLLM
    v2; with causal context the row is computed with the block's first pass, whose strategy takes it for certain.

    Args:
        task: what to write.
        decoding: read by `read_decoding`.
        shape: of the model.
        num_cached: so many tokens of the prompt are in the cache, all of them before the first block.
    """

    def __init__(self, task: Task, decoding: Decoding, shape: ModelShape, num_cached: int = 0) -> None:
        self.decoding, self.num_cached = decoding, num_cached
        self.ids = list(task.prompt)
        self._task, self._shape = task, shape
        self._logprobs: list[float] = []
        self._num_handed = 0  # tokens that `settled` has returned
        self._last = len(task.prompt) + task.max_tokens  # where the text ends at the latest
        self._finish: FinishReason | None = None
        self._start_block(first_block_start(len(task.prompt), shape, decoding.block))

    def _start_block(self, start: int) -> None:
        self._start, self._length = start, self._length_of_block(start)
        self._tokens = np.full(self._length, self._shape.mask_token_id, np.int64)
        self._chances = np.zeros(self._length)  # log-probabilities at which the tokens were committed
        self._is_masked = np.ones(self._length, np.bool_)
        self._num_pinned = len(self.ids) - start
        self._tokens[: self._num_pinned] = self.ids[start:]
        self._is_masked[: self._num_pinned] = False
        self._is_editable, self._is_end, self._is_blended = np.zeros((3, self._length), np.bool_)
        self._is_begun = False  # whether a pass has computed the block
        self._num_passes = 0  # that committed something
        self._part = -1  # of `sub_blocks`: the one that is being filled
        self._update()

    def _length_of_block(self, start: int) -> int:
        return self.decoding.block

    def _update(self) -> None:
        """Find out where the text, as far as it is known, leaves the block, and which part is filled next."""
        self._needed = min(self._length, self._last - self._start)
        if self._is_end[: self._needed].any():
            self._needed = int(self._is_end.argmax()) + 1
        if self.decoding.strategy == "sub_blocks":
            part = int(self._is_masked.argmax()) // self.decoding.sub_block_length
            self._is_part_begun = part == self._part and self._is_begun
            self._part = part

    # what the pass is to compute

    def plan(self, most_context: int) -> Work:
        context = self._context(most_context)
        runs, count = ([context], len(context.tokens)) if context else ([], 0)
        self._cached_then = context.start + count if context else self.num_cached
        self._targets = _NONE  # offsets in the block
        heads = begins = _NONE
        canvas = 0
        if self._cached_then == self._start and self._inherits():
            self._targets, heads = np.array([0]), np.array([count - 1])
        elif self._cached_then == self._start and (self.decoding.merge_commits or self.num_cached == self._start):
            if self._starts_blended():
                begins = np.flatnonzero(self._is_masked)
                self._is_blended[begins] = True
            first, last = self._canvas_rows()
            runs.append(self._canvas(first, last))
            self._targets = self._wanted()
            heads = count + self._start - first + self._targets - self._shape.is_shifted
            canvas = self._length
        return Work(runs, heads, self._start + self._targets, self._start, canvas, self._start + begins)

    def _context(self, most: int) -> Run | None:
        """Committed tokens before the block that are not in the cache yet."""
        grid = self.decoding.block
        begin = self.num_cached
        if begin == self._start and self._shape.is_shifted and self._is_masked[0]:
            begin -= 1  # the last row is asked for a prediction
        end = min(self._start, begin + max(most // grid, 1) * grid)
        if begin == end:
            return None
        positions = np.arange(begin, end)
        limits = positions + 1 if self._shape.context == "causal" else (positions // grid + 1) * grid
        return Run(begin, np.array(self.ids[begin:end], np.int64), limits, np.zeros(end - begin, np.bool_))

    def _inherits(self) -> bool:
        """Whether the first token of the block is to be predicted before the others."""
        return self._shape.is_shifted and self._shape.context == "block" and bool(self._is_masked[0])

    def _starts_blended(self) -> bool:
        is_given = self.decoding.residual_start in ("dirichlet", "reference")
        return bool(self.decoding.residual) and not self._is_begun and is_given

    def _canvas_rows(self) -> tuple[int, int]:
        """The positions whose rows are computed: of the block, or of the part of `sub_blocks` after its first pass."""
        first, last = 0, self._length
        if self.decoding.strategy == "sub_blocks" and self._is_part_begun:
            first, last = self._part_bounds()
            first = max(0, first - self._shape.is_shifted)
        return self._start + first, self._start + last

    def _part_bounds(self) -> tuple[int, int]:
        if self.decoding.strategy != "sub_blocks":
            return 0, self._length
        size = self.decoding.sub_block_length
        return self._part * size, min((self._part + 1) * size, self._length)

    def _canvas(self, first: int, last: int) -> Run:
        inside = slice(first - self._start, last - self._start)
        limits = np.full(last - first, self._start + self._length)
        return Run(first, self._tokens[inside], limits, self._is_blended[inside])

    def _wanted(self) -> Ids:
        """Offsets at which a prediction is wanted."""
        first, last = self._part_bounds()
        inside = slice(first, min(last, self._needed))
        return first + np.flatnonzero(self._is_masked[inside] | self._is_editable[inside])

    # what is made of the answer

    def take(self, predictions: Predictions) -> Flags:
        self.num_cached = self._cached_then
        targets = self._targets
        if not len(targets):
            return np.zeros(0, np.bool_)
        if self._inherits():
            self._commit(targets, predictions)
            self._close_block()
            return np.zeros(1, np.bool_)
        if self._shape.is_shifted and self._shape.context == "causal" and targets[0] == 0:
            predictions = predictions.certain_of_first()
        is_masked = self._is_masked[targets]
        is_start = bool(self.decoding.residual) and self.decoding.residual_start == "self" and not self._is_begun
        self._is_begun = True
        if not is_start:
            self._edit(predictions, np.flatnonzero(~is_masked))
            among = np.flatnonzero(is_masked)
            chosen = among[choose(predictions[among], self.decoding, self._num_passes)]
            self._commit(targets[chosen], predictions[chosen])
            self._num_passes += 1
        stays = self._is_masked[targets] & bool(self.decoding.residual)
        self._is_blended[targets] = stays
        return stays & (not self._close_block())

    def _commit(self, offsets: Ids, predictions: Predictions) -> None:
        self._tokens[offsets] = predictions.tokens
        self._chances[offsets] = predictions.logprobs
        self._is_masked[offsets] = False
        self._is_editable[offsets] = self.decoding.edit_threshold is not None
        if self._shape.is_shifted and self._shape.context != "full":
            self._is_editable[0] = False  # the row that predicts it is not computed again
        self._is_end[offsets] = [token in self._task.end_ids for token in predictions.tokens.tolist()]

    def _edit(self, predictions: Predictions, committed: Ids) -> None:
        """Replace what the model now contradicts; once for each position, so that this ends."""
        if self.decoding.edit_threshold is None:
            return
        differs = self._tokens[self._targets[committed]] != predictions.tokens[committed]
        edited = committed[differs & (predictions.confidences[committed] > self.decoding.edit_threshold)]
        self._commit(self._targets[edited], predictions[edited])
        self._is_editable[self._targets[edited]] = False

    def _close_block(self) -> bool:
        """Start the next block where this one needs nothing more, or end the text; whether it was so."""
        self._update()
        if self._is_masked[: self._needed].any():
            return False
        filled = slice(self._num_pinned, self._needed)
        self.ids += self._tokens[filled].tolist()
        self._logprobs += self._chances[filled].tolist()
        if self._is_end[self._needed - 1]:
            self._finish = FinishReason.STOP
        elif len(self.ids) == self._last:
            self._finish = FinishReason.LENGTH
        else:
            self._start_block(self._start + self._length)
        return True

    def settled(self) -> Settled:
        begin = self._num_handed
        tokens, logprobs = self.ids[len(self._task.prompt) + begin :], self._logprobs[begin:]
        if self._finish is None and self.decoding.edit_threshold is None:  # what the open block begins with
            handed = len(self._task.prompt) + begin + len(tokens) - self._start
            filled = slice(handed, int(self._is_masked.argmax()))
            tokens += self._tokens[filled].tolist()
            logprobs += self._chances[filled].tolist()
        self._num_handed += len(tokens)
        return Settled(tokens, logprobs, self._finish)


class FullWriter(BlockWriter):
    """Block after block with full attention, also to what is still masked after the block: LLaDA.

    Keys and values depend on everything, so what the cache holds is an approximation that the first pass of each block
    renews (Fast-dLLM, 2505.22618); which part is `Decoding.caching`. Of a shifted model (Dream) the row before the
    block, which predicts its first token, is computed with it.
    """

    def __init__(self, task: Task, decoding: Decoding, shape: ModelShape) -> None:
        self._total = full_length(len(task.prompt), task.max_tokens, decoding, shape)
        super().__init__(task, decoding, shape)

    def _length_of_block(self, start: int) -> int:
        blocks = ADAPTIVE_WINDOW if self.decoding.strategy == "adaptive" else 1
        return min(blocks * self.decoding.block, self._total - start)

    def _context(self, most: int) -> None:
        self.num_cached = self._start
        return

    def _inherits(self) -> bool:
        return False

    def _canvas_rows(self) -> tuple[int, int]:
        if not self._is_begun or self.decoding.caching == "none":
            return 0, self._total
        first = self._start - self._shape.is_shifted
        return first, self._total if self.decoding.caching == "prefix" else self._start + self._length

    def _canvas(self, first: int, last: int) -> Run:
        tokens = np.full(self._total, self._shape.mask_token_id, np.int64)
        tokens[: len(self.ids)] = self.ids
        tokens[self._start : self._start + self._length] = self._tokens[: self._length]
        is_blended = np.zeros(self._total, np.bool_)
        is_blended[self._start : self._start + self._length] = self._is_blended[: self._length]
        return Run(first, tokens[first:last], np.full(last - first, self._total), is_blended[first:last])

    def take(self, predictions: Predictions) -> Flags:
        if self.decoding.strategy != "adaptive" or self._is_begun:
            return super().take(predictions)
        self._length = self._adapted_length(predictions)
        inside = int(np.count_nonzero(self._targets < self._length))
        self._targets = self._targets[:inside]
        stays = np.zeros(len(predictions.tokens), np.bool_)
        stays[:inside] = super().take(predictions[:inside])
        return stays

    def _adapted_length(self, predictions: Predictions) -> int:
        """Up to the surest end of a line, where there is one; else the default."""
        is_line_end = [token in self._task.delimiter_ids for token in predictions.tokens.tolist()]
        sure = np.where(is_line_end, predictions.confidences, -1.0)
        best = int(sure.argmax())
        if sure[best] < self.decoding.delimiter_threshold:
            return min(self.decoding.block, self._length)
        return int(self._targets[best]) + 1


class SelfSpeculator:
    """Drafts a block in one pass and verifies it in the next one, with the same weights (2607.05722).

    What comes out is what the model writes token by token: the row of each token predicts the one after it, and the
    draft stays up to the first token that is not the predicted one. That one is taken in its place.
    """

    def __init__(self, task: Task, decoding: Decoding, shape: ModelShape, num_cached: int = 0) -> None:
        self.decoding, self.num_cached = decoding, min(num_cached, len(task.prompt) - 1)
        self.ids = list(task.prompt)
        self._task, self._shape = task, shape
        self._logprobs: list[float] = []
        self._num_handed = 0
        self._last = len(task.prompt) + task.max_tokens
        self._finish: FinishReason | None = None
        self._draft = _NONE  # its first token is no draft: the model itself has written it
        self._chance = 0.0  # log-probability of that one

    def plan(self, most_context: int) -> Work:
        start = len(self.ids)
        if len(self._draft):
            rows = np.arange(len(self._draft))
            run = self._run(start, self._draft, start + rows + 1)
            return Work([run], rows, start + rows + 1, start, len(rows), _NONE)
        begin, end = self.num_cached, min(start, self.num_cached + most_context)
        self._cached_then = end
        runs = [self._run(begin, np.array(self.ids[begin:end], np.int64), np.arange(begin, end) + 1)]
        if end < start:
            return Work(runs, _NONE, _NONE, start, 0, _NONE)
        # the last committed row predicts the first new token, the rows of the canvas draft those after it
        length = min(self.decoding.block, self._last - start)
        masks = np.full(length, self._shape.mask_token_id, np.int64)
        runs.append(self._run(start, masks, np.full(length, start + length)))
        offsets = np.arange(length)
        heads = end - begin + np.where(offsets > 0, offsets - self._shape.is_shifted, -1)
        return Work(runs, heads, start + offsets, start, length, _NONE)

    @staticmethod
    def _run(start: int, tokens: Ids, limits: Ids) -> Run:
        return Run(start, tokens, limits, np.zeros(len(tokens), np.bool_))

    def take(self, predictions: Predictions) -> Flags:
        if len(self._draft):
            self._verify(predictions)
        else:
            self.num_cached = self._cached_then
            self._draft = predictions.tokens
            if len(self._draft):
                self._chance = float(predictions.logprobs[0])
            if len(self._draft) == 1 or self._task.end_ids.intersection(self._draft[:1].tolist()):
                self._write(self._draft[:1].tolist(), [self._chance])
        return np.zeros(len(predictions.tokens), np.bool_)

    def _verify(self, predictions: Predictions) -> None:
        differs = np.append(self._draft[1:] != predictions.tokens[:-1], True)
        kept = 1 + int(differs.argmax())
        self.num_cached += kept
        written = [*self._draft[:kept].tolist(), int(predictions.tokens[kept - 1])]
        self._write(written, [self._chance, *predictions.logprobs[:kept].tolist()])

    def _write(self, written: list[int], chances: list[float]) -> None:
        left = self._last - len(self.ids)
        ends = [count for count, token in enumerate(written, 1) if token in self._task.end_ids]
        count = min([left, len(written), *ends])
        self.ids += written[:count]
        self._logprobs += chances[:count]
        self.num_cached = min(self.num_cached, len(self.ids))
        self._draft = _NONE
        if count in ends:
            self._finish = FinishReason.STOP
        elif count == left:
            self._finish = FinishReason.LENGTH

    def settled(self) -> Settled:
        begin = self._num_handed
        tokens = self.ids[len(self._task.prompt) + begin :]
        self._num_handed += len(tokens)
        return Settled(tokens, self._logprobs[begin:], self._finish)


def make_writer(task: Task, decoding: Decoding, shape: ModelShape, num_cached: int = 0) -> Writer:
    """The writer for `decoding`; `num_cached` as `reusable` allows it."""
    if shape.context == "full":
        return FullWriter(task, decoding, shape)
    kind = SelfSpeculator if decoding.strategy == "self_speculation" else BlockWriter
    return kind(task, decoding, shape, num_cached)


def first_block_start(num_tokens: int, shape: ModelShape, block_length: int) -> int:
    """Where the first block starts, for a prompt of `num_tokens`."""
    return num_tokens // block_length * block_length if shape.context == "block" else num_tokens


def reusable(num_common: int, num_tokens: int, decoding: Decoding, shape: ModelShape) -> int:
    """How many tokens of a prompt need not be computed, where the cache holds its first `num_common`.

    What a token's keys and values depend on must be the same: with context that is bidirectional within blocks, the
    whole block.
    """
    if shape.context == "full":
        return 0
    grid = decoding.block if shape.context == "block" else 1
    return min(num_common // grid * grid, first_block_start(num_tokens, shape, decoding.block))


def full_length(num_tokens: int, max_tokens: int, decoding: Decoding, shape: ModelShape) -> int:
    """Positions that a request takes at most, whole blocks that they are."""
    if decoding.strategy == "self_speculation":
        return num_tokens + max_tokens
    start = first_block_start(num_tokens, shape, decoding.block)
    return start + -(-(num_tokens + max_tokens - start) // decoding.block) * decoding.block


_NONE: Ids = np.zeros(0, np.int64)
