"""A policy of one's own: the draft tries, the target takes over where the draft came to no answer.

An installed package offers it to everybody by the entry point `reasonrt.policies`; here it is called directly.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from reasonrt import Request, Step
from reasonrt.answers import find_answer
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.policies.options import PolicyOptions
from reasonrt.ports import Engine
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Stop
from reasonrt.writing import sampling_for, write_steps


@dataclass
class Fallback(PolicyOptions):
    engines = ("draft", "target")

    async def solve(self, request: Request, engines: Mapping[str, Engine]) -> AsyncGenerator[PolicyEvent, None]:
        for name in self.engines:
            transcript = Transcript(request.messages)
            sampling = sampling_for(request, transcript, engines[name])
            steps = [event async for event in write_steps(engines[name], transcript, sampling)]
            written = [step for step in steps if isinstance(step, Step)]
            if find_answer("".join(step.text for step in written)) or name == "target":
                for step in written:
                    yield step
                yield Stop(FinishReason.STOP, {"answered_by": name})
                return


async def main() -> None:
    engines = {"draft": ScriptedEngine("draft", "Hmm."), "target": ScriptedEngine("target", "\\boxed{42}")}
    async for event in Fallback().solve(Request.ask("6 * 7"), engines):
        print(event)


if __name__ == "__main__":
    asyncio.run(main())
