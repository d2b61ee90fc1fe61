"""The policies of step-level speculation, by their routers; the loop is in `speculation.py`."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import ClassVar

from reasonrt.errors import ConfigError, RequestError
from reasonrt.policies.base import PacedEngine, PolicyOptions, drop, sampling_for, write_step
from reasonrt.policies.speculation.loop import Speculation, Tally
from reasonrt.routers.published import EntropyRouter, JudgeRouter, RandomRouter, RewardRouter
from reasonrt.routers.base import Router
from reasonrt.routers.learned import load_router
from reasonrt.routers.prompts import LAYOUTS, Layout, StepPrompt
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Request, Stop


@dataclass
class Arbitrage(Speculation):
    """`threshold` is on the advantage that a learned router predicts: the gain in the probability of a right end.

    Attributes:
        router_file: what `reasonrt calibrate router` wrote, or `zoo:NAME`.

    Source: Arbitrage (arXiv 2512.05033).
    """

    threshold: float = 0.03
    verify: bool = True
    keep_prefix: float = 0.95
    router_file: str = "zoo:nano-features"

    @property
    def optional_engines(self) -> tuple[str, ...]:
        with suppress(ConfigError):  # told when it is asked for
            return ("router",) if "router" in load_router(self.router_file).models else ()
        return ()

    def router(self, request: Request, engines: Mapping[str, PacedEngine]) -> Router:
        return load_router(self.router_file).bind(engines)


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise RequestError(f"unknown layout {name!r}; there are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


@dataclass
class RSD(Speculation):
    """`threshold` is the reward, in [0, 1], that the draft's step must reach; the answer's is nearer to 1.

    Attributes:
        layout: what the reward model in the role `reward` reads, by its name in `routers/prompts.py`.

    Source: reward-guided speculative decoding (arXiv 2501.19324), with its default threshold.
    """

    threshold: float = 0.7
    layout: str = "plain"

    def __post_init__(self) -> None:
        super().__post_init__()
        _layout(self.layout)

    @property
    def optional_engines(self) -> tuple[str, ...]:
        return ("reward",)

    def advantage_at(self, threshold: float) -> float:
        return 1.0 - threshold

    def router(self, request: Request, engines: Mapping[str, PacedEngine]) -> Router:
        if "reward" not in engines:
            raise ConfigError("rsd asks an engine 'reward' and there is none; add it to the configuration")
        return RewardRouter(engines["reward"], _layout(self.layout))


@dataclass
class SpecReason(Speculation):
    """`threshold` is the rating, 0 to 9, that the target must give the draft's step.

    Source: SpecReason (arXiv 2504.07891), with its default threshold.
    """

    threshold: float = 7.0

    def advantage_at(self, threshold: float) -> float:
        return 9.0 - threshold

    def router(self, request: Request, engines: Mapping[str, PacedEngine]) -> Router:
        return JudgeRouter(engines["target"])


@dataclass
class Entropy(Speculation):
    """`threshold` is the entropy, in nats, of the first token of the draft's step.

    Source: GlimpRouter (arXiv 2601.05110), with the threshold of its code.
    """

    threshold: float = 1.0
    reject_early: bool = True  # the first token says it all

    def router(self, request: Request, engines: Mapping[str, PacedEngine]) -> Router:
        return EntropyRouter()


@dataclass
class Random(Speculation):
    """The control: every step goes to the target with the probability 1 - `threshold`."""

    threshold: float = 0.7

    def router(self, request: Request, engines: Mapping[str, PacedEngine]) -> Router:
        return RandomRouter(request)


@dataclass
class Oracle(PolicyOptions):
    """Both models write every step and the reward picks: a bound on accuracy, of no use for time.

    Attributes:
        threshold: how much better the target's step must be.
        layout: see `RSD`.

    Source: Arbitrage (arXiv 2512.05033), section 4.1.
    """

    threshold: float = 0.0
    layout: str = "plain"

    engines: ClassVar[tuple[str, ...]] = ("draft", "target", "reward")

    def __post_init__(self) -> None:
        _layout(self.layout)

    async def solve(self, request: Request, engines: Mapping[str, PacedEngine]) -> AsyncGenerator[PolicyEvent, None]:
        transcript, tally = Transcript(request.messages, request.committed), Tally()
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
                await drop(*tasks)
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
                transcript.commit(step)
                yield step
        yield Stop(reason, asdict(tally))
