"""How texts are cut into blocks and masked, and what the two stages learn from."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reasonrt.diffusion.model import DiffusionModel
from reasonrt.diffusion.shape import ModelShape
from reasonrt.zoo.corpus import IGNORED
from reasonrt.zoo.diffusion_recipe import (
    DIFFUSION_RECIPES,
    Reader,
    adapt_loss,
    cut_blocks,
    draw_masks,
    unroll_loss,
)

END = 1


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    shape = ModelShape(
        hidden=32,
        layers=2,
        mlp=48,
        heads=2,
        kv_heads=1,
        head_dim=16,
        vocab_size=40,
        tokens=40,
        max_positions=128,
        mask_token_id=0,
        block_length=32,
        context="causal",
        is_shifted=True,
    )
    return DiffusionModel(shape)


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts as `Batches` makes them: a question that is not learned, an answer that ends with `END`, padding."""
    texts = draw(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 40)), min_size=1, max_size=4))
    columns = max(question + answer for question, answer in texts)
    token_ids = torch.zeros(len(texts), columns, dtype=torch.int64)
    labels = torch.full((len(texts), columns), IGNORED)
    for row, (question, answer) in enumerate(texts):
        ids = torch.arange(question + answer) % 37 + 2
        ids[-1] = END
        token_ids[row, : len(ids)] = ids
        labels[row, question : len(ids)] = ids[question:]
    return token_ids, labels


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(batches(), st.sampled_from((4, 16, 32)), st.integers(0, 9))
def test_blocks_hold_every_token_that_is_learned_once_and_end_with_the_end(
    batch: tuple[torch.Tensor, torch.Tensor], block: int, seed: int
) -> None:
    token_ids, labels = batch
    view = cut_blocks(token_ids, labels, block, END, generator(seed))
    for row in range(len(token_ids)):
        length = int((token_ids[row] != 0).sum())
        learned = view.positions[row][view.learned[row]].tolist()
        wanted = torch.nonzero(labels[row] != IGNORED).flatten().tolist()
        assert learned[: len(wanted)] == wanted
        beyond = learned[len(wanted) :]
        assert beyond == list(range(length, length + len(beyond)))  # the rest of the last block, which is filled
        assert len(beyond) < block
        for column in range(view.tokens.shape[1]):
            if view.blocks[row, column] < 0:
                assert not view.learned[row, column]
                continue
            position = int(view.positions[row, column])
            assert int(view.tokens[row, column]) == (int(token_ids[row, position]) if position < length else END)
            assert int(view.starts[row, column]) <= position < int(view.starts[row, column]) + block


@given(batches(), st.integers(0, 9), st.floats(0, 1), st.floats(0, 1))
def test_the_first_token_of_a_block_is_hidden_with_all_others_only(
    batch: tuple[torch.Tensor, torch.Tensor], seed: int, full_share: float, left_to_right: float
) -> None:
    view = cut_blocks(*batch, 8, END, generator(seed))
    masked = draw_masks(view, generator(seed), full_share, left_to_right)
    assert not (masked & ~view.learned).any()
    for row, column in torch.nonzero(masked & view.is_first).tolist():
        inside = (view.blocks[row] == view.blocks[row, column]) & view.learned[row]
        assert masked[row][inside].all()


def test_all_are_hidden_where_every_block_is_full() -> None:
    token_ids, labels = torch.tensor([[5, 6, 7, 8, END]]), torch.tensor([[IGNORED, 6, 7, 8, END]])
    view = cut_blocks(token_ids, labels, 4, END, generator(0))
    assert (draw_masks(view, generator(0), 1.0, 0.0) == view.learned).all()


def test_later_tokens_are_hidden_more_often_from_left_to_right() -> None:
    token_ids = torch.full((400, 33), 5)
    labels = token_ids.clone()
    labels[:, 0] = IGNORED
    view = cut_blocks(token_ids, labels, 32, END, generator(0))
    masked = draw_masks(view, generator(1), 0.0, 1.0)
    place = view.positions - view.starts
    early, late = (masked[view.learned & chosen].float().mean() for chosen in ((place < 8) & (place > 0), place >= 24))
    assert late > early + 0.1


def test_a_block_sees_itself_and_what_precedes_it(model: Any) -> None:
    """What stands in another block of the same masked copy, or later in the clean text, changes nothing."""
    token_ids = torch.arange(2, 26).view(1, 24)
    labels = token_ids.clone()
    labels[:, :8] = IGNORED
    view = cut_blocks(token_ids, labels, 8, END, generator(0))
    first = view.blocks[0] == int(view.blocks[0][view.learned[0]].min())

    def hidden(clean: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = Reader(model, clean).denoise(model.embedding(shown), view)[0][first]
        return found

    changed_view = torch.where(first, view.tokens, 3)
    changed_text = token_ids.clone()
    changed_text[0, int(view.positions[0][first].max()) + 1 :] = 4
    before = token_ids.clone()
    before[0, 0] = 9
    plain = hidden(token_ids, view.tokens)
    torch.testing.assert_close(hidden(changed_text, changed_view), plain)
    assert not torch.allclose(hidden(before, view.tokens), plain)


@pytest.mark.parametrize("residual", [False, True])
def test_both_stages_learn(model: Any, residual: bool) -> None:
    token_ids = torch.arange(2, 34).view(2, 16)
    labels = token_ids.clone()
    labels[:, :4] = IGNORED
    view = cut_blocks(token_ids, labels, 8, 33, generator(0))
    for loss, next_loss in (
        adapt_loss(model, token_ids, labels, view, generator(1)),
        unroll_loss(model, token_ids, labels, view, generator(1), residual),
    ):
        model.zero_grad()
        (loss + next_loss).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_residual_changes_the_second_pass_and_nothing_else(model: Any) -> None:
    token_ids = torch.arange(2, 34).view(2, 16)
    labels = token_ids.clone()
    labels[:, :4] = IGNORED
    view = cut_blocks(token_ids, labels, 8, 33, generator(0))
    losses = {
        (seed, residual): [
            float(part.detach()) for part in unroll_loss(model, token_ids, labels, view, generator(seed), residual)
        ]
        for seed in range(3)
        for residual in (False, True)
    }
    for seed in range(3):
        assert losses[seed, False][1] == losses[seed, True][1]  # the clean reading
        assert losses[seed, False][0] != losses[seed, True][0]


def test_the_arms_of_the_comparison_differ_in_residual_context_only() -> None:
    for name in ("nano-diffusion-rcd", "draft-diffusion-rcd", "draft-diffusion-self"):
        control, residual = (vars_of(DIFFUSION_RECIPES[arm]) for arm in (name.rpartition("-")[0], name))
        assert {key for key in control if control[key] != residual[key]} <= {"residual", "residual_weight"}
        assert (control["residual"], residual["residual"]) == (False, True)


def vars_of(recipe: Any) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in recipe.__dataclass_fields__}


def test_a_view_repeats_nothing_of_the_question(model: Any) -> None:
    view = cut_blocks(torch.tensor([[5, 6, 7, END]]), torch.tensor([[IGNORED, IGNORED, 7, END]]), 4, END, generator(3))
    assert not view.learned[0][view.positions[0] < 2].any()
