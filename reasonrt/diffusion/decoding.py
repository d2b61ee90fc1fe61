"""How one request wants a block of masked tokens to become text: the options, and the rules behind them.

Blocks
    With context `block` they lie on a grid from position 0, and the rest of the prompt after its last whole block
    belongs to the first one. With context `causal` and `full` the first one starts where the prompt ends. With `full`
    the text has its last position from the start: `max_tokens` rounded up to whole blocks, all of them masked.
What is needed
    Positions before `max_tokens` new tokens, up to the first committed token of the block that ends the text; tokens
    of the prompt end nothing. A block is finished when no needed position is masked. Predictions are made at needed
    positions only; what is committed after an end stays in the block, and is no text.
Drawing
    At temperature 0 the most probable token, the lowest id among equals. Else the highest sum of logit / temperature
    and noise, among the most probable tokens (lower ids first among equals) before which there is less than `top_p`
    of the scaled probability. The noise of a position is the same in every pass. The mask token is never drawn.
Choosing
    A *confidence* is the probability of the token that was drawn, of the unscaled distribution (temperature 1). Ties
    go to the leftmost position. "Above" excludes equality. Where a rule commits nothing, the most confident
    prediction is committed.
Shifted models
    The row before a block predicts its first token, unless the prompt begins the block. With context `block` that is
    done in the pass that commits that row, before the block is denoised. With `causal` and `full` the row is computed
    together with the block; with `causal`, where it sees nothing of the block, its prediction counts as certain:
    confidence 1, entropy 0.
Parts (`sub_blocks`)
    The part of the leftmost masked position is filled. The first pass of each part computes the whole block, the
    others that part alone (of a shifted model with the row before it); the rest keeps the keys and values that were
    computed last. With full attention `caching` decides instead.
Adapted blocks (`adaptive`)
    The first pass of a block predicts four blocks. Where the most confident prediction of the end of a line among
    them has at least `delimiter_threshold`, the block ends with it, else after `block_length` positions. The same
    pass commits in that block; what it had read beyond it is forgotten.
Edits
    Committed positions of the block, or part, that are needed and not of the prompt; in shifted models not those that
    the row before the block predicted. Edits and commits of one pass go by the same predictions. A position is edited
    once. A block is not kept open for edits.
Residual context
    A masked position reads that of the last prediction there in this block, else that of the start, else the mask
    embedding. A start `self` is a first pass that commits nothing and counts in no quota. A start `reference` is one
    pass of the reference model over the text and the block, on the grid of the request's blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from reasonrt.diffusion.shape import ModelShape
from reasonrt.errors import RequestError
from reasonrt.options import read_options

Strategy = Literal[
    "sequential", "static", "threshold", "entropy", "factor", "sub_blocks", "adaptive", "self_speculation"
]
Start = Literal["cold", "self", "dirichlet", "reference"]
Caching = Literal["dual", "prefix", "none"]


@dataclass(frozen=True)
class Decoding:
    """The options of block diffusion; what is None is the model's own.

    Attributes:
        strategy: which predictions of a pass are committed, by the rules of this module.
            `sequential`: the leftmost m; `static`: the m most confident; `threshold`: each above `threshold`;
            `entropy`: in ascending order of entropy, while their sum is at most `entropy_bound`; `factor`: the n most
            confident, for the largest n whose n-th confidence c has (n + 1)(1 - c) < `factor` (Fast-dLLM, 2505.22618);
            `sub_blocks`: `threshold` within one part of the block after the other (Fast-dLLM v2, 2509.26328);
            `adaptive`: `threshold`, in blocks that end where the model expects the end of a line (AdaBlock,
            2509.26432); `self_speculation`: all are drafted in one pass, and the longest prefix stays that the model
            itself would have written token by token (2607.05722).
        block_length: positions that are denoised together.
        passes: of `sequential` and `static`: in so many passes a block is full, so m = block_length / passes, one more
            in the first ones where it does not divide.
        threshold: in [0, 1]; at 1 one token is committed a pass.
        entropy_bound: in nats.
        factor: > 0; higher commits more.
        sub_block_length: positions of a part, for `sub_blocks`.
        delimiter_threshold: of `adaptive`: how probable the end of a line must be.
        edit_threshold: where a position of the block has a committed token, and the model prefers another one with more
            than this probability, that one is taken, once for each position (LLaDA2.1, 2602.08676). None: what is
            committed stays.
        residual: whether a masked position reads what the last pass expected there (2601.22954).
        residual_weight: how much of what a masked position reads is what was expected there; the rest is the mask
            embedding. None: the entropy of the prediction, normalized to [0, 1] (section 3.2), but for a model that was
            trained with a constant.
        residual_temperature: of the distribution whose entropy weights the residual (T_res, section 3.3).
        residual_scaled: whether the expected embedding is of that distribution too, not of the unscaled one.
        residual_top_k: expect over the k most probable tokens only, at most 64; None: over all.
        residual_start: what the first pass of a block reads: `cold`, nothing; `self`, what a pass of its own expects;
            `dirichlet`, what a distribution drawn at random expects; `reference`, what the reference model expects.
        dirichlet_concentration: of each token, > 0.
        caching: of models with full attention (LLaDA): what is kept while a block is denoised: `dual`, everything
            else; `prefix`, what precedes it; `none`.
        merge_commits: whether a finished block enters the cache in the pass that denoises the next one first, not in
            one of its own.
    """

    strategy: Strategy = "threshold"
    block_length: Annotated[int, Field(ge=1, le=512)] | None = None
    passes: Annotated[int, Field(ge=1, le=512)] | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.9
    entropy_bound: Annotated[float, Field(ge=0, le=100)] = 0.35
    factor: Annotated[float, Field(gt=0, le=100)] = 1.0
    sub_block_length: Annotated[int, Field(ge=1, le=512)] = 8
    delimiter_threshold: Annotated[float, Field(ge=0, le=1)] = 0.3
    edit_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    residual: bool | None = None
    residual_weight: Annotated[float, Field(ge=0, le=1)] | None = None
    residual_temperature: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    residual_scaled: bool = False
    residual_top_k: Annotated[int, Field(ge=1, le=64)] | None = None
    residual_start: Start = "cold"
    dirichlet_concentration: Annotated[float, Field(ge=1e-4, le=100)] = 0.01
    caching: Caching = "dual"
    merge_commits: bool = True

    @property
    def block(self) -> int:
        """`block_length`, which `read_decoding` has filled in."""
        if self.block_length is None:
            raise ValueError("not read by read_decoding")
        return self.block_length


_READ_BY: dict[str, tuple[Strategy, ...]] = {
    "threshold": ("threshold", "sub_blocks", "adaptive"),
    "entropy_bound": ("entropy",),
    "factor": ("factor",),
    "passes": ("static", "sequential"),
    "sub_block_length": ("sub_blocks",),
    "delimiter_threshold": ("adaptive",),
}


def over_defaults(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A request's options over an engine's.

    An option that the engine's strategy does not read asks for the first strategy that does, where the request names
    none.
    """
    merged = {**defaults, **options}
    for name, strategies in _READ_BY.items():
        if name in options and "strategy" not in options and merged.get("strategy", "threshold") not in strategies:
            merged["strategy"] = strategies[0]
    return merged


