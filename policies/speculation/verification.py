"""A draft's step before the target: what of it the target would have written itself."""

from dataclasses import dataclass

from reasonrt.ports import Capability, Engine
from reasonrt.transcript import Transcript
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
            the beginning of that one on. It is to write on.
    """

    is_agreed: bool
    kept: Step | None = None
    correction: Step | None = None
    is_end: bool = False
    begun: tuple[int, ...] = ()


def cannot_verify(draft: Engine, target: Engine, temperature: float) -> str:
    """Why `target` cannot verify what `draft` writes; empty where it can: it must read the same tokens."""
    if draft.tokenizer.fingerprint != target.tokenizer.fingerprint:
        return "the draft and the target have different vocabularies"
    capability = Capability.VERIFY_SAMPLED if temperature else Capability.VERIFY
    at = f" at temperature {temperature:g}" if temperature else ""
    return "" if capability in target.capabilities else f"engine {target.name!r} cannot verify{at}"


async def verify_step(target: Engine, transcript: Transcript, step: Step, sampling: Sampling) -> Verdict:
    """One pass of the target over `step`, which is not committed; see `cannot_verify`.

    What it says has the target's own distribution, whyever the step is verified, as long as all of it is used
    (see `kernels.speculative_verify`).

    Args:
        sampling: with a seed that nothing else in this request is drawn with; it may be the same in each verification,
            whose random numbers are those of places in the text.
    """
    written = (await target.verify(list(transcript.token_ids(target)), step.token_ids, sampling)).token_ids
    if written == step.token_ids:
        return Verdict(is_agreed=True)
    kept, instead = step.token_ids[: len(written) - 1], written[-1]
    is_end = instead in target.tokenizer.eos_token_ids
    kept_text, text = target.tokenizer.decode(kept), target.tokenizer.decode(written)
    kept_step = Step(kept_text, kept, step.author, is_end, step.logprobs[: len(kept)]) if kept else None
    if is_end:
        return Verdict(is_agreed=False, kept=kept_step, is_end=True)
    if not (step.text.startswith(kept_text) and text.startswith(kept_text)) or text.endswith("\ufffd"):
        # not drawn again: characters of several tokens would become rarer
        length = len(kept)
        while not (step.text.startswith(kept_text) and text.startswith(kept_text)):
            length -= 1
            kept_text = target.tokenizer.decode(kept[:length])
        kept_step = Step(kept_text, kept[:length], step.author, False, step.logprobs[:length]) if length else None
        return Verdict(is_agreed=False, kept=kept_step, begun=written[length:])
    closes = bool(StepWriter(target, transcript).take(TokenDelta(tuple(written))))
    correction = Step(text[len(kept_text) :], (instead,), target.name, closes)
    return Verdict(is_agreed=False, kept=kept_step, correction=correction)
