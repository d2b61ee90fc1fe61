"""What is verified has the target's distribution, whoever chose what is verified; and what breaks that is seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare
from torch import Tensor

from reasonrt.errors import KernelError
from reasonrt.kernels.speculative_verify import (
    Verification,
    draw,
    noise_keys,
    scale,
    speculative_verify,
    speculative_verify_reference,
)

TOKENS = 4
# [before, token]: of the first token, and of the second after each of them
TARGET = torch.tensor(
    [[0.5, 0.2, 0.2, 0.1], [0.1, 0.6, 0.2, 0.1], [0.3, 0.3, 0.4, 0.0], [0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]]
)
DRAFT = torch.tensor(
    [[0.4, 0.3, 0.1, 0.2], [0.3, 0.3, 0.2, 0.2], [0.1, 0.2, 0.6, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]
)
IMPOSSIBLE = 1e-9  # of a p-value that a wrong distribution is to have; one that is right has more than 1e-4


@dataclass(frozen=True, slots=True)
class Drafts:
    """Two drafted tokens each, of many requests, with what the target says there."""

    logits: Tensor  # [2 n, tokens]
    drafted: Tensor  # [n, 2]

    def verify(self, keys: Tensor) -> Verification:
        n = len(self.drafted)
        lengths, ones = torch.full((n,), 2), torch.ones(n, dtype=torch.float64)
        return speculative_verify(self.logits, self.drafted.flatten(), lengths, keys, ones, ones)


def keys_of(seed: int, rows: int) -> Tensor:
    return torch.tensor(noise_keys(seed, range(rows)), dtype=torch.int64)


def write(table: Tensor, keys: Tensor) -> Tensor:
    """Texts [n, 2] of a model, by keys [2 n]."""
    ones = torch.ones(len(keys) // 2, dtype=torch.float64)
    first = draw(table[0].log().expand(len(ones), -1), keys[::2], ones, ones)
    return torch.stack([first, draw(table[1 + first].log(), keys[1::2], ones, ones)], 1)


def draft(n: int, keys: Tensor) -> Drafts:
    drafted = write(DRAFT, keys)
    rows = torch.stack([torch.zeros(n, dtype=torch.int64), 1 + drafted[:, 0]], 1).flatten()
    return Drafts(TARGET[rows].log(), drafted)


def texts(drafts: Drafts, found: Verification, seed: int) -> Tensor:
    """Two tokens [n, 2] of each request: what was verified, and the target's own after it."""
    n = len(drafts.drafted)
    first = torch.where(found.accepted > 0, drafts.drafted[:, 0], found.tokens)
    ones = torch.ones(n, dtype=torch.float64)
    own = draw(TARGET[1 + first].log(), keys_of(seed, n), ones, ones)
    second = torch.where(found.accepted > 0, torch.where(found.accepted > 1, drafts.drafted[:, 1], found.tokens), own)
    return torch.stack([first, second], 1)


def p_value(written: Tensor) -> float:
    """Of texts [n, 2] as draws from the target."""
    expected = (TARGET[0][:, None] * TARGET[1:]).double().flatten().numpy()
    counts = np.bincount((written[:, 0] * TOKENS + written[:, 1]).numpy(), minlength=TOKENS**2)
    if counts[expected == 0].any():
        return 0.0
    possible = expected[expected > 0] / expected.sum()
    return float(chisquare(counts[expected > 0], len(written) * possible).pvalue)


def is_chosen(drafted: Tensor, seed: int) -> Tensor:
    """A router that reads the whole step, with some luck: it lets pass what begins with 0 or ends with 1."""
    luck = torch.rand(len(drafted), generator=torch.Generator().manual_seed(seed))
    return (drafted[:, 0] != 0) & (drafted[:, 1] != 1) | (luck < 0.1)


N, FEW = 20_000, 150


def test_what_is_verified_has_the_targets_distribution() -> None:
    drafts = draft(N, keys_of(1, 2 * N))

    found = drafts.verify(keys_of(2, 2 * N))

    assert p_value(texts(drafts, found, 3)) > 1e-4
    assert p_value(drafts.drafted) < IMPOSSIBLE  # the test sees the draft's own


