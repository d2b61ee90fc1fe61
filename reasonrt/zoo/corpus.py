"""Training examples, drawn on the fly: problems of the training split, their traces, and batches of even length."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from reasonrt.zoo import arithmetic
from reasonrt.zoo.problems import FAMILIES, MIXTURE, Problem, problems, split_of
from reasonrt.zoo.tokenizer import END
from reasonrt.zoo.traces import Wording, trace

IGNORED = -100  # the label that cross-entropy leaves out
_POOL = 2048  # examples sorted by length at a time

_HARD = {("chain_sum", 3), ("chain_sum", 4), ("gcd", 3), ("gcd", 4), ("sorting", 3), ("sorting", 4)} | {
    ("base_conversion", level) for level in (2, 3, 4)
}
"""Families and levels with long traces, which models learn last; drawn twice as often as in the bench mixture."""

TRAINING_SHARES: dict[tuple[str, int], float] = {
    key: share * (1.5 if key in _HARD else 0.75) for key, share in MIXTURE.items()
} | {
    ("gsm_symbolic", 1): 0.38,
    ("drill", 1): 0.05,
    ("drill", 2): 0.05,
    ("unsolvable", 1): 0.02,
}
"""Families and levels as they are drawn for training; the shares need not add up to one."""


@dataclass(frozen=True, slots=True)
class Example:
    token_ids: list[int]
    labels: list[int]  # as long as token_ids; IGNORED for the question and for planted slips


def _drills(seed: int, level: int) -> Iterator[Problem]:
    for index in itertools.count():
        question, solution = arithmetic.drill(random.Random(f"{seed}/drill/{level}/{index}"), level)
        if split_of(question) == "train":
            yield Problem(f"train/drill/{level}/{index}", "drill", level, question, solution)


def examples(
    tokenizer: Any, seed: int, max_tokens: int, again_share: float = 0.0, wording: Wording = "own"
) -> Iterator[Example]:
    """Endless training examples of at most `max_tokens` tokens; the same ones for the same seed."""
    rng = random.Random(seed)
    keys = list(TRAINING_SHARES)
    streams = {key: problems("train", *key) if key[0] in FAMILIES else _drills(seed, key[1]) for key in keys}
    end_id = tokenizer.convert_tokens_to_ids(END)
    while True:
        for key in rng.choices(keys, list(TRAINING_SHARES.values()), k=_POOL):
            problem = next(streams[key])
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": problem.question}], tokenize=False, add_generation_prompt=True
            )
            pieces = [(prompt, False), *trace(problem, rng, again_share, wording)]
            token_ids: list[int] = []
            labels: list[int] = []
            for ids, (_, learn) in zip(
                tokenizer([text for text, _ in pieces], add_special_tokens=False).input_ids, pieces, strict=True
            ):
                token_ids += ids
                labels += ids if learn else [IGNORED] * len(ids)
            if problem.answer:
                token_ids.append(end_id)
                labels.append(end_id)
            if len(token_ids) <= max_tokens:
                yield Example(token_ids, labels)
            elif not problem.answer:  # thinking without an end: its beginning is enough
                yield Example(token_ids[:max_tokens], labels[:max_tokens])


class Batches(torch.utils.data.IterableDataset[tuple[torch.Tensor, torch.Tensor]]):  # type: ignore[misc]
    """Batches of about `batch_tokens` tokens, padded to the longest of neighbours in length.

    Yields (token_ids, labels), each int64 `[rows, columns]`.
    """

    def __init__(
        self,
        tokenizer: Any,
        seed: int,
        batch_tokens: int,
        max_tokens: int,
        again_share: float = 0.0,
        wording: Wording = "own",
    ) -> None:
        self.tokenizer, self.seed, self.batch_tokens, self.max_tokens = tokenizer, seed, batch_tokens, max_tokens
        self.again_share, self.wording = again_share, wording

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = random.Random(self.seed)
        source = examples(self.tokenizer, self.seed, self.max_tokens, self.again_share, self.wording)
        while True:
            pool = sorted(itertools.islice(source, _POOL), key=lambda example: len(example.token_ids))
            batches: list[list[Example]] = [[]]
            for example in pool:
                if (len(batches[-1]) + 1) * len(example.token_ids) > self.batch_tokens:
                    batches.append([])
                batches[-1].append(example)
            rng.shuffle(batches)
            for batch in batches:
                yield _pad(batch)


def _pad(batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    # a multiple of 16 columns: matrix kernels are faster with it, and the compiler sees fewer shapes
    columns = -(-max(len(example.token_ids) for example in batch) // 16) * 16
    token_ids = torch.zeros(len(batch), columns, dtype=torch.int64)
    labels = torch.full((len(batch), columns), IGNORED, dtype=torch.int64)
    for row, example in enumerate(batch):
        token_ids[row, : len(example.token_ids)] = torch.tensor(example.token_ids)
        labels[row, : len(example.labels)] = torch.tensor(example.labels)
    return token_ids, labels
