"""From logits to predictions: which token is drawn at a position, and how probable it is.

The noise at a position depends on the request's seed and the position alone. It is the same in every pass, whoever
shares it, so that a generation can be repeated, and so that a token is not drawn again and again until a likely one
comes up.
"""

import hashlib
import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasonrt.diffusion.decoding import Decoding
from reasonrt.diffusion.model import DiffusionModel
from reasonrt.diffusion.shape import ModelShape
from reasonrt.diffusion.strategies import Predictions
from reasonrt.kernels.dispatch import accumulator
from reasonrt.kernels.noise import gumbel_noise, noise_keys
from reasonrt.kernels.online import RowStats
from reasonrt.kernels.speculative_verify import draw
from reasonrt.kernels.vocab_stats import vocab_stats


class Drawing:
    """How one request draws.

    Args:
        temperature: 0 draws nothing: the most probable token, the lowest id among equals.
        top_p: mass of the tokens drawn from, in (0, 1], at that temperature.
        seed: None: a random one.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None) -> None:
        self.temperature, self.top_p = temperature, top_p
        self._seed = int.from_bytes(os.urandom(8)) if seed is None else seed

    def keys(self, positions: NDArray[np.int64], device: torch.device | None = None) -> Tensor:
        """The random numbers of rows that predict `positions`, as `speculative_verify.draw` takes them."""
        return torch.tensor(noise_keys(self._seed, positions.tolist()), dtype=torch.int64, device=device)

    def noise(self, positions: NDArray[np.int64], tokens: int, device: torch.device | None = None) -> Tensor:
        """Gumbel noise [positions, tokens]."""
        return gumbel_noise(self.keys(positions, device), tokens)

    def dirichlet(self, position: int, shape: ModelShape, decoding: Decoding) -> Tensor:
        """A random distribution [1, tokens], for `residual_start: dirichlet`."""
        alpha = torch.full((1, shape.tokens), decoding.dirichlet_concentration, dtype=torch.float64)
        gamma = torch._standard_gamma(alpha, generator=torch.Generator().manual_seed(self._start_key(position)))
        return gamma / gamma.sum()

    def _start_key(self, position: int) -> int:
        """64 bits, signed."""
        digest = hashlib.blake2b(f"{self._seed}/start/{position}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, signed=True)


def read_head(model: DiffusionModel, hidden: Tensor, top_k: int, wants_logits: bool) -> tuple[RowStats, Tensor | None]:
    """What is predicted at rows [rows, hidden]: statistics of it, and logits [rows, tokens] where they are wanted.

    Args:
        top_k: so many of the most probable tokens are among the statistics.
    """
    shape, dtype = model.shape, accumulator(hidden.dtype)
    logits = hidden.new_empty(len(hidden), shape.tokens, dtype=dtype) if wants_logits else None
    mask = shape.mask_token_id if shape.mask_token_id < shape.tokens else None  # it is never drawn
    return vocab_stats(hidden, model.head.weight[: shape.tokens], top_k=top_k, excluded=mask, logits=logits), logits


def predict(
    stats: RowStats, logits: Tensor | None, drawings: list[Drawing], targets: list[NDArray[np.int64]]
) -> Predictions:
    """Predictions at all rows.

    Args:
        stats: of `read_head`.
        logits: [rows, tokens]; None where nobody draws.
        drawings: of the requests.
        targets: the positions that the rows of each request predict; rows come request after request.
    """
    drawn, logprobs = stats.argmax.clone(), stats.max_prob.log()
    begin = 0
    for drawing, positions in zip(drawings, targets, strict=True):
        rows = slice(begin, begin + len(positions))
        if drawing.temperature > 0 and len(positions):
            assert logits is not None  # noqa: S101 - for the type checker
            drawn[rows] = _draw(logits[rows], drawing, positions)
            both = logits[rows].gather(-1, torch.stack((drawn[rows], stats.argmax[rows]), 1))
            logprobs[rows] += both[:, 0] - both[:, 1]  # never above 0, as the logit less `lse` may be by rounding
        begin += len(positions)
    return Predictions(*(column.cpu().numpy() for column in _columns(drawn, logprobs, stats)))


def surest(stats: RowStats) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for requests that draw nothing, where it was computed: the columns of `Predictions`."""
    return _columns(stats.argmax, stats.max_prob.log(), stats)


def _columns(tokens: Tensor, logprobs: Tensor, stats: RowStats) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chances = logprobs.double()
    return tokens, chances.exp(), stats.entropy.double(), chances


def entropy(probs: Tensor) -> Tensor:
    """[...] in nats, of distributions [..., tokens]."""
    # log, unlike xlogy and entr, is vectorized; where a probability is 0, so is the product
    return -(probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log()).sum(-1)


def _draw(logits: Tensor, drawing: Drawing, positions: NDArray[np.int64]) -> Tensor:
    rows, device = len(logits), logits.device
    temperature = torch.full((rows,), drawing.temperature, dtype=torch.float64, device=device)
    top_p = torch.full((rows,), drawing.top_p, dtype=torch.float64, device=device)
    return draw(logits, drawing.keys(positions, device), temperature, top_p)
