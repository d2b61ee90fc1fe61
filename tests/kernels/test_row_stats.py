"""`row_stats`, by torch and by its kernel in Triton's interpreter, against its reference in float64."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reasonrt.errors import KernelError
from reasonrt.kernels.online import RowStats
from reasonrt.kernels.row_stats import row_stats, row_stats_reference

TOLERANCE = 4e-6


@contextmanager
def in_pieces() -> Iterator[None]:
    """Within it, the torch path takes rows in as if they did not fit into the cache as a whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reasonrt.kernels.row_stats.PIECE", 0)
        patch.setattr("reasonrt.kernels.row_stats._FEW", 0)
        patch.setattr("reasonrt.kernels.row_stats._ROWS", 4)
        patch.setattr("reasonrt.kernels.row_stats.piece_columns", lambda width: 192)
        yield


@pytest.fixture(params=["torch", "torch in pieces", "triton"])
def computing(request: pytest.FixtureRequest) -> Iterator[str]:
    """The ways to compute the op on CPU tensors."""
    with (
        in_pieces() if request.param == "torch in pieces" else nullcontext(),
        request.getfixturevalue("interpreting")() if request.param == "triton" else nullcontext(),
    ):
        yield request.param


def draw(num_rows: int, vocab_size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(num_rows, vocab_size, generator=generator)
    return logits, torch.randint(vocab_size, (num_rows,), generator=generator)


def assert_same_ids(found: RowStats, truth: RowStats) -> None:
    assert found.argmax.tolist() == truth.argmax.tolist()
    assert found.top_ids.tolist() == truth.top_ids.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("num_rows", "vocab_size"), [(1, 1), (2, 63), (65, 63), (7, 1000), (3, 4097)])
def test_is_never_worse_than_torch(
    num_rows: int,
    vocab_size: int,
    dtype: torch.dtype,
    computing: str,
    plainly: Callable[..., RowStats],
    assert_never_worse: Callable[..., None],
) -> None:
    logits, targets = draw(num_rows, vocab_size)
    logits, top_k = logits.to(dtype), min(5, vocab_size)

    found = row_stats(logits, targets, temperature=0.7, top_k=top_k)

    truth = row_stats_reference(logits.double(), targets, temperature=0.7, top_k=top_k)
    assert_never_worse(found, plainly(logits, targets, 0.7, top_k), truth, TOLERANCE)
    assert_same_ids(found, truth)
    assert {getattr(found, field.name).dtype for field in fields(found)} == {torch.float32, torch.int64}


def test_columns_of_minus_infinity_have_no_probability(computing: str, assert_never_worse: Callable[..., None]) -> None:
    logits, targets = draw(6, 1000)
    logits[:, ::2] = -torch.inf
    logits[0, 1:], logits[0, 0] = -torch.inf, 1.0  # one-hot
    logits[1, :997] = -torch.inf  # nothing before the last tile
    logits[2] = -torch.inf  # no distribution
    targets[3], targets[4] = 2, 3

    found = row_stats(logits, targets, top_k=4)

    truth = row_stats_reference(logits.double(), targets, top_k=4)
    assert_never_worse(found, truth, truth, TOLERANCE)
    assert_same_ids(found, truth)
    assert found.entropy[0] == 0.0
    assert found.max_prob[0] == found.margin[0] == 1.0
    assert found.top_ids[0].tolist() == [0, -1, -1, -1]
    assert found.logprob is not None
    assert found.logprob[3] == -torch.inf
    assert found.lse[2] == -torch.inf
    assert found.entropy[2].isnan()