def read_decoding(options: Mapping[str, Any], shape: ModelShape, has_reference: bool = False) -> Decoding:
    """The options of one request, with what the model says in the place of None.

    Raises:
        RequestError: an option that is not known, a value that is not allowed, or one that this model cannot do.
    """
    decoding = read_options(Decoding, options, "block diffusion")
    block = decoding.block_length or shape.block_length
    if block > shape.block_length:
        raise RequestError(
            f"block_length must be at most {shape.block_length}, which the model was trained on, got {block}"
        )
    _refuse(decoding, shape, has_reference)
    return replace(
        decoding,
        block_length=block,
        passes=min(decoding.passes or block, block),
        residual=shape.is_residual if decoding.residual is None else decoding.residual,
        residual_weight=shape.residual_weight if decoding.residual_weight is None else decoding.residual_weight,
        sub_block_length=min(decoding.sub_block_length, block),
    )


def _refuse(decoding: Decoding, shape: ModelShape, has_reference: bool) -> None:
    if decoding.strategy == "self_speculation":
        if shape.context != "causal":
            raise RequestError("strategy 'self_speculation' needs a model that can write token by token as well")
        if decoding.edit_threshold is not None or decoding.residual_start != "cold":
            raise RequestError("strategy 'self_speculation' drafts in one pass: no edit_threshold, no residual_start")
    if decoding.strategy == "adaptive" and shape.context != "full":
        raise RequestError("strategy 'adaptive' needs a model that attends to what follows a block; leave it out")
    if decoding.residual_start == "reference" and not has_reference:
        raise RequestError("residual_start 'reference' needs an engine with a reference model")
