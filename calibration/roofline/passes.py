"""The roofline of decoding: the most tokens a second that a GPU's peak figures allow, autoregressive or by diffusion.

A forward pass is a few kernels, one after the other: the matrices of the layers, attention over the KV cache, the LM
head and, with residual context, the product of its predictions with the input embeddings. A kernel takes as long as its
bytes or its operations take, whichever is more. Weights are read once a pass for all sequences, and the keys and values
of a sequence once a pass for all its rows. An autoregressive pass computes one row of each sequence, which becomes its
token; a pass of block diffusion computes a block of each, reads the same bytes, and commits some of the block.

Assumed: bf16 weights, keys and values; one GPU; a dense model; a steady state, in which sequences are in every phase of
their blocks, so that rows count by their mean. Left out, for either way of decoding: the start of kernels and the host,
prompts, activations, norms, and logits that are not read again. So each figure is a bound. What is measured is lower,
most of all for small models at small batches.

Source: Beyond Next-Token Prediction (2510.04146) compares the two in this way; the formulas here are written anew.
"""

from dataclasses import dataclass, replace

from reasonrt.calibration.roofline.tables import VALUE_BYTES, Gpu, ModelSize
from reasonrt.errors import ConfigError

MOST_BATCH = 4096
"""The largest batch that is looked at for where the two cross."""
_EQUAL = 1e-9  # two speeds that differ by less are the same


@dataclass(frozen=True, slots=True)
class Load:
    """What one pass does for one sequence, on average.

    Attributes:
        tokens: that it commits.
        rows: positions that it computes.
        head_rows: of these, those with logits.
        residual_rows: of these, those whose expected embedding is computed.
        residual_top_k: embeddings that one is made of; None: all, from logits that are written and read again.
    """

    tokens: float
    rows: float
    head_rows: float
    residual_rows: float = 0.0
    residual_top_k: int | None = None


AUTOREGRESSIVE = Load(tokens=1, rows=1, head_rows=1)


@dataclass(frozen=True, slots=True)
class BlockDecoding:
    """How blocks are denoised; the names are those of `reasonrt.diffusion`.

    Attributes:
        block_length: positions that are denoised together, >= 2.
        tokens_per_pass: that a denoising pass commits on average, in [1, block_length]; passes that do nothing but
            write a finished block to the cache are not counted here, but paid for.
        merge_commits: whether a finished block is written to the cache by the pass that denoises the next one first,
            not by one of its own.
        masked_rows_only: whether only positions still masked have logits, and only those that stay masked a residual.
        residual: whether a masked position reads what the last pass expected there (2601.22954).
        residual_top_k: expect over the k most probable tokens only; None: over all.
    """

    block_length: int = 32
    tokens_per_pass: float = 4.0
    merge_commits: bool = True
    masked_rows_only: bool = True
    residual: bool = False
    residual_top_k: int | None = None

    def __post_init__(self) -> None:
        if self.block_length < 2:
            raise ConfigError(f"block_length must be at least 2, got {self.block_length}")
        if not 1 <= self.tokens_per_pass <= self.block_length:
            raise ConfigError(
                f"tokens_per_pass must be in [1, block_length], which is {self.block_length}, "
                f"got {self.tokens_per_pass:g}"
            )
        if self.residual_top_k is not None and not (self.residual and self.residual_top_k >= 1):
            raise ConfigError(f"residual_top_k must be at least 1, with residual, got {self.residual_top_k}")

    @property
    def load(self) -> Load:
        """What a pass does for a sequence, over the passes of a block.

        Each commits as many tokens as the last, so of the b positions of a block (b + m) / 2 are masked at the start of
        a pass and (b - m) / 2 at its end, in the mean, with m tokens per pass.
        """
        block, tokens = self.block_length, self.tokens_per_pass
        # b / m passes denoise a block: one of them has a finished block beside it, or another pass has
        share, rows = (1.0, block + tokens) if self.merge_commits else (block / (block + tokens), float(block))
        head_rows = share * (block + tokens) / 2 if self.masked_rows_only else rows
        residual_rows = share * (block - tokens) / 2 if self.masked_rows_only else rows
        return Load(share * tokens, rows, head_rows, residual_rows if self.residual else 0.0, self.residual_top_k)


