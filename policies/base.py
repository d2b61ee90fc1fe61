"""What a policy is, and the loop that every policy writes steps with."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

from reasonrt.boundaries import StepSplitter, boundaries_of
from reasonrt.engines.base import Engine
from reasonrt.errors import RequestError
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Sampling, Step


class Policy(Protocol):
    """Solves a request. Everything above the engines that differs between two ways of reasoning is in here.

    A policy is built per request from the request's options, so it may keep state. It yields committed steps
    and, last, a `Stop`. Closing its iterator closes every generation that it has open.
    """

    @property
    def engines(self) -> tuple[str, ...]:
        """The roles of the engines that it asks; `solve` gets them under these."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Raises `RequestError` for an unknown option or a value out of range."""

    def solve(self, request: Request, engines: Mapping[str, Engine]) -> AsyncGenerator[PolicyEvent, None]: ...


@dataclass
class PolicyOptions:
    """Base of policies that are dataclasses of their options."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        known = {field.name for field in fields(cls) if field.init}
        if unknown := sorted(set(options) - known):
            raise RequestError(
                f"unknown option {unknown[0]!r}; {cls.__name__} knows {', '.join(sorted(known)) or 'none'}"
            )
        try:
            return cls(**options)
        except TypeError as error:
            raise RequestError(f"{cls.__name__}: {error}") from None


def sampling_for(request: Request, transcript: Transcript, engine: Engine, **changes: Any) -> Sampling:
    """The request's sampling, cut to what its limit leaves and the engine's context still holds.

    Where the limit leaves nothing it is one token: the runtime ends the request when that would be committed.
    """
    left = max(1, request.limits.max_tokens - transcript.num_tokens)
    max_tokens = min(left, transcript.room(engine))
    wanted: dict[str, Any] = {"temperature": request.temperature, "top_p": request.top_p, "seed": request.seed}
    return Sampling(**({"max_tokens": max_tokens} | wanted | changes))


async def write_steps(
    engine: Engine, transcript: Transcript, sampling: Sampling
) -> AsyncGenerator[Step | FinishReason, None]:
    """Let `engine` write after `transcript` and cut what it writes into steps. Nothing is committed.

    Yields each step as soon as its boundary is there and, last, the reason for the end. What stands after the last
    boundary is a step too, marked as incomplete when the token limit cut it off.
    """
    splitter = StepSplitter(boundaries_of(engine.tokenizer))
    async with aclosing(engine.generate(transcript.token_ids(engine), sampling)) as stream:
        async for delta in stream:
            for segment in splitter.feed(delta.token_ids, delta.logprobs):
                yield Step(segment.text, segment.token_ids, engine.name, logprobs=segment.logprobs)
            if delta.finish_reason:
                rest = splitter.flush()
                if rest and rest.text.strip():  # not the end token alone
                    is_complete = delta.finish_reason is FinishReason.STOP
                    yield Step(rest.text, rest.token_ids, engine.name, is_complete, rest.logprobs)
                yield delta.finish_reason