def test_so_it_has_by_the_kernels(interpreting: Callable[[], Any]) -> None:
    """They draw what torch draws, row by row, so that fewer rows are enough."""
    drafts, keys = draft(FEW, keys_of(1, 2 * FEW)), keys_of(2, 2 * FEW)
    by_torch = drafts.verify(keys)

    with interpreting():
        found = drafts.verify(keys)

    assert found.accepted.tolist() == by_torch.accepted.tolist()
    assert found.tokens.tolist() == by_torch.tokens.tolist()
    assert p_value(texts(drafts, found, 3)) > 1e-4
    assert p_value(drafts.drafted) < 1e-4  # the test sees the draft's own


def test_sample_and_match_is_exact_for_the_steps_that_a_router_has_chosen() -> None:
    drafts = draft(N, keys_of(4, 2 * N))
    chosen = is_chosen(drafts.drafted, 5)

    found = drafts.verify(keys_of(6, 2 * N))

    assert 0.3 < float(chosen.double().mean()) < 0.7
    assert p_value(texts(drafts, found, 7)[chosen]) > 1e-4


def test_noise_that_the_draft_has_used_is_not() -> None:
    """It keeps more, and is exact where everything is verified; not for what a router has chosen."""
    keys = keys_of(8, 2 * N)
    drafts = draft(N, keys)

    found, apart = drafts.verify(keys), drafts.verify(keys_of(9, 2 * N))

    assert float(found.accepted.double().mean()) > float(apart.accepted.double().mean()) + 0.2
    assert p_value(texts(drafts, found, 7)) > 1e-4
    assert p_value(texts(drafts, found, 7)[is_chosen(drafts.drafted, 5)]) < IMPOSSIBLE


def test_kept_is_the_sum_of_the_products() -> None:
    drafts = draft(N, keys_of(10, 2 * N))

    kept = int((drafts.verify(keys_of(11, 2 * N)).accepted > 0).sum())

    assert binomtest(kept, N, float((TARGET[0].double() * DRAFT[0].double()).sum())).pvalue > 1e-4


@st.composite
def batches(draws: st.DrawFn, dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64)) -> tuple[Tensor, ...]:
    """Arguments of `speculative_verify` for up to five requests, some without a draft."""
    lengths = draws(st.lists(st.integers(0, 6), max_size=5))
    tokens, rows = draws(st.sampled_from([1, 2, 5, 63])), sum(lengths)
    random = torch.Generator().manual_seed(draws(st.integers(0, 2**32)))
    logits = (3 * torch.randn(rows, tokens, generator=random)).to(draws(st.sampled_from(dtypes)))
    if draws(st.booleans()) and tokens > 1:
        logits[:, torch.randint(tokens, (1,), generator=random)] = -torch.inf
    if draws(st.booleans()):
        logits = logits.round()  # ties
    likely = logits.argmax(-1) if draws(st.booleans()) else torch.randint(tokens, (rows,), generator=random)
    temperatures = draws(st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.0]), min_size=len(lengths), max_size=len(lengths)))
    masses = draws(st.lists(st.sampled_from([0.2, 0.9, 1.0]), min_size=len(lengths), max_size=len(lengths)))
    parts = logits, likely, torch.tensor(lengths, dtype=torch.int64), keys_of(draws(st.integers(0, 99)), rows)
    rest = (torch.tensor(values, dtype=torch.float64) for values in (temperatures, masses))
    return (*parts, *rest)


@given(batches())
@settings(deadline=None)
def test_agrees_with_the_reference(batch: tuple[Tensor, ...]) -> None:
    _check_reference(batch)


@given(batch=batches(dtypes=(torch.float32, torch.bfloat16, torch.float16)))
@settings(deadline=None, max_examples=8)
def test_the_kernels_agree_with_the_reference(interpreting: Callable[[], Any], batch: tuple[Tensor, ...]) -> None:
    with interpreting():
        _check_reference(batch)


def _check_reference(batch: tuple[Tensor, ...]) -> None:
    found, expected = speculative_verify(*batch), speculative_verify_reference(*batch)

    assert found.accepted.tolist() == expected.accepted.tolist()
    assert found.tokens.tolist() == expected.tokens.tolist()


