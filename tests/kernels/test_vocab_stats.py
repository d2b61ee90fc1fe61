"""`vocab_stats`, by torch and by its kernel in Triton's interpreter, against its reference in float64."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reasonrt.errors import KernelError
from reasonrt.kernels.expected_embedding import expected_embedding, expected_embedding_top
from reasonrt.kernels.online import RowStats
from reasonrt.kernels.row_stats import row_stats, row_stats_reference
from reasonrt.kernels.vocab_stats import vocab_stats, vocab_stats_reference

TOLERANCE = 1e-5
TOP_K = st.integers(0, 9)


def draw(num_rows: int, vocab_size: int, hidden_size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_rows, hidden_size, generator=generator)
    weight = 3 * torch.randn(vocab_size, hidden_size, generator=generator) / hidden_size**0.5
    return hidden, weight, torch.randint(vocab_size, (num_rows,), generator=generator)


def assert_highest(found: RowStats, hidden: Tensor, weight: Tensor, tolerance: float) -> None:
    """Whatever ids were found, they are as high as the highest: products are rounded, so that near ones may swap."""
    logprobs = torch.log_softmax(hidden.double() @ weight.double().T, 1)
    highest = logprobs.topk(max(1, found.top_ids.shape[1])).values
    assert ((highest[:, : found.top_ids.shape[1]] - logprobs.gather(1, found.top_ids)).abs() <= tolerance).all()
    assert ((highest[:, :1] - logprobs.gather(1, found.argmax[:, None])).abs() <= tolerance).all()
    assert all(len(set(row)) == len(row) for row in found.top_ids.tolist())


def test_targets_may_lie_apart(computing: str) -> None:
    hidden, weight, targets = draw(5, 300, 32)
    apart = torch.stack([targets, targets.flip(0) + 1], 1)[:, 0]

    found = vocab_stats(hidden, weight, apart).logprob

    assert found is not None
    assert found.equal(vocab_stats(hidden, weight, targets).logprob)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    ("num_rows", "vocab_size", "hidden_size"), [(1, 1, 1), (2, 63, 64), (65, 1000, 63), (17, 4097, 96)]
)
def test_is_never_worse_than_torch(
    num_rows: int,
    vocab_size: int,
    hidden_size: int,
    dtype: torch.dtype,
    computing: str,
    plainly: Callable[..., RowStats],
    assert_never_worse: Callable[..., None],
) -> None:
    hidden, weight, targets = draw(num_rows, vocab_size, hidden_size)
    hidden, weight, top_k = hidden.to(dtype), weight.to(dtype), min(4, vocab_size)

    found = vocab_stats(hidden, weight, targets, top_k=top_k)

    truth = vocab_stats_reference(hidden.double(), weight.double(), targets, top_k=top_k)
    assert_never_worse(found, plainly(hidden @ weight.T, targets, 1.0, top_k), truth, TOLERANCE)
    assert_highest(found, hidden, weight, TOLERANCE)
    assert {getattr(found, field.name).dtype for field in fields(found)} == {torch.float32, torch.int64}


@pytest.mark.parametrize(("temperature", "softcap"), [(0.5, None), (2.0, 5.0), (1.0, 30.0)])
def test_temperature_and_softcap(
    temperature: float, softcap: float | None, computing: str, assert_never_worse: Callable[..., None]
) -> None:
    hidden, weight, targets = draw(5, 300, 32)

    found = vocab_stats(hidden, weight, targets, temperature=temperature, softcap=softcap, top_k=3)

    options: dict[str, Any] = {"temperature": temperature, "softcap": softcap, "top_k": 3}
    truth = vocab_stats_reference(hidden.double(), weight.double(), targets, **options)
    assert_never_worse(found, truth, truth, 2 * TOLERANCE)


def test_an_excluded_token_has_no_probability(computing: str, assert_never_worse: Callable[..., None]) -> None:
    hidden, weight, targets = draw(5, 300, 32)
    weight[200] *= 9  # it would often be the highest
    targets[2] = 200

    found = vocab_stats(hidden, weight, targets, top_k=3, excluded=200)

    truth = vocab_stats_reference(hidden.double(), weight.double(), targets, top_k=3, excluded=200)
    assert_never_worse(found, truth, truth, 2 * TOLERANCE)
    assert found.top_ids.tolist() == truth.top_ids.tolist()
    assert found.logprob is not None
    assert found.logprob.isinf().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
def test_logits_that_are_wanted_are_those_of_the_statistics(dtype: torch.dtype, computing: str) -> None:
    """Rounded to what they are written in, and -inf where a token is excluded."""
    hidden, weight, targets = draw(5, 300, 32)
    wide = torch.zeros(5, 310, dtype=dtype)

    found = vocab_stats(hidden, weight, targets, top_k=3, excluded=200, softcap=5.0, logits=wide[:, :300])

    truth = torch.zeros(5, 300, dtype=torch.float64)
    vocab_stats_reference(hidden.double(), weight.double(), excluded=200, softcap=5.0, logits=truth)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(wide[:, :300].double(), truth, atol=tolerance, rtol=tolerance)
    assert (wide[:, 300:] == 0).all()
    expected = row_stats_reference(wide[:, :300].double(), targets, top_k=3)
    assert found.top_ids.tolist() == expected.top_ids.tolist()
    for name in ("lse", "logprob", "entropy", "max_prob", "margin", "top_logprobs"):
        torch.testing.assert_close(getattr(found, name).double(), getattr(expected, name), atol=2e-5, rtol=2e-5)


def test_lowest_ids_win_ties(computing: str) -> None:
    hidden, weight = torch.eye(3, 8), torch.zeros(700, 8)
    weight[[9, 650], 0] = 1.0
    weight[1:, 1] = 1.0

    found = vocab_stats(hidden, weight, top_k=3)

    assert found.argmax.tolist() == [9, 1, 0]
    assert found.top_ids.tolist() == [[9, 650, 0], [1, 2, 3], [0, 1, 2]]
    assert found.margin.tolist() == [0.0, 0.0, 0.0]


def test_rows_may_lie_apart(computing: str) -> None:
    hidden, weight, targets = draw(5, 300, 80)

    found = vocab_stats(hidden[::2, 8:72], weight[:290, 8:72], targets[::2] % 290, top_k=2)

    alone = vocab_stats(hidden[::2, 8:72].clone(), weight[:290, 8:72].clone(), targets[::2] % 290, top_k=2)
    for field in fields(found):
        torch.testing.assert_close(getattr(found, field.name), getattr(alone, field.name))


def test_a_target_that_is_no_id_has_no_log_probability(computing: str) -> None:
    hidden, weight, _ = draw(3, 200, 16)

    found = vocab_stats(hidden, weight, torch.tensor([-1, 200, 199], dtype=torch.int32))

    assert found.logprob is not None
    assert found.logprob.isnan().tolist() == [True, True, False]


def test_the_head_of_a_model_that_learns_is_read_without_gradients() -> None:
    weight = torch.randn(400, 8, requires_grad=True)

    stats = vocab_stats(torch.randn(3, 8, requires_grad=True), weight, top_k=4)

    assert not stats.entropy.requires_grad
    assert not expected_embedding_top(stats.top_logprobs, stats.top_ids, weight).requires_grad
    assert not expected_embedding(torch.zeros(3, 400), stats.lse, weight).requires_grad
    assert not row_stats(weight).entropy.requires_grad


def test_no_rows(computing: str) -> None:
    assert vocab_stats(torch.zeros(0, 16), torch.zeros(200, 16), top_k=2).top_ids.shape == (0, 2)


@settings(deadline=None, max_examples=40)
@given(num_rows=st.integers(1, 40), vocab_size=st.integers(1, 900), hidden_size=st.integers(1, 70), top_k=TOP_K)
def test_any_shape_by_torch(num_rows: int, vocab_size: int, hidden_size: int, top_k: int) -> None:
    _check_any_shape(num_rows, vocab_size, hidden_size, min(top_k, vocab_size))


@settings(deadline=None, max_examples=6)
@given(num_rows=st.integers(1, 40), vocab_size=st.integers(1, 400), hidden_size=st.integers(1, 70), top_k=TOP_K)
def test_any_shape_in_the_interpreter(
    num_rows: int, vocab_size: int, hidden_size: int, top_k: int, interpreting: Callable[[], Any]
) -> None:
    with interpreting():
        _check_any_shape(num_rows, vocab_size, hidden_size, min(top_k, vocab_size))


def _check_any_shape(num_rows: int, vocab_size: int, hidden_size: int, top_k: int) -> None:
    hidden, weight, targets = draw(num_rows, vocab_size, hidden_size)

    found = vocab_stats(hidden, weight, targets, top_k=top_k)

    truth = vocab_stats_reference(hidden.double(), weight.double(), targets, top_k=top_k)
    for name in ("lse", "logprob", "entropy", "max_prob", "margin", "top_logprobs"):
        torch.testing.assert_close(getattr(found, name).double(), getattr(truth, name), atol=2e-5, rtol=2e-5)
    assert_highest(found, hidden, weight, 2e-5)


def test_logits_are_never_whole(largest_allocation: Callable[..., int]) -> None:
    """The largest tensor that torch allocates is a small part of them; the reference shows that it would be seen."""
    hidden, weight, targets = draw(64, 100_000, 4)
    logits_bytes = 64 * 100_000 * 4

    for dtype in (torch.float32, torch.bfloat16):
        narrow = hidden.to(dtype), weight.to(dtype), targets
        assert largest_allocation(lambda narrow=narrow: vocab_stats(*narrow, top_k=4)) < logits_bytes / 8
        assert largest_allocation(lambda narrow=narrow: vocab_stats_reference(*narrow)) >= logits_bytes


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(9, 4)), {}, r"weight must be \[V, 3\] as hidden is \(2, 3\), got \(9, 4\)"),
        ((torch.zeros(2, 3), torch.zeros(9, 3).half()), {}, "one dtype, got float16 and float32; convert one"),
        ((torch.zeros(2, 3), torch.zeros(9, 3, device="meta")), {}, "one device, got meta and cpu; use .to"),
        ((torch.zeros(2, 3), torch.zeros(3, 9).T), {}, r"weight must have adjacent columns, got strides \(1, 9\)"),
        ((torch.zeros(2, 3), torch.zeros(9, 3)), {"softcap": 0.0}, "softcap must be positive and finite, got 0.0"),
        (
            (torch.zeros(2, 3), torch.zeros(9, 3)),
            {"logits": torch.zeros(2, 8)},
            r"logits must have the shape \[2, 9\], got \[2, 8\]",
        ),
        ((torch.zeros(2, 3), torch.zeros(9, 3)), {"temperature": -1.0}, "temperature must be positive .*, got -1.0"),
        ((torch.zeros(2, 3), torch.zeros(9, 3)), {"top_k": 10}, r"top_k must be in \[0, 9\], got 10"),
        ((torch.zeros(2, 3), torch.zeros(9, 3), torch.zeros(1).long()), {}, "one id for each of the 2 rows of hidden"),
    ],
)
def test_names_what_cannot_be_used(arguments: tuple[Tensor, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        vocab_stats(*arguments, **options)
