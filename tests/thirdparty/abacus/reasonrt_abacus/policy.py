"""A policy: other policies try, one after the other, until a tool finds the answer right."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from reasonrt.policies.options import PolicyOptions
from reasonrt.ports import OPERATOR_ONLY, Engines
from reasonrt.types import Completion, PolicyEvent, Request, Step, Stop


@dataclass
class Checked(PolicyOptions):
    """Options: `asks`, policies in the order they try; `tool`, which only the operator may choose."""

    asks: Annotated[tuple[str, ...], Field(min_length=1)] = ("draft", "target")
    tool: Annotated[str, OPERATOR_ONLY] = "abacus"
    engines = ("draft", "target")
    commits_as_it_goes = False  # a try is committed when it is found right

    @property
    def tools(self) -> tuple[str, ...]:
        return (self.tool,)

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        for policy in self.asks:
            async with aclosing(engines.solve(replace(request, policy=policy, options={}))) as events:
                written = [event async for event in events]
            (completion,) = (event for event in written if isinstance(event, Completion))
            is_right = engines.tools[self.tool].agrees(request.messages[-1].content, completion.content)
            if is_right:
                break
        for event in written:
            if isinstance(event, Step):
                yield event
        yield Stop(completion.finish_reason, {"asked": policy, "is_right": is_right})
