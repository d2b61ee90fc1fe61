"""`expected_embedding`, by torch and by its kernels in Triton's interpreter, against its reference in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reasonrt.errors import KernelError
from reasonrt.kernels.expected_embedding import (
    expected_embedding,
    expected_embedding_reference,
    expected_embedding_top,
    expected_embedding_top_reference,
)
from reasonrt.kernels.row_stats import row_stats

TOLERANCE = 2e-5


def draw(num_rows: int, vocab_size: int, hidden_size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(num_rows, vocab_size, generator=generator)
    return logits, torch.randn(vocab_size, hidden_size, generator=generator)


def lse_of(logits: Tensor, temperature: float = 1.0) -> Tensor:
    return torch.logsumexp(logits.double() / temperature, 1).float()


def truth_of(logits: Tensor, embedding: Tensor, **options: Any) -> Tensor:
    lse = torch.logsumexp(logits.double() / options.get("temperature", 1.0), 1)
    return expected_embedding_reference(logits.double(), lse, embedding.double(), **options)


def assert_never_worse(found: Tensor, plain: Tensor, truth: Tensor) -> None:
    """As near to the truth as plain torch comes, or as its dtype allows, at the worst number of each.

    But for a tenth, as which number is rounded at a tie is luck, and a tolerance.
    """
    error, *rivals = ((each.double() - truth).abs().max() for each in (found, plain, truth.to(found.dtype)))
    allowed = 1.1 * max(rivals)
    assert error <= allowed + TOLERANCE, f"{error:.2e} where {allowed:.2e} is allowed"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    ("num_rows", "vocab_size", "hidden_size"), [(1, 1, 1), (2, 63, 64), (65, 300, 63), (17, 4097, 96)]
)
def test_is_never_worse_than_torch(
    num_rows: int, vocab_size: int, hidden_size: int, dtype: torch.dtype, computing: str
) -> None:
    logits, embedding = (tensor.to(dtype) for tensor in draw(num_rows, vocab_size, hidden_size))

    found = expected_embedding(logits, lse_of(logits), embedding)

    assert_never_worse(found, logits.softmax(1) @ embedding, truth_of(logits, embedding))
    assert found.dtype == dtype


@pytest.mark.parametrize(("temperature", "impossible"), [(0.5, None), (2.0, 130), (1.0, 0)])
def test_temperature_and_a_token_without_probability(
    temperature: float, impossible: int | None, computing: str
) -> None:
    logits, embedding = draw(5, 300, 32)
    if impossible is not None:
        logits[:, impossible] = -torch.inf

    stats = row_stats(logits, temperature=temperature)
    found = expected_embedding(logits, stats.lse, embedding, temperature=temperature)

    truth = truth_of(logits, embedding, temperature=temperature)
    assert_never_worse(found, truth, truth)


def test_some_rows_of_logits_that_lie_apart(computing: str) -> None:
    wide, embedding = draw(9, 400, 40)
    logits, rows = wide[:, 50:350], torch.tensor([7, 0, 7, 3])

    found = expected_embedding(logits, lse_of(logits), embedding[50:350, 4:36], rows)

    truth = truth_of(logits, embedding[50:350, 4:36])[rows]
    assert_never_worse(found, truth, truth)
    none = expected_embedding(logits, lse_of(logits), embedding[50:350], rows[:0])
    assert none.shape == (0, 40)


def test_a_certain_row_is_the_embedding_itself_and_a_row_without_a_distribution_spoils_no_other(computing: str) -> None:
    logits, embedding = draw(4, 300, 33)
    logits[0], logits[0, 210] = -torch.inf, -5.0
    logits[1] = -torch.inf
    logits[2, 3] = torch.nan

    found = expected_embedding(logits, row_stats(logits).lse, embedding)

    assert found[0].equal(embedding[210])
    assert found.isnan().all(1).tolist() == found.isnan().any(1).tolist() == [False, True, True, False]


def test_what_the_normalizer_is_wrong_by_is_normalized_away(computing: str) -> None:
    logits, embedding = draw(3, 300, 32)

    found = expected_embedding(logits, lse_of(logits) + torch.tensor([0.0, 1.0, -1.0]), embedding)

    torch.testing.assert_close(found, expected_embedding(logits, lse_of(logits), embedding))


def test_huge_logits_do_not_overflow(computing: str) -> None:
    logits, embedding = draw(2, 300, 8)
    logits[0] += 3e4
    logits[1] -= 3e4

    found = expected_embedding(logits, lse_of(logits, 0.01), embedding, temperature=0.01)

    truth = truth_of(logits, embedding, temperature=0.01)
    assert_never_worse(found, (logits / 0.01).softmax(1) @ embedding, truth)


def test_logits_and_embedding_of_two_dtypes(computing: str) -> None:
    logits, embedding = draw(3, 300, 32)

    found = expected_embedding(logits, lse_of(logits), embedding.bfloat16())

    assert found.dtype == torch.bfloat16
    plain = logits.softmax(1).bfloat16() @ embedding.bfloat16()
    assert_never_worse(found, plain, truth_of(logits, embedding.bfloat16()))


@settings(deadline=None, max_examples=40)
@given(num_rows=st.integers(1, 40), vocab_size=st.integers(1, 900), hidden_size=st.integers(1, 70))
def test_any_shape_by_torch(num_rows: int, vocab_size: int, hidden_size: int) -> None:
    _check_any_shape(num_rows, vocab_size, hidden_size)


@settings(deadline=None, max_examples=4)
@given(num_rows=st.integers(1, 20), vocab_size=st.integers(1, 300), hidden_size=st.integers(1, 70))
def test_any_shape_in_the_interpreter(
    num_rows: int, vocab_size: int, hidden_size: int, interpreting: Callable[[], Any]
) -> None:
    with interpreting():
        _check_any_shape(num_rows, vocab_size, hidden_size)


def _check_any_shape(num_rows: int, vocab_size: int, hidden_size: int) -> None:
    logits, embedding = draw(num_rows, vocab_size, hidden_size)
    top_k = min(7, vocab_size)
    stats = row_stats(logits, top_k=top_k)

    found, truth = expected_embedding(logits, stats.lse, embedding), truth_of(logits, embedding)
    assert_never_worse(found, truth, truth)
    found = expected_embedding_top(stats.top_logprobs, stats.top_ids, embedding)
    truth = expected_embedding_top_reference(stats.top_logprobs.double(), stats.top_ids, embedding.double())
    assert_never_worse(found, truth, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("num_rows", "top_k", "hidden_size"), [(1, 1, 1), (5, 3, 130), (3, 64, 40)])
def test_the_most_probable_alone_are_never_worse_than_torch(
    num_rows: int, top_k: int, hidden_size: int, dtype: torch.dtype, computing: str
) -> None:
    logits, embedding = draw(num_rows, 300, hidden_size)
    embedding, top = embedding.to(dtype), logits.log_softmax(1).topk(top_k)

    found = expected_embedding_top(top.values, top.indices, embedding)

    plain = torch.einsum("rk,rkd->rd", top.values.softmax(1).to(dtype), embedding[top.indices])
    assert_never_worse(found, plain, expected_embedding_top_reference(top.values, top.indices, embedding.double()))
    assert found.dtype == dtype


def test_where_there_are_fewer_tokens_these_are_all(computing: str) -> None:
    logits = torch.full((2, 300), -torch.inf)
    logits[0, [5, 9]] = 0.0
    logits[1, 7] = 0.0
    embedding = draw(1, 300, 16)[1]
    stats = row_stats(logits, top_k=4)

    found = expected_embedding_top(stats.top_logprobs, stats.top_ids, embedding)

    torch.testing.assert_close(found, torch.stack([(embedding[5] + embedding[9]) / 2, embedding[7]]))


def test_probabilities_are_never_whole(largest_allocation: Callable[..., int]) -> None:
    """The largest tensor that torch allocates is a small part of them; the reference shows that it would be seen."""
    logits, embedding = draw(64, 100_000, 4)
    lse, probs_bytes = lse_of(logits), 64 * 100_000 * 4

    for dtype in (torch.float32, torch.bfloat16):
        narrow = logits.to(dtype), lse, embedding.to(dtype)
        assert largest_allocation(lambda narrow=narrow: expected_embedding(*narrow)) < probs_bytes / 8
        assert largest_allocation(lambda narrow=narrow: expected_embedding_reference(*narrow)) >= probs_bytes


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((2, 9), (2,), (8, 3)), {}, r"embedding must be \[9, D\] as logits are \(2, 9\), got \(8, 3\); cut off"),
        (((2, 9), (3,), (9, 3)), {}, r"lse must have the shape \[2\], got \[3\]"),
        (((2, 9), (2,), (9, 3), (1,)), {}, "rows must be int64, got float32; convert"),
        (((2, 9), (2,), (9, 3)), {"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
    ],
)
def test_names_what_cannot_be_used(
    arguments: tuple[tuple[int, ...], ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(KernelError, match=message):
        expected_embedding(*(torch.zeros(shape) for shape in arguments), **options)


@pytest.mark.parametrize(
    ("top_ids", "embedding", "message"),
    [
        (
            torch.zeros(2, 4, dtype=torch.int64),
            torch.zeros(9, 3),
            r"top_ids must have the shape \[2, 3\], got \[2, 4\]",
        ),
        (torch.zeros(2, 3), torch.zeros(9, 3), "top_ids must be int64, got float32"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(9), "embedding must be a matrix"),
    ],
)
def test_names_what_of_the_most_probable_cannot_be_used(top_ids: Tensor, embedding: Tensor, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        expected_embedding_top(torch.zeros(2, 3), top_ids, embedding)
