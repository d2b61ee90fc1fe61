"""`denoise_update`, by torch and by its kernel in Triton's interpreter, against its reference and the engine's rule."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reasonrt.diffusion.decoding import Decoding
from reasonrt.diffusion.shape import ModelShape
from reasonrt.diffusion.strategies import Predictions, choose
from reasonrt.diffusion.writers import Task, make_writer
from reasonrt.errors import KernelError
from reasonrt.kernels.denoise_update import denoise_update, denoise_update_reference
from reasonrt.kernels.denoising import Predicted, Residual, Update

ENDS = torch.tensor([3, 5])
GRID = [0.0, 0.25, 0.5, 0.75, 1.0]  # of confidences and thresholds, so that they are often equal


def batch(
    confidences: list[list[float]], tokens: list[int] | None = None, is_open: list[bool] | None = None
) -> Predicted:
    """Blocks with these confidences, whose slots are in descending order."""
    flat = [confidence for block in confidences for confidence in block]
    count = len(flat)
    return Predicted(
        torch.tensor(tokens if tokens is not None else [7] * count, dtype=torch.int64),
        torch.tensor(flat, dtype=torch.float64),
        torch.tensor(is_open if is_open is not None else [True] * count, dtype=torch.bool),
        torch.arange(count).flip(0),
        torch.tensor(np.cumsum([0, *map(len, confidences)])),
    )


def residual_of(predicted: Predicted, hidden_size: int = 5, **changes: Any) -> Residual:
    generator = torch.Generator().manual_seed(0)
    num_rows = len(predicted.tokens)
    made = Residual(
        expected=torch.randn(num_rows, hidden_size, generator=generator),
        entropies=6 * torch.rand(num_rows, generator=generator),  # some are above log 40
        num_tokens=40,
        mask=torch.randn(hidden_size, generator=generator),
        embeds=torch.full((num_rows, hidden_size), -1.0),
    )
    return replace(made, **changes)


def canvas_of(predicted: Predicted) -> Tensor:
    return torch.full((len(predicted.tokens),), -9)


def committed(confidences: list[list[float]], threshold: float, dtype: torch.dtype = torch.float64) -> list[bool]:
    predicted = batch(confidences)
    predicted = replace(predicted, confidences=predicted.confidences.to(dtype))
    thresholds = torch.full((len(confidences),), threshold, dtype=torch.float64)
    return list(denoise_update(predicted, thresholds, ENDS, canvas_of(predicted)).is_committed.tolist())


def test_what_is_above_the_threshold_is_committed_else_the_leftmost_of_the_most_confident(computing: str) -> None:
    assert committed([[0.5, 0.51, 0.2, 0.9], [0.3, 0.5, 0.5]], 0.5) == [False, True, False, True, False, True, False]
    assert committed([[1.0, 1.0], [], [0.0]], 1.0) == [True, False, True]


def test_confidences_in_float32_are_compared_as_they_are(computing: str) -> None:
    """As a float32, 0.1 is above 0.1, and 0.7 is below."""
    assert committed([[0.1, 0.05, 0.1]], 0.1, torch.float32) == [True, False, True]
    assert committed([[0.69, 0.7, 0.7]], 0.7, torch.float32) == [False, True, False]


def test_tokens_go_to_their_slots_and_what_is_not_open_stays(computing: str) -> None:
    predicted = batch([[0.9, 0.8], [0.1, 0.7, 1.0]], [10, 11, 12, 13, 14], [True, True, True, True, False])
    canvas, residual = canvas_of(predicted), residual_of(predicted)

    update = denoise_update(predicted, torch.tensor([0.85, 0.5]).double(), ENDS, canvas, residual)

    assert canvas.tolist() == [-9, 13, -9, -9, 10]
    assert update.is_committed.tolist() == [True, False, False, True, False]
    assert update.is_open.tolist() == [False, True, True, False, False]
    assert update.is_done.tolist() == [False, False]
    assert (residual.embeds != -1).all(1).tolist() == [False, False, True, True, False]


def test_after_the_first_end_nothing_is_needed_but_what_is_masked_is_blended(computing: str) -> None:
    predicted = batch([[0.1, 0.9, 0.1, 0.9], [0.9, 0.1], [0.1, 0.9]], [3, 5, 7, 3, 3, 7, 3, 7])
    residual = residual_of(predicted)

    update = denoise_update(predicted, torch.full((3,), 0.5).double(), ENDS, canvas_of(predicted), residual)

    assert update.is_open.tolist() == [True, False, False, False, False, False, True, False]
    assert update.is_done.tolist() == [False, True, False]
    assert (residual.embeds != -1).all(1).flip(0).tolist() == [True, False, True, False, False, True, True, False]


def test_alpha_is_the_entropy_normalized_by_the_true_number_of_tokens_or_a_constant(computing: str) -> None:
    predicted = batch([[0.9, 0.1, 0.1, 0.1]])
    entropies = torch.tensor([0.0, math.log(40) / 4, 9.0, -1e-3])
    mean, mask = torch.full((4, 5), 2.0), torch.full((5,), 1.0)

    for weight, alphas in ((None, [0.25, 1.0, 0.0]), (0.5, [0.5, 0.5, 0.5])):
        residual = residual_of(predicted, expected=mean, mask=mask, entropies=entropies, weight=weight)
        denoise_update(predicted, torch.tensor([0.5]).double(), ENDS, canvas_of(predicted), residual)
        torch.testing.assert_close(residual.embeds.flip(0)[1:, 0], 1 + torch.tensor(alphas))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
def test_long_blocks_and_wide_embeddings(dtype: torch.dtype, computing: str) -> None:
    """More rows than a tile holds, more numbers than a slice, and embeddings that lie apart."""
    generator = torch.Generator().manual_seed(1)
    predicted = batch([torch.rand(count, generator=generator).tolist() for count in (70, 1, 33)])
    residual = residual_of(predicted, hidden_size=300)
    wide = torch.randn(104, 310, generator=generator).to(dtype)
    residual = replace(residual, expected=wide[:, :300], mask=residual.mask.to(dtype), embeds=residual.embeds.to(dtype))

    check(predicted, torch.full((3,), 0.8).double(), residual, tolerance=1e-6 if dtype == torch.float32 else 2e-2)


def check(predicted: Predicted, thresholds: Tensor, residual: Residual | None, tolerance: float) -> Update:
    """The op does what its reference does; what that is."""
    canvas, expected_canvas = canvas_of(predicted), canvas_of(predicted)
    truth = residual and replace(residual, embeds=residual.embeds.double())

    found = denoise_update(predicted, thresholds, ENDS, canvas, residual)

    expected = denoise_update_reference(predicted, thresholds, ENDS, expected_canvas, truth)
    for field in fields(Update):
        assert getattr(found, field.name).tolist() == getattr(expected, field.name).tolist(), field.name
    assert canvas.tolist() == expected_canvas.tolist()
    if residual is not None and truth is not None:
        torch.testing.assert_close(residual.embeds.double(), truth.embeds, atol=tolerance, rtol=tolerance)
    return expected


@st.composite
def batches(draws: st.DrawFn) -> tuple[Predicted, Tensor, Residual | None]:
    lengths = draws(st.lists(st.integers(0, 6), min_size=1, max_size=5))
    confidences = [draws(st.lists(st.sampled_from(GRID), min_size=n, max_size=n)) for n in lengths]
    rows = sum(lengths)
    tokens = draws(st.lists(st.integers(0, 6), min_size=rows, max_size=rows))
    is_open = draws(st.lists(st.booleans(), min_size=rows, max_size=rows))
    thresholds = draws(st.lists(st.sampled_from(GRID), min_size=len(lengths), max_size=len(lengths)))
    predicted = batch(confidences, tokens, is_open)
    residual = residual_of(predicted, weight=draws(st.sampled_from([None, 0.3]))) if draws(st.booleans()) else None
    return predicted, torch.tensor(thresholds, dtype=torch.float64), residual


@given(batches())
@settings(deadline=None, max_examples=60)
def test_any_blocks_by_torch(blocks: tuple[Predicted, Tensor, Residual | None]) -> None:
    _check_rule(*blocks)


@given(blocks=batches())
@settings(deadline=None, max_examples=8)
def test_any_blocks_in_the_interpreter(
    interpreting: Callable[[], Any], blocks: tuple[Predicted, Tensor, Residual | None]
) -> None:
    with interpreting():
        _check_rule(*blocks)


def _check_rule(predicted: Predicted, thresholds: Tensor, residual: Residual | None) -> None:
    """As the reference, which commits what the engine's strategy chooses among the open rows."""
    update = check(predicted, thresholds, residual, tolerance=1e-6)

    for block, (first, last) in enumerate(zip(predicted.starts[:-1], predicted.starts[1:], strict=True)):
        rows = first + predicted.is_open[first:last].nonzero()[:, 0]
        if len(rows):
            confidences = predicted.confidences[rows].numpy()
            given_ = Predictions(predicted.tokens[rows].numpy(), confidences, confidences, confidences)
            chosen = choose(given_, Decoding(threshold=float(thresholds[block])), 0)
            assert update.is_committed[rows].tolist() == chosen.tolist()
    assert not update.is_committed[~predicted.is_open].any()


