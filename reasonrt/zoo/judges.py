"""Models of the zoo that read steps: `nano-router` (is the target's step better?) and `nano-reward` (a step's value).

Both start from the draft's weights, which know the language of the steps. A problem is one sequence with a label at the
end of each step, since the model is causal; only steps that were not taken need a sequence of their own.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from reasonrt.calibration.routers.step_pairs import DRAFT, TARGET, RecordedProblem, StepPair
from reasonrt.config import ZOO_FOLDER
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.engines.vllm_settings import cpu_dtype
from reasonrt.routers.prompts import LAYOUTS, Layout, LayoutName
from reasonrt.types import Message, Prompts, Tokenizer

UNLABELLED = -1.0
JUDGES: Mapping[str, LayoutName] = {"nano-router": "marked", "nano-reward": "plain"}
"""Model to the layout that it reads (`routers/prompts.py`)."""


@dataclass(frozen=True, slots=True)
class JudgeRecipe:
    base: str = "nano-draft"
    epochs: int = 3
    batch_tokens: int = 8192
    lr: float = 1e-3
    max_tokens: int = 768
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Labelled:
    """A sequence and what is known at its tokens: a probability in [0, 1], or `UNLABELLED`."""

    token_ids: list[int]
    labels: list[float]


def examples(name: str, records: Sequence[RecordedProblem], tokenizer: Tokenizer, seed: int = 0) -> list[Labelled]:
    """What a judge learns from `records`.

    `nano-router`: whether the advantage of the draft's step is positive, as many steps of either kind (Arbitrage,
    arXiv 2512.05033, appendix C). `nano-reward`: the value of every step that was rolled out.
    """
    rng = random.Random(seed)
    pairs = [pair for record in records for _, pair in record.situations()]
    positive = sum(pair.advantage > 0 for pair in pairs)
    keep = min(1.0, positive / max(1, len(pairs) - positive))  # of the majority

    def is_better(pair: StepPair, author: str) -> float | None:
        is_kept = author == DRAFT and (pair.advantage > 0 or rng.random() < keep)
        return float(pair.advantage > 0) if is_kept else None

    def value(pair: StepPair, author: str) -> float | None:
        return pair.draft_value if author == DRAFT else pair.target_value

    label = is_better if name == "nano-router" else value
    return _sequences(records, LAYOUTS[JUDGES[name]], tokenizer, label)


def _sequences(
    records: Sequence[RecordedProblem],
    layout: Layout,
    tokenizer: Tokenizer,
    label: Callable[[StepPair, str], float | None],
) -> list[Labelled]:
    """Sequences in which each labelled step ends once; `label` is asked for each pair and author in order."""
    found: list[Labelled] = []
    for record in records:
        opening = list(layout.opening(tokenizer, Prompts(), (Message("user", record.question),)))
        taken = Labelled(opening, [UNLABELLED] * len(opening))
        for _, pair in record.situations():
            texts = {DRAFT: pair.draft, TARGET: pair.target}
            grown = {
                author: _grown(taken, layout.step(tokenizer, text, author == TARGET), label(pair, author))
                for author, text in texts.items()
            }
            other = grown[TARGET if pair.taken == DRAFT else DRAFT]
            if other.labels[-1] > UNLABELLED and pair.draft != pair.target:
                # its history is labelled where it was taken
                found.append(Labelled(other.token_ids, [UNLABELLED] * (len(other.labels) - 1) + other.labels[-1:]))
            taken = grown[pair.taken]
        found.append(taken)
    return [example for example in found if max(example.labels) > UNLABELLED]


def _grown(history: Labelled, step_ids: list[int], label: float | None) -> Labelled:
    end = [UNLABELLED] * (len(step_ids) - 1) + [UNLABELLED if label is None else label]
    return Labelled([*history.token_ids, *step_ids], [*history.labels, *end])


def train_judge(
    name: str,
    records: Sequence[RecordedProblem],
    out: Path,
    recipe: JudgeRecipe | None = None,
    report: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> None:
    """Train a judge on `records` and write it to the folder `out`, bfloat16, with its tokenizer."""
    from transformers import AutoTokenizer, Qwen3ForSequenceClassification
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # it would warn that the head is untrained
    recipe = recipe or JudgeRecipe()
    torch.manual_seed(recipe.seed)
    base = ZOO_FOLDER / recipe.base
    model = Qwen3ForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32)
    known = [
        example
        for example in examples(name, records, HFTokenizer(base), recipe.seed)
        if len(example.token_ids) <= recipe.max_tokens
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    steps = recipe.epochs * len(list(_batches(known, recipe, 0)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / (0.1 * steps), 1 - i / steps))
    model.train()
    step = 0
    for epoch in range(recipe.epochs):
        for token_ids, labels in _batches(known, recipe, epoch):
            with torch.autocast("cpu", torch.bfloat16, enabled=cpu_dtype() == "bfloat16"):
                hidden = model.model(input_ids=token_ids, use_cache=False).last_hidden_state
            wanted = labels > UNLABELLED
            logits = model.score(hidden[wanted].float())  # [labelled, 2]
            loss = nn.functional.binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], labels[wanted])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            report(step, steps, loss.item())
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)


def _batches(known: list[Labelled], recipe: JudgeRecipe, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches (token_ids, labels), `[rows, columns]` each, of sequences of similar length."""
    rng = random.Random(f"{recipe.seed}/{epoch}")
    batches: list[list[Labelled]] = [[]]
    for example in sorted(known, key=lambda example: (len(example.token_ids), rng.random())):
        if (len(batches[-1]) + 1) * len(example.token_ids) > recipe.batch_tokens:
            batches.append([])
        batches[-1].append(example)
    rng.shuffle(batches)
    for batch in batches:
        columns = max(len(example.token_ids) for example in batch)
        token_ids = torch.zeros(len(batch), columns, dtype=torch.int64)
        labels = torch.full((len(batch), columns), UNLABELLED)
        for row, example in enumerate(batch):
            token_ids[row, : len(example.token_ids)] = torch.tensor(example.token_ids)
            labels[row, : len(example.labels)] = torch.tensor(example.labels)
        yield token_ids, labels


