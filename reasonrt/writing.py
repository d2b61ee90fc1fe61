"""How every policy writes: one engine's tokens after a transcript, cut into steps."""

import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from reasonrt.boundaries import Segment, StepSplitter, boundaries_of
from reasonrt.ports import Capability, Engine
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, Request, Sampling, Step, TokenDelta


def sampling_for(request: Request, transcript: Transcript, engine: Engine, **changes: Any) -> Sampling:
    """The request's sampling, cut to what its limit leaves and the engine's context still holds.

    Where the limit leaves nothing it is one token: the runtime ends the request when that would be committed.
    A policy that continues after a commit asks `transcript.room(engine)` first. Where something is committed, the seed
    is one of this engine and this place in the text, so that no random numbers are used twice.
    """
    left = max(1, request.limits.max_tokens - transcript.num_tokens)
    max_tokens = max(1, min(left, transcript.room(engine)))
    seed = seed_of(request.seed, engine.name, transcript.num_tokens) if transcript.num_tokens else request.seed
    wanted: dict[str, Any] = {"temperature": request.temperature, "top_p": request.top_p, "seed": seed}
    wanted |= {"top_k": request.top_k, "min_p": request.min_p, "penalties": request.penalties}
    wanted |= {"max_tokens": max_tokens} | changes
    if request.logprobs is not None:
        wanted |= {"logprobs": True, "top_logprobs": max(request.logprobs, changes.get("top_logprobs", 0))}
    elif request.trace and Capability.LOGPROBS in engine.capabilities:
        wanted.setdefault("logprobs", True)
    return Sampling(**wanted)


def seed_of(seed: int | None, *call: str | int) -> int | None:
    """The seed of one call of a request with this seed: 31 bits, which every server takes. None stays None.

    Random numbers that are used twice in one text make its parts depend on each other: then it is no draw of the model.
    """
    if seed is None:
        return None
    return int.from_bytes(hashlib.blake2b("/".join(map(str, (seed, *call))).encode(), digest_size=4).digest()) >> 1


async def write_steps(
    engine: Engine,
    transcript: Transcript,
    sampling: Sampling,
    watch: Callable[[TokenDelta], None] | None = None,
) -> AsyncGenerator[Step | FinishReason, None]:
    """Let `engine` write after `transcript` and cut what it writes into steps. Nothing is committed.

    Yields each step as soon as its boundary is there and, last, the reason for the end. What stands after the last
    boundary is a step too, marked as incomplete when the token limit cut it off.

    Args:
        watch: called with each delta before the steps that end in it; where nobody watches, the engine may put tokens
            together up to a step's end.
    """
    written = StepWriter(engine, transcript)
    sampling = replace(sampling, by_step=watch is None)
    async with aclosing(engine.generate(transcript.token_ids(engine), sampling)) as stream:
        async for delta in stream:
            if watch:
                watch(delta)
            for step in written.take(delta):
                yield step
            if delta.finish_reason:
                if rest := written.rest(is_complete=delta.finish_reason is FinishReason.STOP):
                    yield rest
                yield delta.finish_reason


async def write_step(
    engine: Engine, transcript: Transcript, sampling: Sampling, begun: TokenDelta | None = None
) -> tuple[Step | None, FinishReason | None]:
    """The next step and, where the text ends with it, the reason for the end. Nothing is committed.

    The engine itself stops at the boundary: nothing is generated beyond it. The step is None where the engine only
    ends the text.

    Args:
        begun: what the engine has written of the step already, maybe all of it.
    """
    boundaries = boundaries_of(engine.tokenizer)
    written = StepWriter(engine, transcript)
    if begun and (steps := written.take(begun)):
        return steps[0], None
    ids, left, seed = transcript.token_ids(engine).copy(), sampling.max_tokens, sampling.seed
    if begun:
        ids += begun.token_ids
        left = max(1, left - len(begun.token_ids))
    while True:
        length = len(ids)
        # a stop token may turn out to be no boundary, inside a formula for instance: the engine then continues after it
        part = replace(sampling, max_tokens=left, stop_token_ids=boundaries.closing, seed=seed, by_step=True)
        async with aclosing(engine.generate(ids, part)) as stream:
            async for delta in stream:
                ids += delta.token_ids
                left -= len(delta.token_ids)
                if steps := written.take(delta):
                    return steps[0], None
                if delta.finish_reason:
                    break
        is_at_boundary = bool(delta.token_ids) and delta.token_ids[-1] in boundaries.closing
        ended = delta.finish_reason is FinishReason.STOP and not is_at_boundary
        if ended or left <= 0 or len(ids) == length:  # what brings nothing, a full context maybe, would bring it again
            reason = FinishReason.STOP if ended else FinishReason.LENGTH
            return written.rest(is_complete=ended), reason
        seed = seed_of(sampling.seed, len(ids))


def steps_of(engine: Engine, transcript: Transcript, whole: TokenDelta) -> tuple[list[Step], FinishReason]:
    """What `write_steps` would have yielded for `whole`, a generation of `engine` after `transcript`."""
    if whole.finish_reason is None:
        raise AssertionError("a whole generation has ended")  # the port's word
    written = StepWriter(engine, transcript)
    steps = written.take(whole)
    if rest := written.rest(is_complete=whole.finish_reason is FinishReason.STOP):
        steps.append(rest)
    return steps, whole.finish_reason


class StepWriter:
    """What one engine writes after `transcript`, as deltas become steps.

    Where a step has been begun there, the first one is its rest: what closes it depends on all of it.
    """

    def __init__(self, engine: Engine, transcript: Transcript) -> None:
        self._author = engine.name
        self._splitter = StepSplitter(boundaries_of(engine.tokenizer))
        self._splitter.feed(transcript.begun(engine))
        self._begun = self._splitter.peek()  # not this writer's
        self._logprobs: list[float] = []
        self._top_logprobs: list[tuple[float, ...]] = []
        self._top_token_ids: list[tuple[int, ...]] = []

    def take(self, delta: TokenDelta) -> list[Step]:
        """The steps that end within `delta`."""
        self._logprobs += delta.logprobs
        self._top_logprobs += delta.top_logprobs
        self._top_token_ids += delta.top_token_ids
        return [self._step(segment, True) for segment in self._splitter.feed(delta.token_ids)]

    def unfinished(self) -> Step:
        """What stands after the last boundary so far; it may still be nothing."""
        return self._of(self._rest_of(self._splitter.peek()), is_complete=False)

    def rest(self, *, is_complete: bool) -> Step | None:
        """What stands after the last boundary, at the end; None for nothing, or the end token alone."""
        segment = self._splitter.flush()
        if segment is None or not self._rest_of(segment).text.strip():
            return None
        return self._step(segment, is_complete)

    def _rest_of(self, segment: Segment) -> Segment:
        begun = self._begun
        if not begun.token_ids:
            return segment
        return Segment(segment.token_ids[len(begun.token_ids) :], segment.text[len(begun.text) :])

    def _step(self, segment: Segment, is_complete: bool) -> Step:
        segment, self._begun = self._rest_of(segment), Segment((), "")
        step = self._of(segment, is_complete=is_complete)
        for known in (self._logprobs, self._top_logprobs, self._top_token_ids):
            del known[: len(segment.token_ids)]
        return step

    def _of(self, segment: Segment, *, is_complete: bool) -> Step:
        length = len(segment.token_ids)
        return Step(
            segment.text,
            segment.token_ids,
            self._author,
            is_complete,
            tuple(self._logprobs[:length]),
            tuple(self._top_logprobs[:length]),
            top_token_ids=tuple(self._top_token_ids[:length]),
        )