@dataclass(frozen=True, slots=True)
class PassTime:
    """How long a pass takes, and whether that is mostly reading memory or mostly computing."""

    seconds: float
    is_memory_bound: bool

    @property
    def bound(self) -> str:
        return "memory" if self.is_memory_bound else "compute"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both ways of decoding at one batch and context.

    Attributes:
        context: tokens that a row attends to, on average, its own block among them.
        fits: whether weights and KV cache fit into the memory of the GPU; the figures hold if there were enough.
        ratio: how many times as fast diffusion is.
        break_even_tokens_per_pass: from which diffusion is as fast; at least 1; None where a whole block a pass is not
            enough.
    """

    batch: int
    context: int
    fits: bool
    autoregressive_tokens_per_s: float
    diffusion_tokens_per_s: float
    ratio: float
    autoregressive_ms_per_pass: float
    diffusion_ms_per_pass: float
    autoregressive_bound: str
    diffusion_bound: str
    break_even_tokens_per_pass: float | None


@dataclass(frozen=True, slots=True)
class Crossing:
    """From which batch on autoregressive decoding is the faster one.

    Attributes:
        most_batch: the largest batch that fits into memory, at most `MOST_BATCH`; 0: not one sequence does.
        autoregressive_from_batch: the first; None: at no batch up to `most_batch`.
    """

    context: int
    most_batch: int
    autoregressive_from_batch: int | None


@dataclass(frozen=True, slots=True)
class Roofline:
    """One model on one GPU.

    Attributes:
        bandwidth_efficiency, compute_efficiency: the share of either peak that kernels reach, in (0, 1].

    Raises:
        ConfigError: the weights do not fit into the GPU's memory, or an efficiency is out of its range.
    """

    gpu: Gpu
    size: ModelSize
    bandwidth_efficiency: float = 1.0
    compute_efficiency: float = 1.0

    def __post_init__(self) -> None:
        for name in ("bandwidth_efficiency", "compute_efficiency"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in (0, 1], got {getattr(self, name):g}")
        if self.size.weight_bytes > self.gpu.memory_bytes:
            raise ConfigError(
                f"{self.size.name} does not fit: its weights are {self.size.weight_bytes / 1e9:.1f} GB in bf16, and "
                f"{self.gpu.name} has {self.gpu.memory_bytes / 1e9:g} GB; take a smaller model or another GPU"
            )

    @property
    def ridge_rows(self) -> float:
        """As `Gpu.ridge_rows`, at these efficiencies."""
        return self.gpu.ridge_rows * self.compute_efficiency / self.bandwidth_efficiency

    def most_batch(self, context: int) -> int:
        """The largest batch whose KV cache fits beside the weights, at most `MOST_BATCH`."""
        return min(MOST_BATCH, int(self._room(context)))

    def _room(self, context: int) -> float:
        """Sequences whose KV cache fits beside the weights."""
        return (self.gpu.memory_bytes - self.size.weight_bytes) / (context * self.size.kv_bytes)

    def pass_time(self, load: Load, batch: int, context: float) -> PassTime:
        """The time of one pass over `batch` sequences, whose rows attend to `context` tokens each."""
        size = self.size
        query_dims = size.layers * size.heads * size.head_dim
        rows = batch * load.rows
        kernels = [
            self._kernel(VALUE_BYTES * size.body_weights, 2 * size.body_weights * rows),
            self._kernel(size.kv_bytes * context * batch, 4 * query_dims * context * rows),
            *self._head(load, batch),
        ]
        total = sum(seconds for seconds, _ in kernels)
        reading = sum(seconds for seconds, is_memory_bound in kernels if is_memory_bound)
        return PassTime(total, reading >= total / 2)

    def _head(self, load: Load, batch: int) -> list[tuple[float, bool]]:
        """From hidden states to logits, and from logits to expected embeddings."""
        size = self.size
        head_rows, residual_rows = batch * load.head_rows, batch * load.residual_rows
        table_bytes, row_flops = VALUE_BYTES * size.head_weights, 2 * size.head_weights
        if not residual_rows:
            return [self._kernel(table_bytes, row_flops * head_rows)]
        if load.residual_top_k is not None:
            gathered = residual_rows * min(load.residual_top_k, size.vocab_size) * size.hidden
            return [
                self._kernel(table_bytes, row_flops * head_rows),
                self._kernel(VALUE_BYTES * gathered, 2 * gathered),
            ]
        logit_bytes = VALUE_BYTES * size.vocab_size
        return [
            self._kernel(table_bytes + logit_bytes * head_rows, row_flops * head_rows),
            self._kernel(table_bytes + logit_bytes * residual_rows, row_flops * residual_rows),
        ]

    def _kernel(self, moved_bytes: float, flops: float) -> tuple[float, bool]:
        """Its seconds, and whether reading takes them."""
        reading = moved_bytes / (self.gpu.bandwidth * self.bandwidth_efficiency)
        computing = flops / (self.gpu.flops * self.compute_efficiency)
        return max(reading, computing), reading >= computing

    def ratio(self, decoding: BlockDecoding, batch: int, context: int) -> float:
        """How many times as fast diffusion is."""
        load = decoding.load
        alone, block = (self.pass_time(each, batch, context).seconds for each in (AUTOREGRESSIVE, load))
        return load.tokens * alone / block

    def break_even(self, decoding: BlockDecoding, batch: int, context: int) -> float | None:
        """The tokens per pass, at least 1, from which diffusion is as fast; None: a whole block is not enough.

        Compute-bound, a token costs diffusion block_length / tokens_per_pass times the operations, and once more to
        write its block to the cache: no number of tokens is enough.
        """

        def is_enough(tokens: float) -> bool:
            return self.ratio(replace(decoding, tokens_per_pass=tokens), batch, context) >= 1 - _EQUAL

        low, high = 1.0, float(decoding.block_length)
        if not is_enough(high):
            return None
        if is_enough(low):
            return low
        while high - low > 1e-6:  # the ratio grows with the tokens of a pass
            middle = (low + high) / 2
            low, high = (low, middle) if is_enough(middle) else (middle, high)
        return high

    def compare(self, decoding: BlockDecoding, batch: int, context: int) -> Comparison:
        """Both ways of decoding at one batch and context.

        Raises:
            ConfigError: the batch is not positive, or the context shorter than a block.
        """
        _check_place(decoding, batch, context)
        load = decoding.load
        alone, block = (self.pass_time(each, batch, context) for each in (AUTOREGRESSIVE, load))
        return Comparison(
            batch,
            context,
            fits=batch <= self._room(context),
            autoregressive_tokens_per_s=batch / alone.seconds,
            diffusion_tokens_per_s=batch * load.tokens / block.seconds,
            ratio=self.ratio(decoding, batch, context),
            autoregressive_ms_per_pass=1000 * alone.seconds,
            diffusion_ms_per_pass=1000 * block.seconds,
            autoregressive_bound=alone.bound,
            diffusion_bound=block.bound,
            break_even_tokens_per_pass=self.break_even(decoding, batch, context),
        )

    def crossing(self, decoding: BlockDecoding, context: int) -> Crossing:
        """From which batch on autoregressive decoding is the faster one, at every larger batch that fits too."""
        _check_place(decoding, 1, context)
        most = self.most_batch(context)
        # from the top: with a full residual the ratio need not fall all the way
        first = next((n + 1 for n in range(most, 0, -1) if self.ratio(decoding, n, context) >= 1 - _EQUAL), 1)
        return Crossing(context, most, first if first <= most else None)


def _check_place(decoding: BlockDecoding, batch: int, context: int) -> None:
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    if context < decoding.block_length:
        raise ConfigError(f"context must be at least a block, {decoding.block_length} tokens, got {context}")
