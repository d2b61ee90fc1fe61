"""The kernels of `speculative_verify`: one draws a token in each row, the other finds how much of each draft agrees.

All is float64, as in torch: the noise decides which token is drawn, and the same keys are to draw the same tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from reasonrt.kernels.noise import MIXING, STEP
from reasonrt.kernels.triton.builds import Build, Target

_STEP = tl.constexpr(STEP)
_SHIFT_1, _SHIFT_2 = tl.constexpr(MIXING[0][0]), tl.constexpr(MIXING[1][0])
_FACTOR_1, _FACTOR_2 = tl.constexpr(MIXING[0][1]), tl.constexpr(MIXING[1][1])
_MASK_1, _MASK_2 = tl.constexpr((1 << 64 - MIXING[0][0]) - 1), tl.constexpr((1 << 64 - MIXING[1][0]) - 1)
_MASK_52 = tl.constexpr((1 << 52) - 1)
_SIGN = tl.constexpr(0x7FFFFFFF)
_BELOW_ALL = tl.constexpr(-(2**31))
_BLOCK_V = 1024
_BLOCK_N = 128
_NUM_WARPS = 8


@triton.jit
def _load(logits_ptr, columns, num_tokens):
    """Logits in float32, -inf where there is no column; -0.0 is as high as 0.0."""
    return tl.load(logits_ptr + columns, mask=columns < num_tokens, other=float("-inf")).to(tl.float32) + 0.0


@triton.jit
def _order(x):
    """An int32 that is the higher the higher the float is."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & _SIGN)


@triton.jit
def _gumbel(key, columns):
    bits = columns.to(tl.int64) * _STEP + key
    bits = (bits ^ ((bits >> _SHIFT_1) & _MASK_1)) * _FACTOR_1
    bits = (bits ^ ((bits >> _SHIFT_2) & _MASK_2)) * _FACTOR_2
    uniform = (((bits >> 12) & _MASK_52).to(tl.float64) + 0.5) * (2.0**-52)
    return -tl.log(-tl.log(uniform))


@triton.jit
def _mass_above(logits_ptr, num_tokens, best, temperature, least, BLOCK_V: tl.constexpr):
    """Of the tokens that are above `least` in order, in units of the most probable one's."""
    mass = tl.zeros([], tl.float64)
    for start in range(0, num_tokens, BLOCK_V):
        x = _load(logits_ptr, start + tl.arange(0, BLOCK_V), num_tokens)
        weights = tl.exp((x.to(tl.float64) - best) / temperature)
        mass += tl.sum(tl.where(_order(x) > least, weights, 0.0), axis=0)
    return mass


