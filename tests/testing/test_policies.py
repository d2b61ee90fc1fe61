"""`check_policy` passes what keeps the contract, and names the rule that a policy breaks."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Self

import pytest

from reasonrt import Request, Runtime, Step, register_policy
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import ConfigError, EngineError, RequestError
from reasonrt.policies.options import PolicyOptions
from reasonrt.policies.registry import find_policy, policy_names, unregister_policy
from reasonrt.ports import Engines
from reasonrt.routers.registry import ROUTERS
from reasonrt.testing import ContractError, check_policy
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, PolicyEvent, Sampling, Stop
from reasonrt.writing import sampling_for, write_steps

NEVER = {"kind": "upper_threshold", "signal": {"kind": "tokens_used"}, "threshold": 1e9}


class Bare:
    """All that a policy must have, and nothing inherited."""

    engines: Any = ("target",)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        if options:
            raise RequestError(f"unknown option {next(iter(options))!r}; there is none")
        return cls()

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        transcript = Transcript.of(request, engines)
        async with aclosing(self.written(request, transcript, engines)) as events:
            async for event in events:
                yield Stop(event) if isinstance(event, FinishReason) else event

    def written(
        self, request: Request, transcript: Transcript, engines: Engines
    ) -> AsyncGenerator[Step | FinishReason, None]:
        engine = engines["target"]
        return write_steps(engine, transcript, sampling_for(request, transcript, engine))


async def test_the_contract_as_documented_needs_no_base_class() -> None:
    await check_policy(Bare)


async def test_bare_policy_solves_in_a_runtime() -> None:
    register_policy("bare", Bare)
    try:
        async with Runtime({"target": ScriptedEngine("target", "One.\n\nTwo.")}) as runtime:
            completion = await runtime.complete(Request.ask("?", "bare"))
    finally:
        unregister_policy("bare")

    assert completion.text == "One.\n\nTwo."


@pytest.mark.parametrize("name", policy_names())
async def test_our_policies_keep_the_contract(name: str) -> None:
    await check_policy(name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("target", {"engine": "draft"}),
        ("target", {"stopping": {"rule": NEVER}}),
        ("rsd", {"stopping": {"rule": NEVER}, "threshold": 0.5}),
        ("self_consistency", {"k": 3}),
        ("random", {"threshold": 0.5, "verify": True}),
        ("random", {"threshold": 0.3, "look_ahead": 0, "start_early": 0.5, "reject_early": True}),
        ("entropy", {"keep_prefix": 0.5, "warm_target": True, "target": "reward"}),
    ],
)
async def test_our_policies_keep_the_contract_with_options(name: str, options: dict[str, Any]) -> None:
    await check_policy(name, options)


async def test_checked_class_is_forgotten_afterwards() -> None:
    before = policy_names()

    await check_policy(Bare)

    assert policy_names() == before


class NoSolve:
    engines = ("target",)
    from_options = Bare.from_options


class NoEngines:
    from_options = Bare.from_options
    solve = Bare.solve


@dataclass
class NoFromOptions:
    level: int = 1
    engines = ("target",)
    solve = Bare.solve


class OneName(Bare):
    engines = "target"


class OddNumber(Bare):
    num_streams = "two"


class TakesAnything(Bare):
    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        return cls()


@dataclass
class OptionsUnchecked(Bare):
    level: int = 1

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        return cls(**options)


@dataclass
class ValuesUnchecked(PolicyOptions):
    level: Any = 1
    engines = ("target",)
    solve = Bare.solve
    written = Bare.written

    def __post_init__(self) -> None:
        self.twice = self.level * 2 + 1


class Unstorable(Bare):
    def __init__(self) -> None:
        self.lock = asyncio.Lock()


class AsksAnother(Bare):
    def written(self, request: Request, transcript: Transcript, engines: Engines) -> Any:
        return write_steps(engines["draft"], transcript, sampling_for(request, transcript, engines["draft"]))


class NeedsTheOptional(Bare):
    optional_engines = ("reward",)

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        await engines["reward"].score([2])
        async for event in super().solve(request, engines):
            yield event


class NoStop(Bare):
    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        async for event in super().solve(request, engines):
            if isinstance(event, Step):
                yield event


class StopsAndContinues(Bare):
    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        async for event in super().solve(request, engines):
            yield event
        yield Step("more", (), "nobody")


class YieldsText(Bare):
    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        yield "text"
        yield Stop(FinishReason.STOP)


class ReturnsSteps(Bare):
    def solve(self, request: Request, engines: Engines) -> Any:
        return [Stop(FinishReason.STOP)]


class OtherTokens(Bare):
    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        async for event in super().solve(request, engines):
            yield Step(event.text.upper(), event.token_ids, event.author) if isinstance(event, Step) else event


class IgnoresCommitted(Bare):
    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        transcript = Transcript(request.messages)
        async with aclosing(self.written(request, transcript, engines)) as events:
            async for event in events:
                yield Stop(event) if isinstance(event, FinishReason) else event


class Buffers(Bare):
    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        for event in [event async for event in super().solve(request, engines)]:
            yield event


class SaysThatItBuffers(Buffers):
    commits_as_it_goes = False


class ReadsPerhaps(Bare):
    reads_context: Any = "sometimes"


class LeavesOpen(Bare):
    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        engine, transcript = engines["target"], Transcript.of(request, engines)
        stream = engine.generate(transcript.token_ids(engine), sampling_for(request, transcript, engine))
        async for delta in stream:
            yield Step(engine.tokenizer.decode(delta.token_ids), delta.token_ids, engine.name, False)
        yield Stop(FinishReason.STOP)


class LeavesTheRest(Bare):
    """Its last step has come: it is not interested in the rest of a second generation."""

    num_streams = 2

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        transcript = Transcript.of(request, engines)
        aside = engines["target"].generate(transcript.token_ids(engines["target"]), Sampling(400))
        await anext(aside)
        async for event in super().solve(request, engines):
            if isinstance(event, Stop):
                await aside.aclose()
            yield event


class LosesTheEngine(Bare):
    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        try:
            async for event in super().solve(request, engines):
                yield event
        except EngineError as error:
            raise RuntimeError("lost") from error


class AsksForMore(Bare):
    def written(self, request: Request, transcript: Transcript, engines: Engines) -> Any:
        return write_steps(engines["target"], transcript, Sampling(1000))


class HidesTheLimit(Bare):
    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        with suppress(Exception):
            async for event in super().solve(request, engines):
                if isinstance(event, Step):
                    yield event
        yield Stop(FinishReason.STOP)


class HidesTheLength(Bare):
    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        async with aclosing(super().solve(request, engines)) as events:
            async for event in events:
                yield Stop(FinishReason.STOP) if isinstance(event, Stop) else event


class Stubborn(Bare):
    """Asks again whenever it is interrupted."""

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        steps: list[PolicyEvent] = []
        for _ in range(3):
            with suppress(asyncio.CancelledError):
                steps = [event async for event in super().solve(request, engines)]
                break
        for event in steps:
            yield event

    commits_as_it_goes = False


class Blocks(Bare):
    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        if request.limits.deadline_s:
            time.sleep(5.5)  # noqa: ASYNC251 - it is to block the event loop
        async with aclosing(super().solve(request, engines)) as events:
            async for event in events:
                yield event


class TwoAtOnce(Bare):
    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[Any, None]:
        engine, transcript = engines["target"], Transcript.of(request, engines)

        async def aside() -> None:
            async with aclosing(engine.generate(transcript.token_ids(engine), Sampling(40))) as stream:
                async for _ in stream:
                    pass

        task = asyncio.create_task(aside())
        try:
            async with aclosing(super().solve(request, engines)) as events:
                async for event in events:
                    yield event
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


FAULTS: list[tuple[type, str, str]] = [
    (NoSolve, "has `solve`", "NoSolve has no solve"),
    (NoEngines, "says which `engines` it asks", "NoEngines has no engines"),
    (NoFromOptions, "is made by `from_options`", "NoFromOptions has no from_options"),
    (OneName, "says which `engines`", "engines is 'target', and not a tuple of names"),
    (OddNumber, "says which `engines`", "num_streams is 'two', and not a number"),
    (TakesAnything, "`from_options` raises RequestError", "is taken, which nobody knows"),
    (OptionsUnchecked, "`from_options` raises RequestError", "raises TypeError"),
    (ValuesUnchecked, "`from_options` raises RequestError", "the option 'level' with the value None raises TypeError"),
    (Unstorable, "`settings` is what it was built with", "cannot be written as JSON"),
    (AsksAnother, "`engines` are the roles of the engines that it asks", "asks an engine 'draft'"),
    (NeedsTheOptional, "`optional_engines` those that it can do without", "'reward' where there are no optional ones"),
    (NoStop, "last, a `Stop`", "no Stop comes"),
    (StopsAndContinues, "last, a `Stop`", "after the Stop comes"),
    (YieldsText, "yields steps", "it yields .'text'.*neither a Step nor a Stop"),
    (ReturnsSteps, "yields steps", "no asynchronous generator"),
    (OtherTokens, "in the vocabulary of its author", "read .*, its text is"),
    (IgnoresCommitted, "continues after them", "with 1 of .* steps committed it writes .* again"),
    (ReadsPerhaps, "`from_options` makes the policy", "`reads_context` is 'sometimes', and not true or false"),
    (Buffers, "`commits_as_it_goes`", "tokens are generated before the first step"),
    (LeavesOpen, "closes all that it has open", "a generation is still open on target"),
    (LeavesTheRest, "closes all that it has open", "a generation is still open on target"),
    (LosesTheEngine, "Where an engine dies", "RuntimeError: lost"),
    (AsksForMore, "`Limits.max_tokens`", "of 1 tokens it yields"),
    (HidesTheLimit, "A limit that the runtime enforces", "it ends by itself with the text"),
    (HidesTheLength, "`Limits.max_tokens`", "with max_tokens 1 it ends by itself"),
    (Stubborn, "`Limits.deadline_s`", "s with a deadline of|still runs, with a deadline of"),
    (Blocks, "`Limits.deadline_s`", "s with a deadline of|still runs, with a deadline of"),
    (TwoAtOnce, "`num_streams`", "it runs 2 on one engine and says 1"),
]


@pytest.mark.parametrize(("policy", "rule", "seen"), FAULTS, ids=[policy.__name__ for policy, _, _ in FAULTS])
async def test_broken_rule_is_named(policy: type, rule: str, seen: str) -> None:
    with pytest.raises(ContractError) as raised:
        await check_policy(policy)

    (words,) = [words for words in raised.value.broken if rule in words]
    assert re.search(seen, raised.value.broken[words])
    assert policy.__name__ in str(raised.value)
    assert words in str(raised.value)


async def test_what_says_that_it_buffers_passes() -> None:
    await check_policy(SaysThatItBuffers)


@pytest.mark.parametrize(
    ("name", "policy", "message"),
    [
        ("target", Bare, "'target' is the name of a policy of reasonrt"),
        ("two words", Bare, "none that a request can spell"),
        ("nosolve", NoSolve, "NoSolve has no solve, which every policy must have"),
        ("a_number", 3, "it is 3, and not a class of policies"),
    ],
)
def test_only_policies_are_registered(name: str, policy: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        register_policy(name, policy)


def test_router_is_registered_as_a_policy_and_a_name_anew() -> None:
    register_policy("mine", ROUTERS["entropy"])
    first = find_policy("mine")
    register_policy("mine", Bare)

    assert find_policy("mine") is not first
    unregister_policy("mine")
    with pytest.raises(RequestError, match="unknown policy 'mine'"):
        find_policy("mine")
