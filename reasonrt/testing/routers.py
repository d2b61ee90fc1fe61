"""The contract of `reasonrt.routers.base.Router` and of its row in the registry, `RouterKind`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import ConfigError, EngineError
from reasonrt.options import read_options
from reasonrt.ports import Engine
from reasonrt.routers.base import Router
from reasonrt.routers.registry import RouterKind
from reasonrt.testing.contract import Broken, ContractError, Rule, require, run_rules
from reasonrt.testing.policies import check_policy
from reasonrt.transcript import Transcript
from reasonrt.types import Request, Step

_LOGPROBS = (-0.1, -1.0)
_TOP_LOGPROBS = ((-0.1, -2.5), (-0.5, -1.0))


@dataclass(frozen=True, slots=True)
class RouterCase:
    """A kind of router, and what it is tried with.

    Attributes:
        options: of the router itself, not of the loop that asks it.
    """

    kind: RouterKind
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def read_options(self) -> Any:
        return read_options(self.kind.options, self.options)

    def engines(self, make: type[ScriptedEngine] = ScriptedEngine) -> dict[str, Engine]:
        """Draft, target and what the router makes use of."""
        roles = {"draft", "target", *self.kind.roles(self.read_options)}
        return {role: make(role, "A step.\n\n", scores=lambda text: 0.5) for role in sorted(roles)}

    def build(self, make: type[ScriptedEngine] = ScriptedEngine) -> "tuple[Router, Transcript]":
        request, engines = Request.ask("What is 3 + 4?"), self.engines(make)
        return self.kind.build(self.read_options, request, engines), Transcript.of(request, engines)


async def check_router(kind: RouterKind, options: Mapping[str, Any] | None = None) -> None:
    """Try every rule on the router by itself, and then speculation with it as a policy.

    Args:
        options: of the router itself, and of the loop that asks it.

    Raises:
        ContractError: names each rule that is broken.
    """
    if not isinstance(kind, RouterKind):
        raise ContractError(f"router {kind!r:.60}", {"A router is announced as a `RouterKind`.": "it is none"})
    given = options or {}
    own = {name: value for name, value in given.items() if name in getattr(kind.options, "__dataclass_fields__", ())}
    case = RouterCase(kind, own)
    for rules in (_FORM_RULES, _RULES):
        await run_rules("the router", rules, case)
    await check_policy(kind, given)


async def names_its_roles(case: RouterCase) -> None:
    """`RouterKind.options` is the dataclass of its own options; `roles` are the engines that it then makes use of."""
    roles = case.kind.roles(case.read_options)
    is_tuple = isinstance(roles, tuple) and all(isinstance(role, str) for role in roles)
    require(is_tuple, f"`roles` gives {roles!r:.60}, and not a tuple of names")


async def builds_a_router(case: RouterCase) -> None:
    """`RouterKind.build` makes the router from its options, a request and its engines by role."""
    try:
        router, _ = case.build()
    except ConfigError as error:
        raise Broken(f"with the engines {', '.join(case.engines())} it raises: {error}") from None
    require(hasattr(router, "advantage"), f"it makes {router!r:.60}, which has no `advantage`")


async def tells_what_its_threshold_means(case: RouterCase) -> None:
    """`threshold` is the default, in `unit`; `keeps` says on which side of it the draft's step stays."""
    kind = case.kind
    require(math.isfinite(kind.threshold), f"the threshold is {kind.threshold}")
    require(kind.unit.strip(), "the unit is empty")
    require(kind.keeps in ("low", "high"), f"`keeps` is {kind.keeps!r}, and neither low nor high")
    is_within = kind.keeps == "low" or kind.threshold <= kind.best
    require(is_within, f"the threshold {kind.threshold} is above the highest number there can be, {kind.best}")


async def advantage_is_a_number(case: RouterCase) -> None:
    """`advantage` is a number for every step, also for one that is incomplete or has no log-probabilities."""
    for step in _steps():
        router, transcript = case.build()
        advantage = await router.advantage(transcript, step)
        is_number = isinstance(advantage, int | float) and math.isfinite(advantage)
        require(is_number, f"for {step.text!r} it is {advantage!r:.60}")
        is_within = case.kind.keeps == "low" or advantage >= 0
        require(is_within, f"it is {advantage}: the number is above the highest there can be, {case.kind.best}")


async def continues_with_the_transcript(case: RouterCase) -> None:
    """A router is built per request, is asked about one step after the other, and commits nothing itself."""
    router, transcript = case.build()
    for count, step in enumerate(_steps()):
        await router.advantage(transcript, step)
        require(len(transcript.steps) == count, "it has committed a step")
        transcript.commit(step)


async def raises_where_an_engine_is_missing(case: RouterCase) -> None:
    """`RouterKind.build` raises ConfigError where there is none for these engines; the target then writes alone."""
    engines = case.engines()
    for role in set(engines) - {"draft", "target"}:
        rest = {name: engine for name, engine in engines.items() if name != role}
        try:
            case.kind.build(case.read_options, Request.ask("?"), rest)
        except ConfigError:
            continue
        except Exception as error:
            raise Broken(f"without the engine {role!r} it raises {type(error).__name__}: {error}") from error


async def raises_where_an_engine_is_dead(case: RouterCase) -> None:
    """`advantage` raises EngineError: the model that it asks died."""
    router, transcript = case.build(_DeadEngine)
    for step in _steps():
        try:
            await router.advantage(transcript, step)
        except EngineError:
            continue
        except Exception as error:
            raise Broken(f"it raises {type(error).__name__}: {error}") from error


_FORM_RULES: tuple[Rule[RouterCase], ...] = (names_its_roles, builds_a_router, tells_what_its_threshold_means)
_RULES: tuple[Rule[RouterCase], ...] = (
    advantage_is_a_number,
    continues_with_the_transcript,
    raises_where_an_engine_is_missing,
    raises_where_an_engine_is_dead,
)


class _DeadEngine(ScriptedEngine):
    """Every call fails."""

    async def work(self, num_tokens: int, life: int) -> None:
        raise EngineError(f"engine {self.name!r} died; ask again, it has come back")


def _steps() -> list[Step]:
    return [
        Step("One.\n\n", (2, 1), "draft", True, _LOGPROBS, _TOP_LOGPROBS),
        Step("Two.\n\n", (2, 1), "draft"),
        Step("Th", (2, 3), "draft", False, _LOGPROBS, _TOP_LOGPROBS),
    ]
