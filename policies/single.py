"""One engine writes everything: `target` and `draft`."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from reasonrt.policies.options import PolicyOptions
from reasonrt.ports import PacedEngine
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Stop
from reasonrt.writing import sampling_for, write_steps


@dataclass
class Single(PolicyOptions):
    """Option: `engine`, the role of the engine that writes."""

    engine: str

    def __post_init__(self) -> None:
        self.engines = (self.engine,)

    async def solve(self, request: Request, engines: Mapping[str, PacedEngine]) -> AsyncGenerator[PolicyEvent, None]:
        engine = engines[self.engine]
        transcript = Transcript(request.messages, request.committed)
        async with aclosing(write_steps(engine, transcript, sampling_for(request, transcript, engine))) as written:
            async for event in written:
                yield Stop(event) if isinstance(event, FinishReason) else event


@dataclass
class Target(Single):
    engine: str = "target"


@dataclass
class Draft(Single):
    engine: str = "draft"
