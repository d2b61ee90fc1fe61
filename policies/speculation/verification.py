"""A draft's step before the target: what of it the target would have written itself."""

from dataclasses import dataclass

from reasonrt.ports import Capability, Engine, Verified
from reasonrt.transcript import Transcript, vocabulary_of
from reasonrt.types import Sampling, Step, TokenDelta
from reasonrt.writing import StepWriter


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the target says of a step.

    Attributes:
        is_agreed: it would have written the whole step.
        kept: what it would have written of it, where that is not all; None for nothing.
        correction: its own token after that; complete where it closes the step.
        is_end: its own token there ends the text.
        begun: in the place of a correction where its own token ends within a character: its tokens after `kept`, from
            the beginning of that one on, None where there is no such. It is to write on.
    """

    is_agreed: bool
    kept: Step | None = None
    correction: Step | None = None
    is_end: bool = False
    begun: TokenDelta | None = None


def why_not_verify(draft: Engine, target: Engine, temperature: float) -> str:
    """Why `target` cannot verify what `draft` writes; "" where it can: it must read the same tokens."""
    if Capability.VERIFY not in target.capabilities:
        return f"engine {target.name!r} verifies nothing"
    if vocabulary_of(draft.tokenizer) != vocabulary_of(target.tokenizer):
        return f"engines {draft.name!r} and {target.name!r} have different vocabularies"
    if temperature and Capability.VERIFY_SAMPLED not in target.capabilities:
        return f"engine {target.name!r} verifies at temperature 0 alone"
    return ""


async def verify_step(target: Engine, transcript: Transcript, step: Step, sampling: Sampling) -> Verdict:
    """One pass of the target over `step`, which is not committed; see `why_not_verify`.

    What it says has the target's own distribution, whyever the step is verified, as long as all of it is used
    (see `kernels.speculative_verify`).

    Args:
        sampling: with a seed that nothing else in this request is drawn with; it may be the same in each verification,
            whose random numbers are those of places in the text.
    """
    verified = await target.verify(list(transcript.token_ids(target)), step.token_ids, sampling)
    written = verified.token_ids
    if written == step.token_ids:
        return Verdict(is_agreed=True)
    kept, instead = step.token_ids[: len(written) - 1], written[-1]
    is_end = instead in target.tokenizer.eos_token_ids
    kept_text, text = target.tokenizer.decode(kept), target.tokenizer.decode(written)
    kept_step = step.beginning(len(kept), kept_text, is_complete=is_end) if kept else None
    if is_end:
        return Verdict(is_agreed=False, kept=kept_step, is_end=True)
    if not (step.text.startswith(kept_text) and text.startswith(kept_text)) or text.endswith("\ufffd"):
        # not drawn again: characters of several tokens would become rarer
        length = len(kept)
        while not (step.text.startswith(kept_text) and text.startswith(kept_text)):
            length -= 1
            kept_text = target.tokenizer.decode(kept[:length])
        kept_step = step.beginning(length, kept_text, is_complete=False) if length else None
        return Verdict(is_agreed=False, kept=kept_step, begun=_own(verified, length))
    closes = bool(StepWriter(target, transcript).take(TokenDelta(tuple(written))))
    own = _own(verified, len(kept))
    correction = Step(
        text[len(kept_text) :],
        own.token_ids,
        target.name,
        closes,
        own.logprobs,
        own.top_logprobs,
        top_token_ids=own.top_token_ids,
    )
    return Verdict(is_agreed=False, kept=kept_step, correction=correction)


def _own(verified: Verified, begin: int) -> TokenDelta:
    """What the target has written from the place `begin` of the draft on."""
    end = len(verified.token_ids)
    logprobs = () if verified.own_logprob is None else (*verified.logprobs[begin : end - 1], verified.own_logprob)
    tops = verified.top_logprobs[begin:end], verified.top_token_ids[begin:end]
    return TokenDelta(verified.token_ids[begin:], logprobs, None, 0, *tops)
