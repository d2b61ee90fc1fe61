"""What of a drafted step the target keeps when it draws its tokens, and what it writes in the place of the rest.

After a history h a draft has written x_1 ... x_n. At place i the target itself would draw from p_i = p(. | h, x_<i), at
its own temperature and top_p.

**Sample and match**, the rule that engines verify by. Draw y_i from p_i with random numbers of the target's own, keep
x_i while y_i = x_i, and put y_i in the place of the first x_i that differs. What is kept, with that y_i, is the
beginning of a text that the target draws by itself, up to a stopping time: as long as all agree, y_<i = x_<i, so each
y_i is drawn after what the target has drawn before. This holds given h, given x, and given any event that tells
nothing of the y_i but through h and x: however the draft was drawn, and whichever steps a router chose to have
verified after it had read them. So each token that a verification commits has, given all that stands before it, the
distribution of the target's own. A text of which everything was verified, or written by the target, is the target's
own; of a step that a router keeps unread, nothing is said but that what is verified after it continues it as the target
would. Two things are asked for: the y_i share no random numbers with the draft, the router, or anything committed
before; and what was drawn is committed, not drawn again where it does not suit. Place i is kept with the probability
sum_t p_i(t) q_i(t), where q_i is what the draft drew from; it need not be known.

**Rejection sampling** keeps x_i with the probability min(1, p_i(x_i) / q_i(x_i)), else it draws from max(p_i - q_i,
0), normalized (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318). It keeps more, sum_t min(p_i(t),
q_i(t)), and is exact as long as x_i is a draw from q_i, given that it is verified. A router that has read the text
makes it something else: let q = p and let it have all steps verified that begin with the token a, then p(a) / q(a) = 1
and every step that was verified begins with a. It is for loops that verify every step, whatever it says; none here
does, so it is not offered. The same goes for a draft that shares the noise of the target (a Gumbel coupling): y_i then
depends on x_i, and with it on what the router has chosen.

All of this is up to the rounding of the model itself, which computes in one pass here and token by token elsewhere.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from reasonrt.errors import KernelError
from reasonrt.kernels.dispatch import check_shape, runs_on_triton
from reasonrt.kernels.noise import gumbel_noise, uniform

_ROWS = 16  # with 150,000 tokens, some ten arrays of 20 MB at a time


@dataclass(frozen=True, slots=True)
class Verification:
    """What becomes of the drafts of several requests.

    Attributes:
        accepted: [requests] int64, how many tokens of its draft each keeps, from the beginning.
        tokens: [requests] int64, the target's own token after these; -1 where all are kept.
    """

    accepted: Tensor
    tokens: Tensor


def speculative_verify(
    logits: Tensor, drafted: Tensor, lengths: Tensor, keys: Tensor, temperature: Tensor, top_p: Tensor
) -> Verification:
    """Verify the drafts of several requests, whose rows come request after request, by sample and match.

    Args:
        logits: [rows, tokens], of the target at each drafted place, finite or minus infinity.
        drafted: [rows] int64, what the draft has written there.
        lengths: [requests] int64, rows of each request, >= 0; together all rows.
        keys: [rows] int64, of `noise_keys`: the random numbers of a row, whoever shares the batch.
        temperature: [requests], >= 0; 0 is greedy, the lowest id among equals.
        top_p: [requests], mass of the tokens drawn from, in (0, 1].

    Raises:
        KernelError: shapes that do not fit together, or tensors on several devices.
    """
    _check(logits, drafted, lengths, keys, temperature, top_p)
    requests = torch.arange(len(lengths), device=lengths.device)
    request_of_row = requests.repeat_interleave(lengths, output_size=len(drafted))
    own = draw(logits, keys, temperature[request_of_row], top_p[request_of_row])
    if runs_on_triton(own):
        from reasonrt.kernels.triton.speculative_verify import launch_accept

        with torch.cuda.device_of(own):  # Triton launches on the current one
            return Verification(*launch_accept(own, drafted, lengths))
    starts = lengths.cumsum(0) - lengths
    places = torch.arange(len(drafted), device=drafted.device) - starts[request_of_row]
    ends = torch.where(own == drafted, lengths[request_of_row], places)
    accepted = lengths.scatter_reduce(0, request_of_row, ends, "amin")
    # one more entry, for those that keep all
    at = torch.where(accepted < lengths, starts + accepted, len(drafted))
    return Verification(accepted, torch.cat([own, own.new_tensor([-1])])[at])


def speculative_verify_reference(
    logits: Tensor, drafted: Tensor, lengths: Tensor, keys: Tensor, temperature: Tensor, top_p: Tensor
) -> Verification:
    """As `speculative_verify`, request by request and place by place: the truth."""
    accepted, tokens, begin = [], [], 0
    for request, length in enumerate(lengths.tolist()):
        kept, token = 0, -1
        while kept < length and token < 0:
            row = begin + kept
            target = _probs_reference(logits[row], float(temperature[request]), float(top_p[request]))
            noise = -(-uniform(keys[row : row + 1], torch.arange(len(target)))[0].log()).log()
            y = int((target.log() + noise).argmax())
            kept, token = (kept + 1, -1) if y == int(drafted[row]) else (kept, y)
        accepted.append(kept)
        tokens.append(token)
        begin += length
    return Verification(torch.tensor(accepted, dtype=torch.int64), torch.tensor(tokens, dtype=torch.int64))


def draw(logits: Tensor, keys: Tensor, temperature: Tensor, top_p: Tensor) -> Tensor:
    """A token [rows] for each row of logits [rows, tokens], by the Gumbel-max trick.

    Args:
        keys: [rows] int64, as in `speculative_verify`.
        temperature, top_p: [rows], as in `scale`.
    """
    if runs_on_triton(logits):
        from reasonrt.kernels.triton.speculative_verify import launch_draw

        with torch.cuda.device_of(logits):  # Triton launches on the current one
            return launch_draw(logits, keys, temperature, top_p)
    parts = zip(*(rows.split(_ROWS) for rows in (logits, keys, temperature, top_p)), strict=True)
    return torch.cat([_draw(*part) for part in parts])


def scale(logits: Tensor, temperature: Tensor, top_p: Tensor) -> Tensor:
    """Logits [rows, tokens] in fp64 of what is drawn from, with minus infinity for what is never drawn.

    Args:
        logits: [rows, tokens].
        temperature: [rows], >= 0; 0 leaves the highest logit alone, the lowest id among equals.
        top_p: [rows], in (0, 1]: the most probable tokens stay, at that temperature, until they have so much mass.
    """
    is_greedy = temperature == 0
    scaled = logits.double() / torch.where(is_greedy, 1.0, temperature.double())[:, None]
    mass = torch.where(is_greedy, 0.0, top_p.double())
    if bool((mass >= 1).all()):
        return scaled
    probs, order = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
    is_beyond = (probs.cumsum(-1) - probs >= mass[:, None]) & (mass < 1)[:, None]
    is_beyond[:, :1] = False
    return scaled.masked_fill(torch.zeros_like(is_beyond).scatter(-1, order, is_beyond), -torch.inf)


def _draw(logits: Tensor, keys: Tensor, temperature: Tensor, top_p: Tensor) -> Tensor:
    return (scale(logits, temperature, top_p) + gumbel_noise(keys, logits.shape[1])).argmax(-1)


def _probs_reference(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """What is drawn from [tokens], in fp64."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
    probs = (logits.double() / temperature).softmax(-1)
    kept, mass = torch.zeros_like(probs), 0.0
    for token in sorted(range(len(probs)), key=lambda token: (-float(probs[token]), token)):
        if mass >= top_p and top_p < 1:
            break
        kept[token], mass = probs[token], mass + float(probs[token])
    return kept / kept.sum()


def _check(logits: Tensor, drafted: Tensor, lengths: Tensor, keys: Tensor, temperature: Tensor, top_p: Tensor) -> None:
    rows, requests = (len(drafted),), (len(lengths),)
    check_shape("logits", logits, (*rows, *logits.shape[1:2]), logits)
    for name, tensor, shape in (
        ("keys", keys, rows),
        ("drafted", drafted, rows),
        ("lengths", lengths, requests),
        ("temperature", temperature, requests),
        ("top_p", top_p, requests),
    ):
        check_shape(name, tensor, shape, logits)
    if int(lengths.sum()) != len(drafted):
        raise KernelError(f"lengths must add up to the {len(drafted)} drafted tokens, got {lengths.tolist()}")
