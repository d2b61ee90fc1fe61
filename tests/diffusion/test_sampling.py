"""Which token is drawn, how probable it is said to be, and that nobody's noise depends on anybody else."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

from reasonrt.diffusion.decoding import Decoding
from reasonrt.diffusion.sampling import Drawing, entropy, predict
from reasonrt.diffusion.shape import ModelShape
from reasonrt.kernels.row_stats import row_stats

PROBS = torch.tensor([0.4, 0.05, 0.3, 0.15, 0.1])


class NoNoise(Drawing):
    def keys(self, *args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("nothing is drawn")


def test_temperature_0_draws_nothing_and_takes_the_lowest_of_equals() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 3.0]])

    predicted = predict(row_stats(logits), logits, [NoNoise()], [np.arange(2)])

    assert predicted.tokens.tolist() == [1, 0]


def test_every_row_of_every_request_is_drawn() -> None:
    """Of 2 requests with 300 rows each, both distributions are seen in each third, not in the first row only."""
    logits = PROBS.log().expand(600, -1)
    drawings = [Drawing(1.0, seed=1), Drawing(1.0, seed=2)]

    tokens = predict(row_stats(logits), logits, drawings, [np.arange(300), np.arange(300)]).tokens

    assert all(len(set(part.tolist())) == 5 for part in np.split(tokens, 6))
    assert (tokens[:300] != tokens[300:]).any()


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, PROBS),
        (0.5, 1.0, PROBS**2 / (PROBS**2).sum()),
        (1.0, 0.8, torch.tensor([0.4, 0.0, 0.3, 0.15, 0.0]) / 0.85),  # the third one crosses the mass
        (1.0, 0.3, torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])),
    ],
)
def test_draws_have_the_distribution_of_temperature_and_top_p(
    temperature: float, top_p: float, expected: Tensor
) -> None:
    count = 4000
    logits = PROBS.log().expand(count, -1)

    tokens = predict(row_stats(logits), logits, [Drawing(temperature, top_p, seed=5)], [np.arange(count)]).tokens

    counts = np.bincount(tokens, minlength=5)
    is_possible = expected.numpy() > 0
    assert counts[~is_possible].sum() == 0
    if is_possible.sum() > 1:
        shares = expected.double().numpy()[is_possible]
        assert chisquare(counts[is_possible], count * shares / shares.sum()).pvalue > 0.001


def test_top_p_keeps_the_lowest_ids_of_equals() -> None:
    logits = torch.zeros(500, 4)

    tokens = predict(row_stats(logits), logits, [Drawing(1.0, 0.5, seed=0)], [np.arange(500)]).tokens

    assert set(tokens.tolist()) == {0, 1}


def test_confidence_is_the_unscaled_probability_of_what_was_drawn() -> None:
    logits = PROBS.log().expand(100, -1)

    predicted = predict(row_stats(logits), logits, [Drawing(0.3, 0.9, seed=3)], [np.arange(100)])

    assert predicted.confidences == pytest.approx(PROBS[predicted.tokens].numpy(), abs=1e-6)
    assert predicted.logprobs == pytest.approx(PROBS.log()[predicted.tokens].numpy(), abs=1e-5)
    assert predicted.entropies == pytest.approx(-float((PROBS * PROBS.log()).sum()), abs=1e-6)


def test_large_logits_cost_log_probabilities_no_precision() -> None:
    logits = (PROBS.log() * 1024).round() / 1024 + 4096  # exact, a sum of which with anything smaller is not
    expected = (logits.double() - 4096).log_softmax(-1)

    rows = logits.expand(100, -1)
    predicted = predict(row_stats(rows), rows, [Drawing(1.0, seed=3)], [np.arange(100)])

    assert predicted.logprobs == pytest.approx(expected[predicted.tokens].numpy(), abs=1e-6)


def test_a_token_without_a_logit_is_never_drawn() -> None:
    logits = torch.zeros(500, 3)
    logits[:, 1] = -torch.inf

    predicted = predict(row_stats(logits), logits, [Drawing(5.0, 0.99, seed=0)], [np.arange(500)])

    assert 1 not in predicted.tokens
    assert predicted.entropies == pytest.approx(np.log(2))


def test_noise_depends_on_seed_and_position_alone() -> None:
    drawing = Drawing(1.0, seed=4)

    together = drawing.noise(np.array([3, 900, 17]), 50)

    assert torch.equal(together[1], drawing.noise(np.array([900]), 50)[0])
    assert torch.equal(together, Drawing(0.2, 0.5, seed=4).noise(np.array([3, 900, 17]), 50))
    assert len({tuple(row.tolist()) for row in together}) == 3
    assert not torch.equal(together, Drawing(1.0, seed=5).noise(np.array([3, 900, 17]), 50))


def test_without_a_seed_each_request_draws_otherwise() -> None:
    assert not torch.equal(Drawing(1.0).noise(np.array([0]), 9), Drawing(1.0).noise(np.array([0]), 9))


def test_noise_is_gumbel() -> None:
    noise = Drawing(1.0, seed=0).noise(np.arange(20), 1000)

    assert torch.isfinite(noise).all()
    assert kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 0.001
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 0.15  # positions
    assert abs(float(torch.corrcoef(noise.T[:2])[0, 1])) < 0.7  # tokens


def test_entropy_is_exact_where_probabilities_are_0() -> None:
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])

    assert entropy(probs).tolist() == pytest.approx([0.0, np.log(2)])


@pytest.mark.parametrize("concentration", [1e-4, 0.01, 1.0, 100.0])
def test_a_random_start_is_a_distribution(concentration: float) -> None:
    shape = ModelShape(8, 1, 8, 1, 1, 8, 48, 40, 64, 41, 8)
    decoding = Decoding(dirichlet_concentration=concentration)

    first, second = (Drawing(seed=1).dirichlet(position, shape, decoding) for position in (0, 1))

    assert first.shape == (1, 40)
    assert (first >= 0).all()
    assert float(first.sum()) == pytest.approx(1)
    assert not torch.equal(first, second)
    assert torch.equal(first, Drawing(seed=1).dirichlet(0, shape, decoding))