@pytest.mark.parametrize("excluded", [0, 299, 999])
def test_an_excluded_column_is_as_one_of_minus_infinity(excluded: int, computing: str) -> None:
    logits, targets = draw(3, 1000)
    logits[:, excluded] = 99.0  # it would be the highest
    logits[1, excluded] = torch.nan
    targets[0] = excluded

    found = row_stats(logits, targets, top_k=3, excluded=excluded)

    expected = row_stats(logits.index_fill(1, torch.tensor([excluded]), -torch.inf), targets, top_k=3)
    assert all(getattr(found, field.name).equal(getattr(expected, field.name)) for field in fields(found))
    truth = row_stats_reference(logits.double(), targets, top_k=3, excluded=excluded)
    assert_same_ids(found, truth)
    assert found.logprob is not None
    assert truth.logprob is not None
    torch.testing.assert_close(found.logprob, truth.logprob.float())
    assert found.logprob[0] == -torch.inf


def test_lowest_ids_win_ties(computing: str) -> None:
    logits = torch.zeros(3, 1000)
    logits[0, [500, 7, 999]] = 1.0
    logits[1, 3] = -0.0
    logits[2, 600:] = 2.0

    found = row_stats(logits, top_k=5)

    assert found.argmax.tolist() == [7, 0, 600]
    assert found.top_ids.tolist() == [[7, 500, 999, 0, 1], [0, 1, 2, 3, 4], [600, 601, 602, 603, 604]]
    assert found.margin.tolist() == [0.0, 0.0, 0.0]


def test_rows_may_lie_apart(computing: str) -> None:
    wide, targets = draw(5, 1200)

    found = row_stats(wide[:, 100:1100], targets % 1000, top_k=3)

    alone = row_stats(wide[:, 100:1100].clone(), targets % 1000, top_k=3)
    assert all(getattr(found, field.name).equal(getattr(alone, field.name)) for field in fields(found))


def test_targets_may_lie_apart(computing: str) -> None:
    logits, targets = draw(5, 300)
    apart = torch.stack([targets, targets.flip(0) + 1], 1)[:, 0]

    found = row_stats(logits, apart).logprob

    assert found is not None
    assert found.equal(row_stats(logits, targets).logprob)


