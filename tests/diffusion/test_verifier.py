"""What a model writes token by token in the place of a draft, against one causal pass without a cache."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.diffusion.batcher import Batcher
from reasonrt.diffusion.decoding import read_decoding
from reasonrt.diffusion.job import Job
from reasonrt.diffusion.model import DiffusionModel, attend_among_rows
from reasonrt.diffusion.sampling import Drawing
from reasonrt.diffusion.shape import ModelShape
from reasonrt.diffusion.verifier import Verifier
from reasonrt.diffusion.writers import Settled, Task
from reasonrt.types import FinishReason

TOKENS = 11  # few, so that a random draft is often right
ids = st.integers(1, TOKENS - 1)


def random_model() -> DiffusionModel:
    shape = ModelShape(
        hidden=16,
        layers=2,
        mlp=32,
        heads=2,
        kv_heads=1,
        head_dim=8,
        vocab_size=TOKENS,
        tokens=TOKENS,
        max_positions=700,
        mask_token_id=0,
        block_length=4,
        context="causal",
    )
    torch.manual_seed(0)
    model = DiffusionModel(shape)
    with torch.no_grad():
        model.embedding.weight.normal_()
    return model


MODEL = random_model()
BATCHER = Batcher(MODEL, 2, 600)


def verify(prompt: list[int], draft: list[int]) -> tuple[Settled, Job]:
    heard: list[Settled] = []
    job = Job(
        Task((*prompt, *draft), 1, frozenset()),
        read_decoding({}, MODEL.shape),
        Drawing(),
        lambda _, settled: heard.append(settled),
        make=Verifier.of(len(draft)),
    )
    BATCHER.add(job)
    while not BATCHER.is_idle:
        BATCHER.step()
    (settled,) = heard
    return settled, job


@torch.inference_mode()  # type: ignore[untyped-decorator]
def expected(prompt: list[int], draft: list[int]) -> list[int]:
    tokens = torch.tensor([*prompt, *draft])
    positions = torch.arange(len(tokens))
    hidden = MODEL(MODEL.embedding(tokens), positions, attend_among_rows(positions + 1))
    own: list[int] = MODEL.logits(hidden)[len(prompt) - 1 : -1].argmax(-1).tolist()
    differs = [index for index, (mine, its) in enumerate(zip(own, draft, strict=True)) if mine != its]
    return own[: differs[0] + 1] if differs else own


@settings(max_examples=60)
@given(prompt=st.lists(ids, min_size=1, max_size=40), draft=st.lists(ids, min_size=1, max_size=9), agreed=st.booleans())
def test_it_is_what_a_causal_pass_predicts(prompt: list[int], draft: list[int], agreed: bool) -> None:
    while agreed and (own := expected(prompt, draft)) != draft:
        draft = [*own, *draft[len(own) :]]

    settled, job = verify(prompt, draft)

    assert settled.tokens == expected(prompt, draft)
    assert (settled.tokens == draft) or not agreed
    assert settled.finish is FinishReason.STOP
    assert len(settled.logprobs) == len(settled.tokens)
    assert job.passes == 1
    assert job.cached <= len(prompt) - 1


def test_prompt_and_draft_may_take_several_passes() -> None:
    prompt, draft = [1 + index % 7 for index in range(300)], [1 + index % 5 for index in range(290)]

    settled, _ = verify(prompt, draft)

    assert settled.tokens == expected(prompt, draft)


def test_what_was_verified_need_not_be_computed_again() -> None:
    prompt, draft = [3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5]
    verify(prompt, draft)

    _, job = verify([*prompt, *draft[:2]], draft)

    assert job.cached == len(prompt) + 1
