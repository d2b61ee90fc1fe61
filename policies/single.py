"""One engine writes everything: `target` and `draft`."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from reasonrt.policies.options import PolicyOptions
from reasonrt.ports import Engines
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Stop
from reasonrt.writing import sampling_for, write_steps

Role = Annotated[str, Field(min_length=1)]


@dataclass
class Single(PolicyOptions):
    """Option: `engine`, the role of the engine that writes."""

    engine: Role

    @property
    def engines(self) -> tuple[str, ...]:
        return (self.engine,)

    @property
    def has_one_author(self) -> bool:
        return True

    @property
    def gives_logprobs(self) -> bool:
        return True

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        engine = engines[self.engine]
        transcript = Transcript.of(request, engines)
        async with aclosing(write_steps(engine, transcript, sampling_for(request, transcript, engine))) as written:
            async for event in written:
                yield Stop(event) if isinstance(event, FinishReason) else event


@dataclass
class Target(Single):
    engine: Role = "target"


@dataclass
class Draft(Single):
    engine: Role = "draft"