def test_a_kernel_is_launched_with_its_tensors_device_as_the_current_one(
    interpreting: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[Tensor] = []

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        current.append(tensor)
        yield
        current.pop()

    def launch(logits: Tensor, wanted: Any) -> Any:
        return list(current)

    logits, _ = draw(2, 9)
    with interpreting():
        monkeypatch.setattr(torch.cuda, "device_of", device_of)
        monkeypatch.setattr("reasonrt.kernels.triton.row_stats.launch_row_stats", launch)
        found: Any = row_stats(logits)

    assert [each is logits for each in found] == [True]


def test_a_target_that_is_no_id_has_no_log_probability(computing: str) -> None:
    logits, _ = draw(3, 100)

    found = row_stats(logits, torch.tensor([-1, 100, 99]))

    assert found.logprob is not None
    assert found.logprob.isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_row_without_a_distribution_spoils_no_other(poison: float, computing: str) -> None:
    logits, targets = draw(3, 300)
    logits[1, 5] = poison

    found = row_stats(logits, targets)

    assert found.entropy.isnan().tolist() == [False, True, False]
    assert found.max_prob.isnan().tolist() == [False, True, False]


def test_huge_logits_do_not_overflow(computing: str) -> None:
    logits = torch.full((2, 300), -3e4)
    logits[1] += 6e4
    logits[:, 299] += 1.0

    found = row_stats(logits, temperature=0.01)

    assert found.argmax.tolist() == [299, 299]
    torch.testing.assert_close(found.max_prob, torch.ones(2))


def test_nothing_is_asked_for(computing: str) -> None:
    found = row_stats(draw(4, 50)[0])

    assert found.logprob is None
    assert found.top_ids.shape == found.top_logprobs.shape == (4, 0)
    assert row_stats(torch.zeros(0, 50)).lse.shape == (0,)


def test_the_torch_path_computes_float64_in_float64() -> None:
    logits, targets = draw(9, 3000)

    found = row_stats(logits.double(), targets, top_k=9)

    truth = row_stats_reference(logits.double(), targets, top_k=9)
    for field in fields(found):
        torch.testing.assert_close(getattr(found, field.name), getattr(truth, field.name), atol=1e-12, rtol=1e-12)


@settings(deadline=None, max_examples=60)
@given(num_rows=st.integers(1, 9), vocab_size=st.integers(1, 700), levels=st.integers(1, 9), data=st.data())
def test_any_shape_by_torch(num_rows: int, vocab_size: int, levels: int, data: st.DataObject) -> None:
    _check_any_shape(num_rows, vocab_size, levels, data)


@settings(deadline=None, max_examples=60)
@given(num_rows=st.integers(1, 9), vocab_size=st.integers(1, 700), levels=st.integers(1, 9), data=st.data())
def test_any_shape_by_torch_in_pieces(num_rows: int, vocab_size: int, levels: int, data: st.DataObject) -> None:
    with in_pieces():
        _check_any_shape(num_rows, vocab_size, levels, data)


@settings(deadline=None, max_examples=12)
@given(num_rows=st.integers(1, 4), vocab_size=st.integers(1, 700), levels=st.integers(1, 9), data=st.data())
def test_any_shape_in_the_interpreter(
    num_rows: int, vocab_size: int, levels: int, data: st.DataObject, interpreting: Callable[[], Any]
) -> None:
    with interpreting():
        _check_any_shape(num_rows, vocab_size, levels, data)


def _check_any_shape(num_rows: int, vocab_size: int, levels: int, data: st.DataObject) -> None:
    """Few different values make many ties."""
    top_k = data.draw(st.integers(0, min(20, vocab_size)), label="top_k")
    logits, targets = draw(num_rows, vocab_size, seed=data.draw(st.integers(0, 99), label="seed"))
    logits = (logits.clamp(-9, 9) * levels / 9).round()
    logits[logits == -1] = -torch.inf

    found = row_stats(logits, targets, top_k=top_k)

    truth = row_stats_reference(logits.double(), targets, top_k=top_k)
    assert_same_ids(found, truth)
    for field in fields(found):
        value, wanted = getattr(found, field.name), getattr(truth, field.name)
        torch.testing.assert_close(value.double(), wanted.double(), equal_nan=True, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(4),), {}, r"logits must be a matrix with at least one column, got shape \(4,\)"),
        ((torch.zeros(4, 0),), {}, r"logits must be a matrix with at least one column, got shape \(4, 0\)"),
        (
            (torch.zeros(4, 9, dtype=torch.int64),),
            {},
            r"logits must be float32, .* got int64; convert with \.to\(\)",
        ),
        ((torch.zeros(9, 4).T,), {}, r"logits must have adjacent columns, got strides \(1, 4\); call \.contiguous\(\)"),
        ((torch.zeros(4, 9), torch.zeros(3, dtype=torch.int64)), {}, r"one id for each of the 4 rows .* shape \(3,\)"),
        ((torch.zeros(4, 9), torch.zeros(4)), {}, r"targets must be int64 or int32, got float32; convert"),
        ((torch.zeros(4, 9),), {"temperature": 0.0}, r"temperature must be positive and finite, got 0.0; greedy"),
        ((torch.zeros(4, 9),), {"top_k": 10}, r"top_k must be in \[0, 9\], got 10"),
        ((torch.zeros(4, 9),), {"excluded": 9}, r"excluded must be an id below 9, got 9; None"),
        ((torch.zeros(4, 99),), {"top_k": 65}, r"top_k must be in \[0, 64\], got 65"),
        ((torch.zeros(4, 9), torch.zeros(4, dtype=torch.int64, device="meta")), {}, r"on one device, got meta and cpu"),
    ],
)
def test_names_what_cannot_be_used(arguments: tuple[Tensor, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        row_stats(*arguments, **options)


def test_float64_is_computed_by_torch_wherever_it_is(interpreting: Callable[[], Any]) -> None:
    logits = torch.randn(2, 300, dtype=torch.float64)

    with interpreting():
        found = row_stats(logits)

    torch.testing.assert_close(found.entropy, row_stats_reference(logits).entropy, rtol=1e-12, atol=0)
