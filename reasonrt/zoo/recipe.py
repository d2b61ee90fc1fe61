"""How a zoo model is made from nothing: data, optimizer, schedule, checkpoints, weights.

One recipe; models differ in their `Recipe` values only. Training is deterministic in its data, not in its
floating-point sums: a rerun reaches the same accuracy, not the same bits.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reasonrt.config import ZOO_FOLDER
from reasonrt.engines.vllm_settings import cpu_dtype
from reasonrt.zoo.corpus import IGNORED, Batches
from reasonrt.zoo.muon import Float32Muon
from reasonrt.zoo.problems import mixture
from reasonrt.zoo.tokenizer import VOCAB_SIZE, train_tokenizer
from reasonrt.zoo.traces import Wording, trace


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one model of the zoo is and how it is trained.

    Attributes:
        hidden, layers, mlp, heads, kv_heads: Qwen3 shapes; a head has 64 dimensions.
        tokens: how many tokens to train on, padding left out.
        batch_tokens: tokens per optimizer step, padding included.
        lr: peak rate of Muon (matrices) and AdamW (embedding, norms) alike; with `begin`, of AdamW for all.
        decay_share: the last share of training, in which the rate falls linearly to zero.
        max_tokens: longest training example.
        again_share, wording: see `traces.trace`.
        begin: the shipped model with whose weights training begins; None begins with fresh ones.
        seed: of weights and data.
    """

    hidden: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    tokens: int
    batch_tokens: int = 8192
    lr: float = 4e-3
    decay_share: float = 0.4
    max_tokens: int = 512
    again_share: float = 0.0
    wording: Wording = "own"
    begin: str | None = None
    seed: int = 1


CHECKPOINT = "checkpoint.pt"
"""Of a training that has not ended, in the folder of its model."""

_TARGET = Recipe(hidden=256, layers=6, mlp=704, heads=4, kv_heads=2, tokens=41_000_000)
_DRAFT = Recipe(hidden=128, layers=4, mlp=384, heads=2, kv_heads=1, tokens=19_000_000)
RECIPES = {
    "nano-draft": _DRAFT,
    "nano-draft-other": replace(_DRAFT, wording="other"),
    "nano-target": _TARGET,
    "nano-thinker": replace(
        _TARGET,
        tokens=1_300_000,
        batch_tokens=4096,
        lr=1e-3,
        decay_share=0.7,
        max_tokens=1024,
        again_share=0.85,
        begin="nano-target",
    ),
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training run is."""

    tokens: int
    total_tokens: int
    loss: float
    tokens_per_s: float


def build_tokenizer() -> Any:
    """The tokenizer that all models of the zoo share: the one that ships, else one learned from training problems."""
    shipped = ZOO_FOLDER / "nano-target"
    if (shipped / "tokenizer.json").exists():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(shipped)
    rng = random.Random(0)
    drawn = mixture("train", 6000)
    return train_tokenizer(
        text for problem in drawn for text in (problem.question, "".join(text for text, _ in trace(problem, rng)))
    )


def build_model(recipe: Recipe, tokenizer: Any) -> Any:
    """A `Qwen3ForCausalLM` in float32, with fresh weights or those of the model that it begins with."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(recipe.seed)
    if recipe.begin:
        folder, how = ZOO_FOLDER / recipe.begin, {"attn_implementation": "sdpa", "dtype": torch.float32}
        return Qwen3ForCausalLM.from_pretrained(folder, **how)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB_SIZE,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.mlp,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.kv_heads,
            head_dim=64,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype=torch.float32,
        )
    )


def train(recipe: Recipe, out: Path, report: Callable[[Progress], None] = lambda progress: None) -> None:
    """Train a model and write it to the folder `out` in bfloat16, with its tokenizer.

    Training continues from a checkpoint in `out`, which is removed at the end. The run can be stopped at any time and
    loses at most a minute.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model = build_model(recipe, tokenizer)
    optimizers = build_optimizers(model, recipe.lr, with_muon=not recipe.begin)
    checkpoint = out / CHECKPOINT
    done_tokens, skip = resume(checkpoint, model, optimizers)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    compiled = torch.compile(model, dynamic=True)
    started, saved, since = time.perf_counter(), time.perf_counter(), done_tokens
    batches = _batches(recipe, tokenizer, skip)
    losses = deque[float](maxlen=50)
    while done_tokens < recipe.tokens:
        token_ids, labels = (tensor.to(device) for tensor in next(batches))
        set_rates(optimizers, recipe.lr, recipe.decay_share, done_tokens / recipe.tokens)
        loss = _loss(compiled, token_ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done_tokens += int((token_ids != tokenizer.pad_token_id).sum())
        skip += 1
        losses.append(loss.item())
        rate = (done_tokens - since) / (time.perf_counter() - started)
        report(Progress(done_tokens, recipe.tokens, sum(losses) / len(losses), rate))
        if time.perf_counter() - saved > 60:
            save_checkpoint(checkpoint, model, optimizers, done_tokens, skip)
            saved = time.perf_counter()
    model.to("cpu", torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    checkpoint.unlink(missing_ok=True)


def _loss(model: Any, token_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token over the labels that count."""
    device = token_ids.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or cpu_dtype() == "bfloat16"):
        logits = model(input_ids=token_ids, use_cache=False).logits  # [rows, columns, vocab]
    return nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]).float(), labels[:, 1:].reshape(-1), ignore_index=IGNORED
    )


def build_optimizers(model: nn.Module, lr: float, with_muon: bool) -> list[torch.optim.Optimizer]:
    """Muon for matrices and AdamW for embedding and norms, or AdamW for all."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    adam: dict[str, Any] = {"lr": lr, "betas": (0.9, 0.98), "weight_decay": 0.0, "fused": True}
    if not with_muon:
        return [torch.optim.AdamW([*matrices, *others], **adam)]
    return [
        Float32Muon(matrices, lr=lr, weight_decay=0.02),
        torch.optim.AdamW(others, **adam),
    ]


def set_rates(optimizers: list[torch.optim.Optimizer], lr: float, decay_share: float, share: float) -> None:
    """Warm up over the first hundredth, hold, then fall to zero over the last `decay_share`, where there is one."""
    factor = min(1.0, 0.05 + share / 0.01, (1 - share) / decay_share if decay_share else 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * factor


def _batches(recipe: Recipe, tokenizer: Any, skip: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    # a resumed run draws other examples instead of replaying the ones that it has seen
    seed = recipe.seed + 1000 * skip
    dataset = Batches(tokenizer, seed, recipe.batch_tokens, recipe.max_tokens, recipe.again_share, recipe.wording)
    return iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=8))


def save_checkpoint(
    path: Path, model: Any, optimizers: list[torch.optim.Optimizer], done_tokens: int, steps: int
) -> None:
    state = {"model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
    torch.save(state | {"tokens": done_tokens, "steps": steps}, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def resume(path: Path, model: Any, optimizers: list[torch.optim.Optimizer]) -> tuple[int, int]:
    if not path.exists():
        return 0, 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["tokens"]), int(state["steps"])