@triton.jit
def _draw_kernel(
    logits_ptr,  # [num_rows, num_tokens], rows row_stride apart
    keys_ptr,  # [num_rows]
    temperatures_ptr,  # [num_rows]
    top_ps_ptr,  # [num_rows]
    drawn_ptr,  # [num_rows]
    num_tokens,
    row_stride,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    key = tl.load(keys_ptr + row)
    temperature = tl.load(temperatures_ptr + row)
    top_p = tl.load(top_ps_ptr + row)
    highest = tl.full([], float("-inf"), tl.float32)
    drawn = tl.zeros([], tl.int32)
    for start in range(0, num_tokens, BLOCK_V):
        x = _load(logits_ptr, start + tl.arange(0, BLOCK_V), num_tokens)
        value, at = tl.max(x, axis=0, return_indices=True)  # the lowest among equals
        drawn = tl.where(value > highest, start + at, drawn)
        highest = tl.maximum(highest, value)
    if temperature > 0:
        best = highest.to(tl.float64)
        # drawn from are the tokens above `least` in order, and those at it as long as `room` is left before them
        least = tl.full([], _BELOW_ALL, tl.int64)
        room = tl.zeros([], tl.float64)
        tie_mass = tl.zeros([], tl.float64)
        if top_p < 1:
            mass = top_p * _mass_above(logits_ptr, num_tokens, best, temperature, least, BLOCK_V)
            below = least
            least = _order(highest).to(tl.int64)
            while least - below > 1:
                middle = below + (least - below) // 2
                if _mass_above(logits_ptr, num_tokens, best, temperature, middle, BLOCK_V) < mass:
                    least = middle
                else:
                    below = middle
            room = mass - _mass_above(logits_ptr, num_tokens, best, temperature, least, BLOCK_V)
            bits = least.to(tl.int32)
            tie = (bits ^ ((bits >> 31) & _SIGN)).to(tl.float32, bitcast=True)
            tie_mass = tl.exp((tie.to(tl.float64) - best) / temperature)
        num_ties = tl.zeros([], tl.int32)
        noisy_best = tl.full([], float("-inf"), tl.float64)
        for start in range(0, num_tokens, BLOCK_V):
            columns = start + tl.arange(0, BLOCK_V)
            x = _load(logits_ptr, columns, num_tokens)
            is_tie = ((_order(x) == least) & (columns < num_tokens)).to(tl.int32)
            rank = num_ties + tl.cumsum(is_tie, axis=0) - is_tie
            is_kept = (_order(x) > least) | ((is_tie != 0) & (rank * tie_mass < room))
            num_ties += tl.sum(is_tie, axis=0)
            noisy = tl.where(is_kept, x.to(tl.float64) / temperature + _gumbel(key, columns), float("-inf"))
            value, at = tl.max(noisy, axis=0, return_indices=True)
            drawn = tl.where(value > noisy_best, start + at, drawn)
            noisy_best = tl.maximum(noisy_best, value)
    tl.store(drawn_ptr + row, drawn.to(tl.int64))


@triton.jit
def _accept_kernel(
    own_ptr,  # [num_rows]
    drafted_ptr,  # [num_rows]
    lengths_ptr,  # [num_requests]
    ends_ptr,  # [num_requests]
    accepted_ptr,  # [num_requests]
    tokens_ptr,  # [num_requests]
    BLOCK_N: tl.constexpr,
):
    request = tl.program_id(0)
    end = tl.load(ends_ptr + request)
    begin = end - tl.load(lengths_ptr + request)
    differs = end
    for start in range(begin, end, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        own = tl.load(own_ptr + rows, mask=rows < end, other=0)
        drafted = tl.load(drafted_ptr + rows, mask=rows < end, other=0)
        differs = tl.minimum(differs, tl.min(tl.where(own != drafted, rows, end), axis=0))
    tl.store(accepted_ptr + request, differs - begin)
    tl.store(tokens_ptr + request, tl.load(own_ptr + differs, mask=differs < end, other=-1))


def launch_draw(logits: Tensor, keys: Tensor, temperature: Tensor, top_p: Tensor) -> Tensor:
    """As `draw`, of logits that are not float64."""
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    drawn = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    _draw_kernel[(len(logits),)](
        logits,
        keys.contiguous(),
        temperature.double().contiguous(),
        top_p.double().contiguous(),
        drawn,
        logits.shape[1],
        logits.stride(0),
        BLOCK_V=_BLOCK_V,
        num_warps=_NUM_WARPS,
        enable_fp_fusion=True,
    )
    return drawn


def launch_accept(own: Tensor, drafted: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(accepted, tokens) of `Verification`, where the target itself has drawn `own` in the place of `drafted`."""
    accepted, tokens = torch.empty_like(lengths), torch.empty_like(lengths)
    _accept_kernel[(len(lengths),)](
        own,
        drafted.contiguous(),
        lengths.contiguous(),
        lengths.cumsum(0),
        accepted,
        tokens,
        BLOCK_N=_BLOCK_N,
        num_warps=1,
        enable_fp_fusion=True,
    )
    return accepted, tokens


def builds(target: Target) -> list[Build]:
    num_rows, num_tokens, num_requests = 256, 151_936, 16
    return [
        Build(
            kernel=_draw_kernel,
            pointers={
                "logits_ptr": "bf16",
                "keys_ptr": "i64",
                "temperatures_ptr": "fp64",
                "top_ps_ptr": "fp64",
                "drawn_ptr": "i64",
            },
            sizes={"num_tokens": num_tokens, "row_stride": num_tokens},
            constants={"BLOCK_V": _BLOCK_V},
            num_warps=_NUM_WARPS,
            shape=f"R={num_rows} V={num_tokens} bf16",
            bytes_moved=num_rows * num_tokens * 2,
        ),
        Build(
            kernel=_accept_kernel,
            pointers={
                "own_ptr": "i64",
                "drafted_ptr": "i64",
                "lengths_ptr": "i64",
                "ends_ptr": "i64",
                "accepted_ptr": "i64",
                "tokens_ptr": "i64",
            },
            sizes={},
            constants={"BLOCK_N": _BLOCK_N},
            num_warps=1,
            shape=f"R={num_rows} requests={num_requests}",
            bytes_moved=16 * num_rows + 32 * num_requests,
        ),
    ]