@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_a_block_is_written_as_the_engine_writes_it(data: st.DataObject) -> None:
    """Pass after pass until it is done, by flags that need no host; the block begins with a prompt."""
    length, num_pinned, num_needed, mask = 8, data.draw(st.integers(1, 7)), data.draw(st.integers(1, 9)), 39
    shape = ModelShape(8, 1, 8, 1, 1, 8, vocab_size=40, tokens=40, max_positions=64, mask_token_id=mask, block_length=8)
    decoding = Decoding(threshold=data.draw(st.sampled_from(GRID)), block_length=length, residual=True)
    prompt = tuple(range(20, 20 + num_pinned))
    writer = make_writer(Task(prompt, num_needed, frozenset(ENDS.tolist())), decoding, shape, 0)
    canvas = torch.tensor([*prompt, *[mask] * (length - num_pinned)])
    is_needed = torch.arange(length) < num_pinned + num_needed
    predicted = Predicted(
        canvas.clone(),
        torch.zeros(length),
        is_needed & (canvas == mask),
        torch.arange(length),
        torch.tensor([0, length]),
    )
    thresholds = torch.tensor([decoding.threshold], dtype=torch.float64)
    while True:
        work = writer.plan(64)
        if work.block_start > 0:
            break
        assert work.targets.tolist() == predicted.is_open.nonzero()[:, 0].tolist()
        assert work.runs[-1].tokens.tolist() == canvas.tolist()
        count = len(work.targets)
        tokens = data.draw(st.lists(st.integers(0, 6), min_size=count, max_size=count))
        confidences = data.draw(st.lists(st.sampled_from(GRID), min_size=count, max_size=count))
        predicted.tokens[work.targets], predicted.confidences[work.targets] = (
            torch.tensor(tokens),
            torch.tensor(confidences),
        )
        residual = residual_of(predicted)

        update = denoise_update(predicted, thresholds, ENDS, canvas, residual)

        stays = writer.take(Predictions(np.array(tokens), *3 * [np.array(confidences)]))
        is_done = writer.plan(64).block_start > 0 or writer.settled().finish is not None
        assert bool(update.is_done[0]) == is_done
        if is_done:
            break
        assert (residual.embeds != -1).all(1).nonzero()[:, 0].tolist() == work.targets[stays].tolist()
        predicted = replace(predicted, is_open=update.is_open)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidences": torch.zeros(2)}, r"confidences must have the shape \[3\], got \[2\]"),
        ({"confidences": torch.zeros(3).half()}, "confidences must be float32 or float64, got float16; convert"),
        ({"is_open": torch.zeros(3)}, "is_open must be bool, got float32; convert"),
        ({"slots": torch.zeros(3, device="meta").long()}, "slots must be on cpu as the others, got meta"),
        ({"starts": torch.tensor([0, 1, 3])}, r"starts must have the shape \[2\], got \[3\]"),
    ],
)
def test_names_what_cannot_be_used(changes: dict[str, Tensor], message: str) -> None:
    predicted = replace(batch([[0.5] * 3]), **changes)

    with pytest.raises(KernelError, match=message):
        denoise_update(predicted, torch.zeros(1).double(), ENDS, torch.zeros(3).long())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeds": torch.zeros(2, 5)}, r"embeds must have the shape \[3, 5\], got \[2, 5\]"),
        ({"embeds": torch.zeros(3, 10)[:, ::2]}, "embeds must be contiguous, as it is written to"),
        ({"mask": torch.zeros(5).half()}, "mask and expected must have one dtype, got float16 and float32"),
        ({"entropies": torch.zeros(4)}, r"entropies must have the shape \[3\], got \[4\]"),
    ],
)
def test_names_what_of_a_residual_cannot_be_used(changes: dict[str, Tensor], message: str) -> None:
    predicted = batch([[0.5] * 3])

    with pytest.raises(KernelError, match=message):
        denoise_update(
            predicted, torch.zeros(1).double(), ENDS, canvas_of(predicted), residual_of(predicted, **changes)
        )
