"""Random numbers that depend on a seed, a position and a token alone: the same wherever and whenever they are made.

Source: Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators", for SplitMix64.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

# as signed numbers
STEP = 0x9E3779B97F4A7C15 - 2**64
MIXING = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


def noise_keys(seed: int, positions: Sequence[int]) -> list[int]:
    """Keys for rows at these positions of a text, 64 bits each, signed. Equal for equal seeds and positions."""
    digests = (hashlib.blake2b(f"{seed}/noise/{position}".encode(), digest_size=8).digest() for position in positions)
    return [int.from_bytes(digest, signed=True) for digest in digests]


def gumbel_noise(keys: Tensor, num_tokens: int) -> Tensor:
    """Gumbel noise [rows, num_tokens] in fp64, made where `keys` [rows] are: a hash of key and token (SplitMix64)."""
    return uniform(keys, torch.arange(num_tokens, device=keys.device)).log_().neg_().log_().neg_()


def uniform(keys: Tensor, tokens: Tensor) -> Tensor:
    """Uniform numbers [rows, tokens] in (0, 1), of 52 bits."""
    bits = tokens * STEP + keys[:, None]
    for shift, factor in MIXING:
        bits ^= (bits >> shift).bitwise_and_((1 << 64 - shift) - 1)  # as if without a sign
        bits *= factor
    return bits.bitwise_right_shift_(12).bitwise_and_((1 << 52) - 1).double().add_(0.5).mul_(2.0**-52)
