"""Routers that are not learned from advantages: published signals, and the control."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from reasonrt.errors import ConfigError
from reasonrt.ports import Engine
from reasonrt.routers.features import entropy
from reasonrt.routers.prompts import LAYOUTS, Layout, LayoutName, StepPrompt
from reasonrt.transcript import Transcript
from reasonrt.types import Request, Step


class RewardRouter:
    """One minus the reward of the step: what the target could gain at most; rewards lie in [0, 1].

    Source: reward-guided speculative decoding (arXiv 2501.19324), which looks at the draft's reward alone.
    """

    reads_logprobs = False

    def __init__(self, engine: Engine, layout: Layout) -> None:
        self._prompt = StepPrompt(engine, layout)

    async def advantage(self, transcript: Transcript, step: Step) -> float:
        return 1.0 - await self._prompt.score(transcript, step)


@dataclass
class RewardOptions:
    """Options of `rsd`.

    Attributes:
        layout: what the reward model in the role `reward` reads; see `reasonrt.routers.prompts`.
    """

    layout: LayoutName = "plain"


def build_reward_router(options: RewardOptions, request: Request, engines: Mapping[str, Engine]) -> RewardRouter:
    """Raises: ConfigError: there is no engine `reward`."""
    if "reward" not in engines:
        raise ConfigError("rsd asks an engine 'reward' and there is none; add it to the configuration")
    return RewardRouter(engines["reward"], LAYOUTS[options.layout])


QUESTION = (
    "\n\nRate the last step alone: is it true, and does it follow from the steps before it? Style does not count.\n"
    "Rating from 0 (wrong) to 9 (right): "
)
DIGITS = "0123456789"


class JudgeRouter:
    """Nine minus the rating, 0 to 9, that the target itself gives the step: one read of one token.

    The mean over the ten digits in the proportion of their probabilities.

    Source: SpecReason (arXiv 2504.07891), section 4.1; the wording of the question is ours.
    """

    reads_logprobs = False

    def __init__(self, target: Engine) -> None:
        self._target = target
        self._question = target.tokenizer.encode(QUESTION)
        self._digits = [target.tokenizer.encode(digit)[-1] for digit in DIGITS]

    async def advantage(self, transcript: Transcript, step: Step) -> float:
        tokenizer = self._target.tokenizer
        prompt = [*transcript.token_ids(self._target), *tokenizer.encode_text(step.text.rstrip()), *self._question]
        weights = [math.exp(logprob) for logprob in (await self._target.read(prompt, self._digits)).logprobs]
        total = math.fsum(weights)
        if total == 0.0:
            return 9.0  # no digit has any probability: nothing speaks for the step
        return 9.0 - math.fsum(rating * weight for rating, weight in enumerate(weights)) / total


class EntropyRouter:
    """Entropy in nats of the first token of the step.

    Source: GlimpRouter (arXiv 2601.05110).
    """

    async def advantage(self, transcript: Transcript, step: Step) -> float:
        return entropy(step.top_logprobs[0]) if step.top_logprobs else 0.0


class RandomRouter:
    """A number from [0, 1), drawn once for each step, however often it is asked; the same for the same request."""

    reads_logprobs = False

    def __init__(self, request: Request) -> None:
        self._seed = f"{request.seed}/{request.messages[-1].content}"

    async def advantage(self, transcript: Transcript, step: Step) -> float:
        return random.Random(f"{self._seed}/{len(transcript.steps)}").random()
