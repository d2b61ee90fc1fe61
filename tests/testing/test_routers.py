"""`check_router` passes what keeps the contract, and names the rule that a router breaks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import ConfigError, EngineError
from reasonrt.ports import Engine
from reasonrt.routers.features import FEATURES
from reasonrt.routers.learned import RouterFile
from reasonrt.routers.registry import ROUTERS, RouterKind
from reasonrt.testing import ContractError, check_router
from reasonrt.transcript import Transcript
from reasonrt.trees import Tree, Trees
from reasonrt.types import Request, Step


@pytest.mark.parametrize("name", sorted(set(ROUTERS) - {"arbitrage"}))
async def test_our_routers_keep_the_contract(name: str) -> None:
    await check_router(ROUTERS[name])


async def test_learned_router_keeps_the_contract(tmp_path: Path) -> None:
    stump = Tree((FEATURES.index("logprob_min"), -1, -1), (-1.0, 0, 0), (1, 0, 0), (2, 0, 0), (0.0, 0.5, -0.1))
    RouterFile("features", {"draft": "draft", "target": "target"}, Trees(0.1, (stump,))).save(tmp_path / "router.json")

    await check_router(ROUTERS["arbitrage"], {"router_file": str(tmp_path / "router.json"), "look_ahead": 1})


@dataclass
class Options:
    scale: float = 1.0


class Good:
    def __init__(self, options: Options, engines: Mapping[str, Engine]) -> None:
        self.options, self.reward = options, engines["reward"]

    async def advantage(self, transcript: Transcript, step: Step) -> float:
        return 1 - self.options.scale * (await self.reward.score(transcript.token_ids(self.reward))).value


def build(router: Any) -> Any:
    def build_router(options: Options, request: Request, engines: Mapping[str, Engine]) -> Any:
        if "reward" not in engines:
            raise ConfigError("it asks an engine 'reward'; add it to the configuration")
        return router(options, engines)

    return build_router


GOOD = RouterKind(build(Good), 0.5, "reward, in [0, 1]", "high", 1.0, Options, lambda options: ("reward",))


class NoNumber(Good):
    async def advantage(self, transcript: Transcript, step: Step) -> float:
        return float("nan") if not step.logprobs else 0.0


class NeedsLogprobs(Good):
    async def advantage(self, transcript: Transcript, step: Step) -> float:
        return -step.logprobs[0]


class AboveTheBest(Good):
    async def advantage(self, transcript: Transcript, step: Step) -> float:
        return -0.5


class Commits(Good):
    async def advantage(self, transcript: Transcript, step: Step) -> float:
        transcript.commit(step)
        return 0.5


class HidesTheDeath(Good):
    async def advantage(self, transcript: Transcript, step: Step) -> float:
        try:
            return await super().advantage(transcript, step)
        except EngineError as error:
            raise RuntimeError("lost") from error


def refuse(options: Options, request: Request, engines: Mapping[str, Engine]) -> Any:
    raise ConfigError("nothing is good enough")


FAULTS: list[tuple[str, RouterKind, str, str]] = [
    (
        "one_role",
        replace(GOOD, roles=cast(Any, lambda options: "reward")),
        "`roles` are the engines",
        "not a tuple of names",
    ),
    ("no_dataclass", replace(GOOD, options=int), "`RouterKind.options` is the dataclass", "TypeError"),
    ("never", replace(GOOD, build=refuse), "`RouterKind.build` makes the router", "nothing is good enough"),
    ("no_router", replace(GOOD, build=build(lambda *_: 3)), "`RouterKind.build` makes", "which has no `advantage`"),
    ("no_unit", replace(GOOD, unit=" "), "`threshold` is the default", "the unit is empty"),
    ("side", replace(GOOD, keeps="left"), "which side", "neither low nor high"),  # type: ignore[arg-type]
    ("too_high", replace(GOOD, threshold=2.0), "`threshold`", "above the highest number there can be, 1.0"),
    ("infinite", replace(GOOD, threshold=float("inf")), "`threshold`", "the threshold is inf"),
    ("nan", replace(GOOD, build=build(NoNumber)), "`advantage` is a number for every step", "it is nan"),
    ("logprobs", replace(GOOD, build=build(NeedsLogprobs)), "`advantage` is a number for every step", "IndexError"),
    ("above", replace(GOOD, build=build(AboveTheBest)), "`advantage` is a number", "above the highest there can be"),
    ("commits", replace(GOOD, build=build(Commits)), "commits nothing itself", "it has committed a step"),
    (
        "missing",
        replace(GOOD, build=lambda options, request, engines: Good(options, engines)),
        "raises ConfigError where there is none",
        "without the engine 'reward' it raises KeyError",
    ),
    ("death", replace(GOOD, build=build(HidesTheDeath)), "`advantage` raises EngineError", "RuntimeError: lost"),
]


async def test_router_that_keeps_the_contract_passes() -> None:
    await check_router(GOOD, {"scale": 0.5, "look_ahead": 2})


@pytest.mark.parametrize(("kind", "rule", "seen"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
async def test_broken_rule_is_named(kind: RouterKind, rule: str, seen: str) -> None:
    with pytest.raises(ContractError) as raised:
        await check_router(kind)

    (words,) = [words for words in raised.value.broken if rule in words]
    assert re.search(seen, raised.value.broken[words])


@pytest.mark.parametrize("kind", [Good, ScriptedEngine("x", ""), None])
async def test_only_a_router_kind_is_a_router(kind: Any) -> None:
    with pytest.raises(ContractError, match="announced as a `RouterKind`"):
        await check_router(kind)
