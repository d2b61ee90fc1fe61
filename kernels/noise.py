"""The random numbers of tokens: a hash of a row's key and the token (SplitMix64)."""

import torch
from torch import Tensor

# of Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014; as signed numbers
STEP = 0x9E3779B97F4A7C15 - 2**64
MIXING = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


def uniform(keys: Tensor, num_tokens: int) -> Tensor:
    """Uniform numbers [rows, num_tokens] in (0, 1), of 52 bits, made where `keys` [rows] int64 are."""
    bits = torch.arange(num_tokens, device=keys.device) * STEP + keys[:, None]
    for shift, factor in MIXING:
        bits ^= (bits >> shift).bitwise_and_((1 << 64 - shift) - 1)  # as if without a sign
        bits *= factor
    return bits.bitwise_right_shift_(12).bitwise_and_((1 << 52) - 1).double().add_(0.5).mul_(2.0**-52)
