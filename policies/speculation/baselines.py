"""`rsd`, `specreason`, `entropy`, `random`: the same loop with the routers that others have published."""

from collections.abc import Mapping
from dataclasses import dataclass

from reasonrt.errors import ConfigError
from reasonrt.policies.speculation.loop import Speculation
from reasonrt.ports import PacedEngine
from reasonrt.routers.base import Router
from reasonrt.routers.prompts import find_layout
from reasonrt.routers.published import EntropyRouter, JudgeRouter, RandomRouter, RewardRouter
from reasonrt.types import Request


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
        find_layout(self.layout)

    @property
    def optional_engines(self) -> tuple[str, ...]:
        return ("reward",)

    def advantage_at(self, threshold: float) -> float:
        return 1.0 - threshold

    def router(self, request: Request, engines: Mapping[str, PacedEngine]) -> Router:
        if "reward" not in engines:
            raise ConfigError("rsd asks an engine 'reward' and there is none; add it to the configuration")
        return RewardRouter(engines["reward"], find_layout(self.layout))


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