def crossed_scores(name: str, records: Sequence[RecordedProblem], folder: Path) -> NDArray[np.float64]:
    """A judge's score of every draft step, by a judge that was trained on the other half of the problems.

    Returns:
        P(class 1), float64 `[pairs]`.
    """
    halves = records[::2], records[1::2]
    scores = []
    for half, (mine, others) in enumerate((halves, halves[::-1])):
        train_judge(name, others, folder / str(half))
        scores.append(judge_scores(name, mine, folder / str(half)))
    first, second = (
        iter(np.split(part, np.cumsum([len(record.pairs) for record in half])[:-1]))
        for part, half in zip(scores, halves, strict=True)
    )
    return np.concatenate([next(second if index % 2 else first) for index in range(len(records))])


def judge_scores(name: str, records: Sequence[RecordedProblem], model_folder: Path) -> NDArray[np.float64]:
    """The score of every draft step by the judge in `model_folder`: P(class 1), float64 `[pairs]`."""
    from transformers import Qwen3ForSequenceClassification

    model = Qwen3ForSequenceClassification.from_pretrained(model_folder, dtype=torch.float32).eval()
    numbers = itertools.count()

    def number(pair: StepPair, author: str) -> float | None:
        return float(next(numbers)) if author == DRAFT else None

    sequences = _sequences(records, LAYOUTS[JUDGES[name]], HFTokenizer(model_folder), number)
    scores = np.empty(next(numbers))
    with torch.inference_mode():
        for token_ids, labels in _batches(sequences, JudgeRecipe(), 0):
            wanted = labels > UNLABELLED
            logits = model.score(model.model(input_ids=token_ids, use_cache=False).last_hidden_state[wanted])
            scores[labels[wanted].long().numpy()] = logits.softmax(-1)[:, 1].numpy()
    return scores
