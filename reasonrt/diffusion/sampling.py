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
from reasonrt.diffusion.shape import ModelShape
from reasonrt.diffusion.strategies import Predictions


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

    def noise(self, position: int, tokens: int) -> Tensor:
        """Gumbel noise [tokens] of one position."""
        uniform = torch.rand(tokens, generator=self._generator("noise", position), dtype=torch.float64)
        return -torch.log(-torch.log(uniform.clamp_min(1e-300)))

    def dirichlet(self, position: int, shape: ModelShape, decoding: Decoding) -> Tensor:
        """A random distribution [1, tokens], for `residual_start: dirichlet`."""
        alpha = torch.full((1, shape.tokens), decoding.dirichlet_concentration, dtype=torch.float64)
        gamma = torch._standard_gamma(alpha, generator=self._generator("start", position))
        return gamma / gamma.sum()

    def _generator(self, purpose: str, position: int) -> torch.Generator:
        digest = hashlib.blake2b(f"{self._seed}/{purpose}/{position}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


def predict(
    logits: Tensor, drawings: list[Drawing], targets: list[NDArray[np.int64]], needs_entropy: bool
) -> Predictions:
    """Predictions at all rows of logits [rows, tokens].

    Args:
        logits: in fp32.
        drawings: of the requests.
        targets: the positions that the rows of each request predict; rows come request after request.
        needs_entropy: else entropies are zero.
    """
    drawn = logits.argmax(-1)
    begin = 0
    for drawing, positions in zip(drawings, targets, strict=True):
        rows = slice(begin, begin + len(positions))
        if drawing.temperature > 0 and len(positions):
            drawn[rows] = _draw(logits[rows], drawing, positions)
        begin += len(positions)
    logprobs = logits.gather(-1, drawn[:, None]).squeeze(-1) - logits.logsumexp(-1)
    entropies = torch.special.entr(logits.softmax(-1)).sum(-1) if needs_entropy else torch.zeros_like(logprobs)
    chances = logprobs.double().cpu().numpy()
    return Predictions(drawn.cpu().numpy(), np.exp(chances), entropies.double().cpu().numpy(), chances)


def _draw(logits: Tensor, drawing: Drawing, positions: NDArray[np.int64]) -> Tensor:
    scaled = logits.double() / drawing.temperature
    if drawing.top_p < 1:
        probs, order = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
        is_beyond = probs.cumsum(-1) - probs >= drawing.top_p
        scaled = scaled.masked_fill(torch.zeros_like(is_beyond).scatter(-1, order, is_beyond), -torch.inf)
    noise = torch.stack([drawing.noise(int(position), logits.shape[-1]) for position in positions])
    return (scaled + noise.to(scaled.device)).argmax(-1)
