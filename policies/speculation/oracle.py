"""`oracle`: both models write every step, and a reward model picks."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass

from reasonrt.policies.options import PolicyOptions
from reasonrt.policies.speculation.loop import Tally
from reasonrt.policies.speculation.options import Threshold
from reasonrt.ports import Engines
from reasonrt.routers.prompts import LAYOUTS, LayoutName, StepPrompt
from reasonrt.tasks import cancel
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Stop
from reasonrt.writing import sampling_for, write_step


@dataclass
class Oracle(PolicyOptions):
    """Both models write every step and the reward picks: a bound on accuracy, of no use for time.

    Attributes:
        threshold: how much better the target's step must be, in the unit of the rewards.
        layout: what the reward model in the role `reward` reads; see `reasonrt.routers.prompts`.

    Source: Arbitrage (arXiv 2512.05033), section 4.1.
    """

    threshold: Threshold = 0.0
    layout: LayoutName = "plain"

    engines = ("draft", "target", "reward")

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        transcript, tally = Transcript.of(request, engines), Tally()
        engines.at_limit(lambda: asdict(tally))
        prompt = StepPrompt(engines["reward"], LAYOUTS[self.layout])
        authors = [engines["draft"], engines["target"]]
        reason = None
        while reason is None:
            if not all(transcript.room(engine) for engine in authors):
                reason = FinishReason.LENGTH
                break
            tasks = [
                asyncio.create_task(write_step(engine, transcript, sampling_for(request, transcript, engine)))
                for engine in authors
            ]
            try:
                drafted, targeted = await asyncio.gather(*tasks)
            finally:  # one that fails takes the other along
                await cancel(*tasks)
            step, reason = drafted
            if drafted[0] is None or targeted[0] is None:
                step, reason = targeted
            elif drafted[0].text != targeted[0].text:
                rewards = [await prompt.score(transcript, written) for written in (drafted[0], targeted[0])]
                if rewards[1] - rewards[0] > self.threshold:
                    tally.escalations += 1
                    step, reason = targeted
            if step is not None:
                tally.steps += 1
                tally.draft_steps += step.author == authors[0].name
                tally.draft_tokens += len(step.token_ids) if step.author == authors[0].name else 0
                transcript.commit(step)
                yield step
        yield Stop(reason, asdict(tally))
