"""A policy of one's own: the draft tries, the target takes over where the draft came to no answer.

Registered here for this process; an installed package offers it to everybody by an entry point, see docs/extending.md.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from reasonrt import FinishReason, Request, Runtime, Step, register_policy
from reasonrt.answers import find_answer
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.policies.options import PolicyOptions
from reasonrt.ports import Engines
from reasonrt.transcript import Transcript
from reasonrt.types import PolicyEvent, Stop
from reasonrt.writing import sampling_for, write_steps


@dataclass
class Fallback(PolicyOptions):
    engines = ("draft", "target")
    commits_as_it_goes = False  # what the draft writes is held back until its answer is there

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        transcript = Transcript.of(request, engines)  # after what is committed, where a request is resumed
        for name in self.engines:
            sampling = sampling_for(request, transcript, engines[name])
            written = [event async for event in write_steps(engines[name], transcript, sampling)]
            steps = [event for event in written if isinstance(event, Step)]
            reason = next(event for event in written if isinstance(event, FinishReason))
            if find_answer(transcript.text + "".join(step.text for step in steps)) or name == "target":
                for step in steps:
                    yield step
                yield Stop(reason, {"answered_by": name})
                return


async def main() -> None:
    register_policy("fallback", Fallback)
    engines = {"draft": ScriptedEngine("draft", "Hmm."), "target": ScriptedEngine("target", "\\boxed{42}")}
    async with Runtime(engines) as runtime:
        async for event in runtime.solve(Request.ask("6 * 7", "fallback")):
            print(event)


if __name__ == "__main__":
    asyncio.run(main())