@given(batches())
@settings(deadline=None)
def test_a_request_gets_the_same_alone(batch: tuple[Tensor, ...]) -> None:
    logits, drafted, lengths, keys, temperature, top_p = batch
    together = speculative_verify(*batch)

    begin = 0
    for request, length in enumerate(lengths.tolist()):
        rows, one = slice(begin, begin + length), slice(request, request + 1)
        part = (logits[rows], drafted[rows], lengths[one], keys[rows], temperature[one], top_p[one])
        alone = speculative_verify(*part)
        assert (alone.accepted, alone.tokens) == (together.accepted[one], together.tokens[one])
        begin += length


def test_temperature_0_keeps_what_the_target_would_write_greedily(computing: str) -> None:
    """Whatever the random numbers; of two equal ones the lower id."""
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 3.0], [0.0, 0.0, 5.0]]).repeat(3, 1)
    drafted = torch.tensor([1, 0, 2, 1, 2, 2, 0, 0, 2])
    zeros, ones = torch.zeros(3), torch.ones(3)

    for seed in range(20 if computing == "torch" else 3):
        found = speculative_verify(logits, drafted, torch.tensor([3, 3, 3]), keys_of(seed, 9), zeros, ones)
        assert (found.accepted.tolist(), found.tokens.tolist()) == ([3, 1, 0], [-1, 0, 1])


def test_each_seed_and_each_place_draws_for_itself() -> None:
    ones = torch.ones(40, dtype=torch.float64)
    drawn = [draw(torch.zeros(40, 1000), keys_of(seed, 40), ones, ones).tolist() for seed in (1, 2, 1)]

    assert drawn[0] == drawn[2] != drawn[1]
    assert len(set(drawn[0])) > 30


def test_top_p_leaves_the_most_probable_up_to_its_mass() -> None:
    logits = torch.tensor([0.4, 0.05, 0.3, 0.15, 0.1]).log().repeat(3, 1)

    scaled = scale(logits, torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.8, 1.0, 1.0]))

    assert torch.isfinite(scaled).tolist() == [
        [True, False, True, True, False],  # the third one crosses the mass
        [True] * 5,
        [True, False, False, False, False],
    ]


def test_the_kernel_draws_what_torch_draws(interpreting: Callable[[], Any]) -> None:
    """From more tokens than a tile holds, many of them equally probable, and whatever mass they are cut at."""
    logits = (2 * torch.randn(12, 2100, generator=torch.Generator().manual_seed(0))).round()
    logits[3:6, ::3] = -torch.inf
    wide = torch.cat([logits, logits], 1)[:, :2100]  # rows that lie apart
    keys, temperature = keys_of(0, 12), torch.tensor([0.0, 0.3, 1.0, 5.0]).repeat(3)
    top_p = torch.tensor([1.0, 0.9, 0.05]).repeat_interleave(4)
    by_torch = draw(logits, keys, temperature, top_p)

    with interpreting():
        assert draw(wide, keys, temperature, top_p).tolist() == by_torch.tolist()

    assert len(set(by_torch.tolist())) > 6


@pytest.mark.parametrize(("name", "shape"), [("drafted", (4,)), ("lengths", (2,)), ("keys", (2,)), ("top_p", (2,))])
def test_shapes_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...]) -> None:
    right = {"logits": (3, 5), "drafted": (3,), "lengths": (1,), "keys": (3,), "temperature": (1,), "top_p": (1,)}
    batch = {key: torch.zeros(size, dtype=torch.int64) for key, size in (right | {name: shape}).items()}

    with pytest.raises(KernelError, match=r"must have the shape \["):
        speculative_verify(**batch)


def test_lengths_add_up_to_the_rows() -> None:
    logits, ones = torch.zeros(3, 5), torch.ones(2)

    with pytest.raises(KernelError, match=r"add up to the 3 drafted tokens, got \[1, 1\]"):
        speculative_verify(logits, torch.zeros(3).long(), torch.tensor([1, 1]), keys_of(0, 3), ones, ones)
