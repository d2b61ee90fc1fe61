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

    Args:
        task: what to write.
        decoding: read by `read_decoding`.
        shape: of the model.
        num_cached: so many tokens of the prompt are in the cache, all of them before the first block.
    """

    def __init__(self, task: Task, decoding: Decoding, shape: ModelShape, num_cached: int = 0) -> None:
        self.decoding, self.num_cached = decoding, num_cached
        self.ids = list(task.prompt)
        self._task, self._shape, self._block_length = task, shape, decoding.block
        self._logprobs: list[float] = []
        self._handed = 0  # tokens that `settled` has returned
        self._last = len(task.prompt) + task.max_tokens  # where the text ends at the latest
        self._finish: FinishReason | None = None
        self._cached_then = num_cached
        self._start_block(first_block_start(len(task.prompt), shape, self._block_length))

    def _start_block(self, start: int) -> None:
        self._start, self._length = start, self._length_of_block(start)
        self._tokens = np.full(self._length, self._shape.mask_token_id, np.int64)
        self._chances = np.zeros(self._length)  # log-probabilities at which the tokens were committed
        self._masked = np.ones(self._length, np.bool_)
        self._num_pinned = len(self.ids) - start
        self._tokens[: self._num_pinned] = self.ids[start:]
        self._masked[: self._num_pinned] = False
        self._editable = np.zeros(self._length, np.bool_)
        self._blended = np.zeros(self._length, np.bool_)
        self._passes = 0  # that committed something of this block
        self._part, self._is_part_begun = 0, False
        self._is_begun = False  # whether a pass has computed the block
        self._find_part()

    def _length_of_block(self, start: int) -> int:
        return self._block_length

    # what the pass is to compute

    def plan(self, most_context: int) -> Work:
        context = self._context(most_context)
        self._cached_then = context.start + len(context.tokens) if context else self.num_cached
        self._targets = _NONE  # offsets in the block
        runs, count = ([context], len(context.tokens)) if context else ([], 0)
        is_ready = self._cached_then >= self._start and (self.decoding.merge_commits or not context)
        if self._inherits():
            if self._cached_then == self._start:  # the last row before the block predicts its first token
                self._targets = np.array([0])
                return Work(runs, np.array([count - 1]), self._targets + self._start, self._start, 0, _NONE)
            is_ready = False
        if not is_ready:
            return Work(runs, _NONE, _NONE, self._start, 0, _NONE)
        begins = np.flatnonzero(self._masked) if self._starts_blended() else _NONE
        self._blended[begins] = True
        first, last = self._canvas_rows()
        runs.append(self._canvas(first, last))
        self._targets = np.flatnonzero(self._wanted())
        heads = count + self._start - first + self._targets - self._shape.is_shifted
        return Work(runs, heads, self._start + self._targets, self._start, self._length, self._start + begins)

    def _context(self, most: int) -> Run | None:
        """Committed tokens before the block that are not in the cache yet."""
        begin, end = self.num_cached, self._start
        if begin == end and self._inherits():
            begin -= 1  # the last row is asked for a prediction
        end = min(end, begin + max(most // self._block_length, 1) * self._block_length)
        if begin == end:
            return None
        positions = np.arange(begin, end)
        grid = 1 if self._shape.context == "causal" else self._block_length
        limits = (positions // grid + 1) * grid
        return Run(begin, np.array(self.ids[begin:end], np.int64), limits, np.zeros(end - begin, np.bool_))

    def _inherits(self) -> bool:
        """Whether the first token of the block is still to be predicted by the row before it."""
        return self._shape.is_shifted and self._start > 0 and bool(self._masked[0])

    def _starts_blended(self) -> bool:
        start = self.decoding.residual_start
        return bool(self.decoding.residual) and not self._is_begun and start in ("dirichlet", "reference")

    def _canvas_rows(self) -> tuple[int, int]:
        """The positions whose rows are computed: of the block, but for `sub_blocks`."""
        first, last = 0, self._length
        if self.decoding.strategy == "sub_blocks" and self._is_part_begun:
            first, last = self._part_bounds()
            first = max(0, first - self._shape.is_shifted)
        return self._start + first, self._start + last

    def _part_bounds(self) -> tuple[int, int]:
        size = self.decoding.sub_block_length
        return self._part * size, min((self._part + 1) * size, self._length)

    def _canvas(self, first: int, last: int) -> Run:
        inside = slice(first - self._start, last - self._start)
        limits = np.full(last - first, self._start + self._length)
        return Run(first, self._tokens[inside], limits, self._blended[inside])

    def _wanted(self) -> Flags:
        """Offsets at which a prediction is wanted."""
        wanted = (self._masked | self._editable) & self._needed()
        if self.decoding.strategy == "sub_blocks":
            first, last = self._part_bounds()
            wanted[:first] = wanted[last:] = False
        return wanted

    def _needed(self) -> Flags:
        """Offsets that are part of the text, as far as it is known where that ends."""
        needed = np.arange(self._start, self._start + self._length) < self._last
        ends = np.isin(self._tokens, list(self._task.end_ids)) & ~self._masked
        ends[: self._num_pinned] = False
        if ends.any():
            needed[int(np.argmax(ends)) + 1 :] = False
        return needed

    # what is made of the answer

    def take(self, predictions: Predictions) -> Flags:
        self.num_cached = self._cached_then
        targets = self._targets
        if not len(targets):
            return np.zeros(0, np.bool_)
        if self._inherits():
            self._commit(targets, predictions, np.array([0]))
            self._editable[0] = False  # the row before the block predicts it, which is not computed again
            self._close_block()
            return np.zeros(1, np.bool_)
        is_masked = self._masked[targets]
        is_start = bool(self.decoding.residual) and not self._is_begun and self.decoding.residual_start == "self"
        self._is_begun = self._is_part_begun = True
        if not is_start:
            self._edit(predictions, np.flatnonzero(~is_masked))
            if is_masked.any():
                among = np.flatnonzero(is_masked)
                chosen = among[choose(predictions[among], self.decoding, self._passes)]
                self._commit(targets[chosen], predictions, chosen)
            self._passes += 1
        stays = self._masked[targets] & bool(self.decoding.residual)
        self._blended[targets] = stays
        return stays & (not self._close_block())

    def _commit(self, offsets: Ids, predictions: Predictions, indices: Ids) -> None:
        self._tokens[offsets] = predictions.tokens[indices]
        self._chances[offsets] = predictions.logprobs[indices]
        self._masked[offsets] = False
        self._editable[offsets] = self.decoding.edit_threshold is not None

    def _edit(self, predictions: Predictions, committed: Ids) -> None:
        """Replace what the model now contradicts; once for each position, so that this ends."""
        if self.decoding.edit_threshold is None:
            return
        offsets = self._targets[committed]
        differs = self._tokens[offsets] != predictions.tokens[committed]
        edited = committed[differs & (predictions.confidences[committed] > self.decoding.edit_threshold)]
        self._commit(self._targets[edited], predictions, edited)
        self._editable[self._targets[edited]] = False

    def _close_block(self) -> bool:
        """Start the next block where this one needs nothing more, or end the text; whether it was so."""
        if (self._masked & self._needed()).any():
            self._find_part()
            return False
        filled = slice(self._num_pinned, int(self._needed().sum()))
        self.ids += self._tokens[filled].tolist()
        self._logprobs += self._chances[filled].tolist()
        if self.ids[-1] in self._task.end_ids:
            self._finish = FinishReason.STOP
        elif len(self.ids) >= self._last:
            self._finish = FinishReason.LENGTH
        else:
            self._start_block(self._start + self._length)
        return True

    def _find_part(self) -> None:
        """Go on to the part of the leftmost position that is masked and needed."""
        part = int(np.argmax(self._masked)) // self.decoding.sub_block_length
        if part != self._part:
            self._part, self._is_part_begun = part, False

    def settled(self) -> Settled:
        tokens, logprobs = self.ids[len(self._task.prompt) :], list(self._logprobs)
        if self._finish is None and self.decoding.edit_threshold is None:
            is_open = self._masked | ~self._needed()
            filled = slice(self._num_pinned, int(np.argmax(is_open)) if is_open.any() else self._length)
            tokens += self._tokens[filled].tolist()
            logprobs += self._chances[filled].tolist()
        begin, self._handed = self._handed, len(tokens)
        return Settled(tokens[begin:], logprobs[begin:], self._finish)


class FullWriter(BlockWriter):
    """Block after block with full attention, also to what is still masked after the block: LLaDA.

    Keys and values depend on everything, so what the cache holds is an approximation that the first pass of each block
    renews (Fast-dLLM, 2505.22618); which part is `Decoding.caching`.
    """

    def __init__(self, task: Task, decoding: Decoding, shape: ModelShape) -> None:
        self._total = full_length(len(task.prompt), task.max_tokens, decoding)
        super().__init__(task, decoding, shape)

    def _length_of_block(self, start: int) -> int:
        blocks = ADAPTIVE_WINDOW if self.decoding.strategy == "adaptive" else 1
        return min(blocks * self._block_length, self._total - start)

    def _context(self, most: int) -> None:
        return None

    def plan(self, most_context: int) -> Work:
        self.num_cached = self._start
        return super().plan(most_context)

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
        tokens[self._start : self._start + self._length] = self._tokens
        blended = np.zeros(self._total, np.bool_)
        blended[self._start : self._start + self._length] = self._blended
        return Run(first, tokens[first:last], np.full(last - first, self._total), blended[first:last])

    def take(self, predictions: Predictions) -> Flags:
        if self.decoding.strategy != "adaptive" or self._is_begun:
            return super().take(predictions)
        length = self._adapted_length(predictions)
        inside = int(np.count_nonzero(self._targets < length))
        self._length, self._targets = length, self._targets[:inside]
        for name in ("_tokens", "_chances", "_masked", "_editable", "_blended"):
            setattr(self, name, getattr(self, name)[:length])
        stays = np.zeros(len(predictions.tokens), np.bool_)
        stays[:inside] = super().take(predictions[:inside])
        return stays

    def _adapted_length(self, predictions: Predictions) -> int:
        """Up to the surest end of a line, where there is one; else the default."""
        is_line_end = np.isin(predictions.tokens, list(self._task.delimiter_ids))
        sure = np.where(is_line_end, predictions.confidences, -1.0)
        best = int(np.argmax(sure))
        if sure[best] < self.decoding.delimiter_threshold:
            return min(self._block_length, self._length)
        return int(self._targets[best]) + 1


class SelfSpeculator:
    """Drafts a block in one pass and verifies it in the next one, with the same weights (2607.05722).

    What comes out is what the model writes token by token: the row of each token predicts the one after it, and the
    draft stays up to the first token that is not the predicted one. That one is taken in its place.
    """

    def __init__(self, task: Task, decoding: Decoding, shape: ModelShape, num_cached: int = 0) -> None:
        self.decoding, self.num_cached = decoding, min(num_cached, len(task.prompt) - 1)
        self.ids = list(task.prompt)
        self._task, self._shape, self._block_length = task, shape, decoding.block
        self._logprobs: list[float] = []
        self._handed = 0
        self._finish: FinishReason | None = None
        self._draft: Ids = _NONE
        self._chance = 0.0  # of the draft's first token, which the model itself has written

    def plan(self, most_context: int) -> Work:
        start = len(self.ids)
        self._planned = min(start, self.num_cached + most_context)
        left = self._task.max_tokens - (start - len(self._task.prompt))
        if len(self._draft):
            rows = np.arange(start, start + len(self._draft))
            run = Run(start, self._draft, rows + 1, np.zeros(len(rows), np.bool_))
            return Work([run], np.arange(len(rows)), rows + 1, start, len(rows), _NONE)
        context = np.arange(self.num_cached, self._planned)
        runs = [
            Run(
                self.num_cached, np.array(self.ids[self.num_cached : self._planned], np.int64), context + 1, context < 0
            )
        ]
        if self._planned < start:
            return Work(runs, _NONE, _NONE, start, 0, _NONE)
        masks = np.full(min(self._block_length, left), self._shape.mask_token_id, np.int64)
        runs.append(Run(start, masks, np.full(len(masks), start + len(masks)), masks < -1))
        # the last committed token predicts the first new one; the canvas drafts those after it
        wanted = np.arange(1, len(masks))
        heads = len(context) - 1 + np.concatenate(([0], 1 + wanted))
        return Work(runs, heads, start + np.concatenate(([0], wanted)), start, len(masks), _NONE)

    def take(self, predictions: Predictions) -> Flags:
        if len(self._draft):
            self._verify(predictions)
        else:
            self.num_cached = self._planned
            if len(predictions.tokens):
                self._draft, self._chance = predictions.tokens, float(predictions.logprobs[0])
                if len(self._draft) == 1 or int(self._draft[0]) in self._task.end_ids:
                    self._write([int(self._draft[0])], [self._chance])
        return np.zeros(len(predictions.tokens), np.bool_)

    def _verify(self, predictions: Predictions) -> None:
        agrees = self._draft[1:] == predictions.tokens[:-1]
        kept = 1 + (int(np.argmin(agrees)) if not agrees.all() else len(agrees))
        self.num_cached += kept
        written = [*self._draft[:kept].tolist(), int(predictions.tokens[kept - 1])]
        self._write(written, [self._chance, *predictions.logprobs[:kept].tolist()])

    def _write(self, written: list[int], chances: list[float]) -> None:
        left = self._task.max_tokens - (len(self.ids) - len(self._task.prompt))
        ends = [index for index, token in enumerate(written[:left]) if token in self._task.end_ids]
        count = ends[0] + 1 if ends else min(left, len(written))
        self.ids += written[:count]
        self._logprobs += chances[:count]
        self.num_cached = min(self.num_cached, len(self.ids))
        self._draft = _NONE
        if ends:
            self._finish = FinishReason.STOP
        elif count == left:
            self._finish = FinishReason.LENGTH

    def settled(self) -> Settled:
        tokens = self.ids[len(self._task.prompt) :]
        begin, self._handed = self._handed, len(tokens)
        return Settled(tokens[begin:], self._logprobs[begin:], self._finish)


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


def full_length(num_tokens: int, max_tokens: int, decoding: Decoding) -> int:
    """Positions that a request takes at most, whole blocks that they are."""
    return num_tokens + -(-max_tokens // decoding.block) * decoding.block


_NONE: Ids = np.zeros(0, np.int64)
