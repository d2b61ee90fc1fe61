"""`oracle`: both models write every step, and a reward model picks."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from reasonrt.policies.options import PolicyOptions
from reasonrt.policies.speculation.loop import Tally
from reasonrt.policies.speculation.options import Threshold
from reasonrt.ports import Engines
from reasonrt.routers.prompts import LAYOUTS, LayoutName, StepPrompt
from reasonrt.tasks import gather
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Stop
from reasonrt.writing import sampling_for, seed_of, write_step


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
        transcript, tally, before = Transcript.of(request, engines), Tally(), engines.told
        engines.at_limit(lambda: tally.told(before))
        prompt = StepPrompt(engines["reward"], LAYOUTS[self.layout])
        authors = [engines["draft"], engines["target"]]
        reason = None
        while reason is None:
            if not all(transcript.room(engine) for engine in authors):
                reason = FinishReason.LENGTH
                break
            # one seed for both, and the reward would pick among steps that hang together
            seed = seed_of(request.seed, "draft", transcript.num_tokens)
            samplings = [
                sampling_for(request, transcript, authors[0], seed=seed),
                sampling_for(request, transcript, authors[1]),
            ]
            drafted, targeted = await gather(
                *(write_step(author, transcript, own) for author, own in zip(authors, samplings, strict=True))
            )
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
        yield Stop(reason, tally.told(before))
