"""Routers by name: how each is built, and what the threshold on it means.

Each is a policy by the same name, which speculates with it. Other packages add rows by the entry point
`reasonrt.routers`, which names a `RouterKind`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from reasonrt.ports import Engine
from reasonrt.routers.base import Router
from reasonrt.routers.learned import LearnedOptions, bind_learned, roles_of_learned
from reasonrt.routers.published import EntropyRouter, JudgeRouter, RandomRouter, RewardOptions, build_reward_router
from reasonrt.types import Request


@dataclass
class NoOptions:
    """Of a router that takes none."""


@dataclass(frozen=True, slots=True)
class RouterKind:
    """How a router is built, and what its threshold means.

    Attributes:
        build: from the router's own options, a request and its engines by role to the router for that request; raises
            `ConfigError` where there is none for these engines, and the target then writes alone.
        threshold: the default.
        unit: of the threshold, in words.
        keeps: the draft's step where the number is up to the threshold (`low`) or at least the threshold (`high`).
        best: the highest number there can be, where high ones are kept; the advantage is what is missing to it.
        options: the dataclass of the router's own options.
        roles: the engines that it makes use of beside draft and target, by its own options.
        defaults: options of the loop that are others with this router.
        is_control: it is there to compare with; a server shows it only where it is configured.
    """

    build: Callable[[Any, Request, Mapping[str, Engine]], Router]
    threshold: float
    unit: str
    keeps: Literal["low", "high"] = "low"
    best: float = 0.0
    options: type = NoOptions
    roles: Callable[[Any], tuple[str, ...]] = lambda options: ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    is_control: bool = False

    def advantage_at(self, threshold: float) -> float:
        """The advantage above which a threshold sends the step to the target."""
        return threshold if self.keeps == "low" else self.best - threshold


ROUTERS: Mapping[str, RouterKind] = {
    "arbitrage": RouterKind(
        bind_learned,
        threshold=0.03,
        unit="gain in the probability of a right end, in [-1, 1]",
        options=LearnedOptions,
        roles=roles_of_learned,
        defaults={"verify": True, "keep_prefix": 0.95},
    ),
    "rsd": RouterKind(  # with the default threshold of the paper
        build_reward_router,
        threshold=0.7,
        unit="reward of the step, in [0, 1]",
        keeps="high",
        best=1.0,
        options=RewardOptions,
        roles=lambda options: ("reward",),
    ),
    "specreason": RouterKind(  # with the default threshold of the paper
        lambda options, request, engines: JudgeRouter(engines["target"]),
        threshold=7.0,
        unit="the target's rating of the step, 0 to 9",
        keeps="high",
        best=9.0,
    ),
    "entropy": RouterKind(  # with the threshold of its authors' code; the first token says it all
        lambda options, request, engines: EntropyRouter(),
        threshold=1.0,
        unit="entropy of the step's first token, nats",
        defaults={"reject_early": True},
    ),
    "random": RouterKind(
        lambda options, request, engines: RandomRouter(request),
        threshold=0.7,
        unit="share of the steps that the draft keeps, in [0, 1]",
        is_control=True,
    ),
}
