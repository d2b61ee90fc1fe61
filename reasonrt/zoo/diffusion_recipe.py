"""How the zoo's diffusion models are made: from an autoregressive one, in two stages.

They keep its order of things: committed tokens are read causally, and a row predicts the token after it, its own or a
masked one (the token shift of Dream and Fast-dLLM v2). So what the model knew stays of use, and the same weights still
write token by token.

*Adapt*: a text is read once as it is, and twice with tokens masked; what one masked view hides, the other shows. Blocks
grow from 4 to 32. The clean reading keeps learning the next token.

*Unroll*: two denoising passes in a row, as decoding makes them: what the first one is sure of is shown to the second.
With residual context the second pass reads what the first one expected at the positions that are still masked; the
control trains on the very same passes and reads the plain mask embedding.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from reasonrt.diffusion.checkpoints import load_for_training, save_model
from reasonrt.diffusion.model import DiffusionModel
from reasonrt.diffusion.residual import blend_probs
from reasonrt.zoo.corpus import IGNORED, Batches
from reasonrt.zoo.recipe import (
    CHECKPOINT,
    Progress,
    build_optimizers,
    build_tokenizer,
    resume,
    save_checkpoint,
    set_rates,
)

BLOCK_LENGTH = 32


@dataclass(frozen=True, slots=True)
class View:
    """The masked copies of the answers of a batch, cut to the blocks that hold them.

    Attributes:
        tokens: [rows, columns] the truth; beyond a text, `end`.
        positions: [rows, columns] in the text.
        blocks: [rows, columns] of the block grid; -1 where there is none.
        starts: [rows, columns] position at which the block starts.
        learned: [rows, columns] whether the token is to be written.
    """

    tokens: Tensor
    positions: Tensor
    blocks: Tensor
    starts: Tensor
    learned: Tensor

    @property
    def is_first(self) -> Tensor:
        """[rows, columns] first positions of blocks, which the clean row before them predicts."""
        return self.positions == self.starts


def cut_blocks(token_ids: Tensor, labels: Tensor, block: int, end_id: int, rng: torch.Generator) -> View:
    """Lay a grid of blocks over each text and take those that hold its answer.

    In half of the texts the grid starts where the answer does, as in decoding; in the others anywhere.
    """
    rows, columns = token_ids.shape
    index = torch.arange(columns)
    is_learned = labels != IGNORED
    begins = torch.where(is_learned, index, columns).min(dim=1).values  # where the answer starts
    lengths = torch.where((token_ids != 0) | is_learned, index, -1).max(dim=1).values + 1
    shift = torch.randint(0, block, (rows,), generator=rng)
    shift = torch.where(torch.rand(rows, generator=rng) < 0.5, 0, shift)
    origins = begins - shift  # a block starts here; before position 0 there is nothing
    counts = -(-(lengths - origins) // block)
    width = int(counts.max()) * block
    offsets = torch.arange(width)
    positions = origins[:, None] + offsets
    is_there = (positions >= 0) & (offsets < (counts * block)[:, None])
    inside = positions.clamp(0, columns - 1)
    is_text = is_there & (positions < lengths[:, None])
    tokens = torch.where(is_text, token_ids.gather(1, inside), end_id)
    learned = torch.where(is_text, is_learned.gather(1, inside), True) & is_there
    # a text that was cut has no end to learn
    has_end = token_ids.gather(1, (lengths - 1)[:, None]) == end_id
    learned &= is_text | has_end
    blocks = torch.where(is_there, offsets // block, -1)
    starts = (origins[:, None] + offsets // block * block).clamp(min=0)
    return View(tokens, positions.clamp(min=0), blocks, starts, learned)


def draw_masks(view: View, rng: torch.Generator, full_share: float, left_to_right: float) -> Tensor:
    """Which learned tokens are hidden, by a share drawn for each block; `full_share` of the blocks hide all.

    The first token of a block is hidden with all others only: decoding commits it in the first pass.

    Args:
        left_to_right: how much likelier the later tokens of a block are hidden; 0 is not at all.
    """
    rows, columns = view.tokens.shape
    blocks = int(view.blocks.max()) + 1
    share = torch.rand(rows, blocks, generator=rng)
    is_full = torch.rand(rows, blocks, generator=rng) < full_share
    share = torch.where(is_full, 2.0, share)
    bias = torch.rand(rows, blocks, generator=rng) * left_to_right
    index = view.blocks.clamp(min=0)
    place = (view.positions - view.starts).float() / BLOCK_LENGTH
    tilt = bias.gather(1, index) * (place - 0.5)
    is_hidden = torch.rand(rows, columns, generator=rng) < share.gather(1, index) + tilt
    return view.learned & is_hidden & (~view.is_first | is_full.gather(1, index))


class Reader:
    """A batch's clean texts, read causally; masked copies then attend to what stands before their block."""

    def __init__(self, model: DiffusionModel, token_ids: Tensor) -> None:
        self._model = model
        self._columns = token_ids.shape[1]
        self._cache: list[tuple[Tensor, Tensor]] = []
        positions = torch.arange(self._columns).expand(token_ids.shape)
        self.hidden = model(model.embedding(token_ids), positions, self._read)

    def _read(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        keys, values = _spread(keys, queries), _spread(values, queries)
        self._cache.append((keys, values))
        return nn.functional.scaled_dot_product_attention(
            queries.transpose(1, 2), keys, values, is_causal=True
        ).transpose(1, 2)

    def denoise(self, embeds: Tensor, view: View) -> Tensor:
        """Hidden states [rows, columns, hidden] of masked copies, whose blocks see themselves and what precedes."""
        clean = torch.arange(self._columns) < view.starts[:, :, None]
        same = view.blocks[:, :, None] == view.blocks[:, None, :]
        mask = torch.cat((clean, same), dim=2).unsqueeze(1)  # [rows, 1, columns, clean + columns]

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            clean_keys, clean_values = self._cache[layer]
            keys = torch.cat((clean_keys, _spread(keys, queries)), dim=2)
            values = torch.cat((clean_values, _spread(values, queries)), dim=2)
            return nn.functional.scaled_dot_product_attention(queries.transpose(1, 2), keys, values, mask).transpose(
                1, 2
            )

        return self._model(embeds, view.positions, attend)


def _spread(kv: Tensor, queries: Tensor) -> Tensor:
    """Keys or values [rows, columns, kv_heads, dim] as [rows, heads, columns, dim]."""
    return kv.repeat_interleave(queries.shape[-2] // kv.shape[-2], dim=-2).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class DiffusionRecipe:
    """How one diffusion model of the zoo is trained.

    Attributes:
        begin: the model that training begins with: one that ships, or one that is trained first.
        stage: `adapt` or `unroll`.
        residual: whether the second pass of `unroll` reads residual context; its control has everything else alike.
        residual_weight: of what was expected, see `ModelShape`.
        tokens: how many tokens of clean text to train on, padding left out.
        batch_tokens: tokens per optimizer step, padding included.
        lr: peak rate of Muon (matrices) and AdamW (embedding, norms) alike.
        decay_share: the last share of training, in which the rate falls linearly to zero; 0: it does not fall.
        max_tokens: longest training example.
        block_lengths: of the blocks, in equal parts of the training.
        next_token_weight: of the loss of the next token, beside the one of masked tokens.
        seed: of the data and the masks.
    """

    begin: str
    stage: str
    tokens: int
    residual: bool = False
    residual_weight: float | None = None
    batch_tokens: int = 2048
    lr: float = 2e-3
    decay_share: float = 0.5
    max_tokens: int = 384
    block_lengths: tuple[int, ...] = (BLOCK_LENGTH,)
    next_token_weight: float = 0.3
    seed: int = 1


def adapt_loss(
    model: DiffusionModel, token_ids: Tensor, labels: Tensor, view: View, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What one masked view hides the other shows: every token is learned once for each reading of its text."""
    reader = Reader(model, token_ids)
    hidden_once = draw_masks(view, rng, 0.1, 0.0)
    shown_once = view.learned & ~hidden_once & ~view.is_first
    count = int(view.blocks.max()) + 1
    both = View(
        tokens=_twice(view.tokens),
        positions=_twice(view.positions),
        blocks=torch.cat((view.blocks, torch.where(view.blocks < 0, -1, view.blocks + count)), dim=1),
        starts=_twice(view.starts),
        learned=_twice(view.learned),
    )
    loss, _ = _denoise(model, reader, both, torch.cat((hidden_once, shown_once), dim=1), None)
    return loss, _next_token_loss(model, reader, labels)


def unroll_loss(
    model: DiffusionModel, token_ids: Tensor, labels: Tensor, view: View, rng: torch.Generator, residual: bool
) -> tuple[Tensor, Tensor]:
    """Two passes in a row, both learned from; before them, half of the time, one that is only looked at."""
    reader = Reader(model, token_ids)
    masked = draw_masks(view, rng, 0.4, 1.0)
    context = None
    if torch.rand((), generator=rng) < 0.5:
        with torch.no_grad():
            _, logits = _denoise(model, reader, view, masked, None)
            masked, context = _advance(model, view, masked, logits, rng)
    first, logits = _denoise(model, reader, view, masked, context if residual else None)
    masked, context = _advance(model, view, masked, logits.detach(), rng)
    second, _ = _denoise(model, reader, view, masked, context if residual else None)
    return first + second, _next_token_loss(model, reader, labels)


def _denoise(
    model: DiffusionModel, reader: Reader, view: View, masked: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss at masked positions but the first ones of blocks, and the logits there.

    Args:
        context: what stands in the place of the mask embedding, at masked positions.
    """
    embeds = model.embedding(torch.where(masked, model.shape.mask_token_id, view.tokens))
    if context is not None:
        embeds = embeds.masked_scatter(masked.unsqueeze(-1), context)
    targets = masked & ~view.is_first
    logits = model.logits(reader.denoise(embeds, view).roll(1, dims=1)[targets])  # the row before predicts
    return _cross_entropy(logits, view.tokens[targets]), logits


def _advance(
    model: DiffusionModel, view: View, masked: Tensor, logits: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What is still masked after a pass that commits what it is sure of, and the residual context there."""
    probs = logits.softmax(-1)
    surest = probs.max(-1).values
    threshold = 0.4 + 0.58 * torch.rand(len(view.tokens), 1, generator=rng)
    targets = masked & ~view.is_first
    stays = surest <= threshold.expand(masked.shape)[targets]
    if not stays.any():
        stays[0] = True
    context = blend_probs(model, probs[stays], model.shape.residual_weight)
    return targets.masked_scatter(targets, stays), context


def _twice(part: Tensor) -> Tensor:
    return torch.cat((part, part), dim=1)


def _cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, tokens) if len(tokens) else logits.sum()


def _next_token_loss(model: DiffusionModel, reader: Reader, labels: Tensor) -> Tensor:
    learned = labels[:, 1:] != IGNORED
    return _cross_entropy(model.logits(reader.hidden[:, :-1][learned]), labels[:, 1:][learned])


_BASE = "nano-diffusion-base"
_SMALL = DiffusionRecipe("draft-diffusion-base", "unroll", 800_000, lr=2e-3)
DIFFUSION_RECIPES = {
    _BASE: DiffusionRecipe("nano-target", "adapt", 1_200_000, lr=1e-3, block_lengths=(4, 16, 32)),
    "nano-diffusion": DiffusionRecipe(_BASE, "unroll", 600_000, lr=1e-3),
    "nano-diffusion-rcd": DiffusionRecipe(_BASE, "unroll", 600_000, lr=1e-3, residual=True),
    "draft-diffusion-base": DiffusionRecipe("nano-draft", "adapt", 3_000_000, lr=2e-3, block_lengths=(4, 16, 32)),
    "draft-diffusion": _SMALL,
    "draft-diffusion-rcd": replace(_SMALL, residual=True),
    "draft-diffusion-self": replace(_SMALL, residual=True, residual_weight=0.5),
}
"""Of each size a base, and arms that differ in residual context only: the first without, to compare the others with.

Those of `nano-diffusion` ship; those of the size of `nano-draft` are small enough to train with several seeds.
"""


def train_diffusion(
    recipe: DiffusionRecipe, begin: Path, out: Path, report: Callable[[Progress], None] = lambda progress: None
) -> None:
    """Train a diffusion model from the weights in `begin` and write it to the folder `out`, with its tokenizer.

    Training continues from a checkpoint in `out`, which is removed at the end. The run can be stopped at any time and
    loses at most a minute.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model = load_for_training(
        begin,
        mask_token_id=tokenizer.pad_token_id,
        block_length=BLOCK_LENGTH,
        is_shifted=True,
        is_residual=recipe.residual,
        residual_weight=recipe.residual_weight,
    )
    for layer in model.layers:
        layer.project = torch.compile(layer.project, dynamic=True)
        layer.mix = torch.compile(layer.mix, dynamic=True)
    optimizers = build_optimizers(model, recipe.lr, with_muon=True)
    checkpoint = out / CHECKPOINT
    done_tokens, steps = resume(checkpoint, model, optimizers)
    rng = torch.Generator().manual_seed(recipe.seed * 7919 + steps)
    batches = iter(Batches(tokenizer, recipe.seed + 1000 * steps, recipe.batch_tokens, recipe.max_tokens))
    started, saved, since = time.perf_counter(), time.perf_counter(), done_tokens
    losses = deque[float](maxlen=25)
    while done_tokens < recipe.tokens:
        token_ids, labels = next(batches)
        share = done_tokens / recipe.tokens
        set_rates(optimizers, recipe.lr, recipe.decay_share, share)
        block = recipe.block_lengths[int(share * len(recipe.block_lengths))]
        view = cut_blocks(token_ids, labels, block, tokenizer.eos_token_id, rng)
        if recipe.stage == "adapt":
            masked_loss, next_loss = adapt_loss(model, token_ids, labels, view, rng)
        else:
            masked_loss, next_loss = unroll_loss(model, token_ids, labels, view, rng, recipe.residual)
        (masked_loss + recipe.next_token_weight * next_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done_tokens += int((token_ids != tokenizer.pad_token_id).sum())
        steps += 1
        losses.append(masked_loss.item())
        rate = (done_tokens - since) / (time.perf_counter() - started)
        report(Progress(done_tokens, recipe.tokens, sum(losses) / len(losses), rate))
        if time.perf_counter() - saved > 60:
            save_checkpoint(checkpoint, model, optimizers, done_tokens, steps)
            saved = time.perf_counter()
    save_model(model, out)
    tokenizer.save_pretrained(out)
    checkpoint.unlink(missing_ok=True)
