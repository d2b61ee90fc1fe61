"""One engine writes everything: `target` and `draft`."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from reasonrt.engines.base import Engine
from reasonrt.policies.base import PolicyOptions, sampling_for, write_steps
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Stop


@dataclass
class Single(PolicyOptions):
    """The engine of that name alone."""

    engines = ("target",)

    async def solve(self, request: Request, engines: Mapping[str, Engine]) -> AsyncGenerator[PolicyEvent, None]:
        engine = engines[self.engines[0]]
        transcript = Transcript(request.messages)
        async with aclosing(write_steps(engine, transcript, sampling_for(request, transcript, engine))) as written:
            async for event in written:
                yield Stop(event) if isinstance(event, FinishReason) else event


class Target(Single):
    engines = ("target",)


class Draft(Single):
    engines = ("draft",)
