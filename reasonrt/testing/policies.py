"""The contract of `reasonrt.ports.Policy`, tried on scripted engines in a runtime."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Self

from reasonrt.engines.scripted import ScriptedEngine, continuing
from reasonrt.errors import ConfigError, EngineError, RequestError
from reasonrt.options import option_names
from reasonrt.plugins import FAILURES, reason_of
from reasonrt.policies.registry import build_policy, find_policy, register_policy, unregister_policy
from reasonrt.policies.stopping.policy import CommonOptions
from reasonrt.ports import Engines, Policy, Tool
from reasonrt.routers.registry import RouterKind
from reasonrt.runtime import Prepared, Runtime
from reasonrt.testing.contract import Broken, ContractError, Rule, require, run_rules
from reasonrt.types import Completion, FinishReason, Limits, PolicyEvent, Request, Step, Stop

TEXT = "<think>\n" + "".join(f"Step {n} says {n}.\n\n" for n in range(1, 13)) + "</think>\n\n\\boxed{7}"
_USUAL_ROLES = ("draft", "target", "router", "reward")
_VALUES: Sequence[Any] = (None, True, 0, -1, 1.5, 10**9, "", "x", [], [1], {}, {"a": 1})  # of every JSON type
_PATIENCE_S = 60.0
_SLACK_S = 5.0  # of a busy machine; without the deadline, the engines would take 10 s and more
_UNKNOWN = "no_policy_has_this_option"


@dataclass(frozen=True, slots=True)
class PolicyCase:
    """A policy, and what it is tried with.

    Attributes:
        name: under which the registry finds it.
        text: that every engine writes, from where the committed steps have got to.
        tools: name to what makes the tool.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    text: str = TEXT
    tools: Mapping[str, Callable[[], Tool]] = field(default_factory=dict)

    @property
    def own_options(self) -> dict[str, Any]:
        """Without those of every policy, such as `stopping`, which a policy itself never sees."""
        return {name: value for name, value in self.options.items() if name not in option_names(CommonOptions)}

    def request(self, **fields: Any) -> Request:
        return Request.ask("What is 3 + 4?", self.name, options=self.options, **fields)

    @asynccontextmanager
    async def runtime(
        self, *, with_optional: bool = True, **settings: Any
    ) -> AsyncIterator[tuple[Runtime, "list[_WatchedEngine]"]]:
        """A new runtime with engines in the usual roles and those that the policy names; `settings` are theirs."""
        policy = build_policy(self.name, self.options)
        roles = {*_USUAL_ROLES, *policy.engines, *policy.optional_engines}
        roles -= set() if with_optional else {*policy.optional_engines} - {*policy.engines}
        engines = [_WatchedEngine(role, continuing(self.text), **settings) for role in sorted(roles)]
        tools = {name: make() for name, make in self.tools.items()}
        async with Runtime({engine.name: engine for engine in engines}, tools=tools) as runtime:
            yield runtime, engines

    async def solve(self, **fields: Any) -> Completion:
        """One request with a runtime of its own, to its end."""
        async with self.runtime() as (runtime, _):
            return await _complete(runtime, self.request(**fields))

    async def watch(self, **fields: Any) -> "tuple[_Watched, Completion]":
        """As `solve`, with the events of the policy itself."""
        async with self.runtime() as (runtime, _):
            prepared = runtime.prepare(self.request(**fields))
            watched = _Watched(prepared.policy)
            return watched, await _complete(runtime, replace(prepared, policy=watched))


async def check_policy(
    policy: str | type | RouterKind,
    options: Mapping[str, Any] | None = None,
    *,
    text: str = TEXT,
    tools: Mapping[str, Callable[[], Tool]] | None = None,
) -> None:
    """Try every rule of the protocol.

    Args:
        policy: a name that is registered or announced by an installed package, or a class.
        options: that it is built with.
        text: that every engine writes; of several paragraphs, all of them different.
        tools: name to what makes the tool, for a policy that uses tools.

    Raises:
        ContractError: names each rule that is broken.
    """
    if isinstance(policy, str):
        await _check(policy, policy, options or {}, text, tools or {})
        return
    name = f"checked-{uuid.uuid4()}"
    subject = getattr(policy, "__name__", "router")
    try:
        register_policy(name, policy)
    except ConfigError as error:
        raise ContractError(f"policy {subject}", {_FORM: str(error).partition("registered: ")[2]}) from None
    try:
        await _check(subject, name, options or {}, text, tools or {})
    finally:
        unregister_policy(name)


_FORM = "A policy says which `engines` it asks, is made by `from_options`, and has `solve`; the rest has defaults."


async def _check(
    subject: str, name: str, options: Mapping[str, Any], text: str, tools: Mapping[str, Callable[[], Tool]]
) -> None:
    case = PolicyCase(name, options, text, tools)
    for rules in (_FORM_RULES, _EVENT_RULES, _RULES):  # where a policy cannot be run, the rest says nothing new
        await run_rules(f"policy {subject}", rules, case)


async def is_built_from_its_options(case: PolicyCase) -> None:
    """`from_options` makes the policy from its options."""
    policy = find_policy(case.name).from_options(case.own_options)
    for words in ("engines", "optional_engines", "tools"):
        named = getattr(policy, words)
        is_tuple = isinstance(named, tuple) and all(isinstance(name, str) for name in named)
        require(is_tuple, f"`{words}` is {named!r:.60}, and not a tuple of names")
    streams = policy.num_streams
    require(
        isinstance(streams, int) and streams >= 1, f"`num_streams` is {streams!r:.60}, and not a number of 1 or more"
    )
    for word in ("commits_as_it_goes", "gives_logprobs", "has_one_author", "holds_structure", "reads_context"):
        value = getattr(policy, word)
        require(isinstance(value, bool), f"`{word}` is {value!r:.60}, and not true or false")


async def refuses_unknown_options(case: PolicyCase) -> None:
    """`from_options` raises RequestError: an unknown option, or a value that is not allowed."""
    kind = find_policy(case.name)
    names = [_UNKNOWN, *(name for options in kind.option_types() for name in option_names(options))]
    for name in names:
        for value in _VALUES:
            try:
                kind.from_options({**case.own_options, name: value})
            except RequestError:
                continue
            except FAILURES as error:
                raise Broken(f"the option {name!r} with the value {value!r} raises {reason_of(error)}") from None
            require(name != _UNKNOWN, f"the option {name!r} is taken, which nobody knows")


async def has_settings_that_can_be_stored(case: PolicyCase) -> None:
    """`settings` is what it was built with, defaults included; certificates and journals are bound to it."""
    settings = build_policy(case.name, case.options).settings
    try:
        json.dumps(dict(settings))
    except (TypeError, ValueError) as error:
        raise Broken(f"it cannot be written as JSON: {error}") from None


async def asks_its_own_engines(case: PolicyCase) -> None:
    """`engines` are the roles of the engines that it asks; `optional_engines` those that it can do without."""
    for with_optional in (True, False):
        async with case.runtime(with_optional=with_optional) as (runtime, _):
            prepared = runtime.prepare(case.request())
            try:
                await _complete(runtime, prepared)
            except KeyError as error:
                role = error.args[0] if error.args else error
                optional = "" if with_optional else " where there are no optional ones"
                raise Broken(f"it asks an engine {role!r}{optional}; it names {prepared.policy.engines}") from error


async def yields_steps_and_last_a_stop(case: PolicyCase) -> None:
    """`solve` yields steps as they are committed and, last, a `Stop`."""
    watched, _ = await case.watch()
    strange = [event for event in watched.events if not isinstance(event, Step | Stop)]
    require(not strange, f"it yields {strange[:1]!r:.60}, and that is neither a Step nor a Stop")
    stops = [index for index, event in enumerate(watched.events) if isinstance(event, Stop)]
    require(stops, "no Stop comes")
    late = watched.events[stops[0] + 1 :]
    require(not late, f"after the Stop comes {late[:1]!r:.60}")


async def steps_are_their_tokens(case: PolicyCase) -> None:
    """`Step.token_ids` are its text in the vocabulary of its author."""
    async with case.runtime() as (runtime, engines):
        completion = await runtime.complete(case.request())
    vocabularies = {engine.name: engine.tokenizer for engine in engines}
    for step in completion.steps:
        if step.token_ids and step.author in vocabularies:
            read = vocabularies[step.author].decode(step.token_ids)
            require(
                read == step.text, f"the tokens of a step by {step.author!r} read {read!r}, its text is {step.text!r}"
            )


async def gives_logprobs(case: PolicyCase) -> None:
    """`gives_logprobs`: the steps of its engines have log-probabilities where `Request.logprobs` asks for them."""
    if not build_policy(case.name, case.options).gives_logprobs:
        return
    async with case.runtime() as (runtime, engines):
        completion = await runtime.complete(case.request(logprobs=2))
    names = {engine.name for engine in engines}
    for step in completion.steps:
        counts = {len(step.logprobs), len(step.top_logprobs), len(step.top_token_ids)}
        is_told = counts == {len(step.token_ids)} and all(len(place) >= 2 for place in step.top_logprobs)
        require(is_told or step.author not in names, f"a step by {step.author!r} has not all of them, and it says true")


async def continues_after_what_is_committed(case: PolicyCase) -> None:
    """`Request.committed`: steps of the answer that are there already; the policy continues after them."""
    steps = (await case.solve()).steps
    for count in range(1, len(steps) + 1):
        committed = steps[:count]
        resumed = (await case.solve(committed=committed)).steps[count:]
        paragraphs = "".join(step.text for step in committed).split("\n\n")
        whole = paragraphs if committed[-1].is_complete else paragraphs[:-1]
        written = "".join(step.text for step in resumed).split("\n\n")
        repeated = [paragraph for paragraph in whole if len(paragraph.strip()) > 1 and paragraph in written]
        require(not repeated, f"with {count} of {len(steps)} steps committed it writes {repeated[:1]} again")


async def commits_as_it_goes(case: PolicyCase) -> None:
    """`commits_as_it_goes`: whether it has just written what it commits, so that stopping it saves the rest."""
    if not build_policy(case.name, case.options).commits_as_it_goes:
        return
    async with case.runtime(chunk_tokens=1) as (runtime, engines):
        async with aclosing(runtime.solve(case.request())) as events:
            await anext(events, None)
            early = sum(engine.generated_tokens for engine in engines)
            async for _ in events:
                pass
        late = sum(engine.generated_tokens for engine in engines)
    require(early < late or not late, f"all {late} tokens are generated before the first step comes, and it says true")


async def closing_closes_all(case: PolicyCase) -> None:
    """Closing the iterator closes all that it has open, at any place, and so does cancelling the task that reads it."""
    for num_events in range(len((await case.solve()).steps) + 1):
        async with case.runtime(chunk_tokens=1) as (runtime, engines):
            events = runtime.solve(case.request())
            for _ in range(num_events):
                await anext(events, None)
            await events.aclose()
            _require_idle(engines, f"after {num_events} steps it is closed, and")
    for num_turns in (1, 2, 5, 10, 30, 100):
        async with case.runtime(chunk_tokens=1) as (runtime, engines):
            task = asyncio.create_task(runtime.complete(case.request()))
            for _ in range(num_turns):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            _require_idle(engines, "its task is cancelled, and")


async def ends_with_an_engine_that_dies(case: PolicyCase) -> None:
    """Where an engine dies, the request ends with EngineError or without that engine, and nothing stays open."""
    for num_turns in (5, 30):
        async with case.runtime(chunk_tokens=1) as (runtime, engines):
            task = asyncio.create_task(runtime.complete(case.request()))
            for _ in range(num_turns):
                await asyncio.sleep(0)
            for engine in engines:
                engine.kill()
            with suppress(EngineError):
                await task
            _require_idle(engines, "an engine died, and")


async def keeps_the_token_limit(case: PolicyCase) -> None:
    """`Limits.max_tokens`: tokens of the committed text; a step that goes beyond is left out whole, so none does."""
    full = await case.solve()
    for max_tokens in (1, 17):
        watched, completion = await case.watch(limits=Limits(max_tokens=max_tokens))
        excess = watched.num_tokens - max_tokens  # one where nothing was left, see `sampling_for`
        require(excess <= 1, f"of {max_tokens} tokens it yields {excess} too many")
        _require_limit_told(completion, full.text, f"max_tokens {max_tokens}")


async def keeps_the_other_limits(case: PolicyCase) -> None:
    """A limit that the runtime enforces ends the request, and what it cut off is not told as the end of the text."""
    full = await case.solve()
    limits = [Limits(max_engine_calls=calls) for calls in (1, 2, 3)]
    limits += [Limits(max_generated_tokens=tokens) for tokens in (1, 30)]
    for limit in limits:
        spent = f"{limit.max_engine_calls} calls" if limit.max_generated_tokens is None else "a budget"
        _require_limit_told(await case.solve(limits=limit), full.text, spent)


async def keeps_the_deadline(case: PolicyCase) -> None:
    """`Limits.deadline_s`: seconds from the start of `solve`; it is left then, whatever it waits for."""
    deadline_s = 0.2
    async with case.runtime(chunk_tokens=1, seconds_per_token=0.05) as (runtime, engines):
        started = time.perf_counter()
        task = asyncio.create_task(runtime.complete(case.request(limits=Limits(deadline_s=deadline_s))))
        done, _ = await asyncio.wait({task}, timeout=deadline_s + _SLACK_S)
        seconds = time.perf_counter() - started
        if not done:
            task.cancel()
            await asyncio.wait({task}, timeout=_PATIENCE_S)
            raise Broken(f"after {seconds:.1f} s it still runs, with a deadline of {deadline_s} s")
        await task
        require(seconds < deadline_s + _SLACK_S, f"it takes {seconds:.1f} s with a deadline of {deadline_s} s")
        _require_idle(engines, "its deadline has passed, and")


async def runs_no_more_streams_than_it_says(case: PolicyCase) -> None:
    """`num_streams`: how many generations it runs concurrently on one engine, at most."""
    num_streams = build_policy(case.name, case.options).num_streams
    async with case.runtime(chunk_tokens=1) as (runtime, engines):
        await runtime.complete(case.request())
    most = max((engine.most_running for engine in engines), default=0)
    require(most <= num_streams, f"it runs {most} on one engine and says {num_streams}")


_FORM_RULES: tuple[Rule[PolicyCase], ...] = (
    is_built_from_its_options,
    refuses_unknown_options,
    has_settings_that_can_be_stored,
)
_EVENT_RULES: tuple[Rule[PolicyCase], ...] = (asks_its_own_engines, yields_steps_and_last_a_stop)
_RULES: tuple[Rule[PolicyCase], ...] = (
    steps_are_their_tokens,
    gives_logprobs,
    continues_after_what_is_committed,
    commits_as_it_goes,
    closing_closes_all,
    ends_with_an_engine_that_dies,
    keeps_the_token_limit,
    keeps_the_other_limits,
    keeps_the_deadline,
    runs_no_more_streams_than_it_says,
)


class _WatchedEngine(ScriptedEngine):
    """Remembers the most that was asked of it."""

    def __init__(self, name: str, *arguments: Any, **settings: Any) -> None:
        super().__init__(name, *arguments, **settings)
        self.most_running = 0

    async def work(self, num_tokens: int, life: int) -> None:
        self.most_running = max(self.most_running, self.running)
        await super().work(num_tokens, life)


class _Watched(Policy):
    """A policy whose events are kept, also those that no runtime asks for."""

    def __init__(self, inner: Policy) -> None:
        self._inner = inner
        self.events: list[PolicyEvent] = []

    @property
    def engines(self) -> tuple[str, ...]:
        return self._inner.engines

    @property
    def tools(self) -> tuple[str, ...]:
        return self._inner.tools

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        raise NotImplementedError("it stands for a policy that is built")

    @property
    def num_tokens(self) -> int:
        return sum(len(event.token_ids) for event in self.events if isinstance(event, Step))

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        solving = self._inner.solve(request, engines)
        require(hasattr(solving, "aclose"), f"`solve` returns {solving!r:.60}, and no asynchronous generator")
        async with aclosing(solving) as events:
            async for event in events:
                self.events.append(event)
                if isinstance(event, Step):
                    yield event
        yield next((event for event in self.events if isinstance(event, Stop)), Stop(FinishReason.STOP))


async def _complete(runtime: Runtime, request: Request | Prepared) -> Completion:
    try:
        async with asyncio.timeout(_PATIENCE_S) as clock:
            return await runtime.complete(request)
    except TimeoutError:
        require(not clock.expired(), f"it has not ended after {_PATIENCE_S:g} s")
        raise


def _require_idle(engines: Sequence[_WatchedEngine], when: str) -> None:
    busy = [engine.name for engine in engines if engine.running]
    require(not busy, f"{when} a generation is still open on {', '.join(busy)}")


def _require_limit_told(completion: Completion, text: str, limit: str) -> None:
    is_told = completion.finish_reason is not FinishReason.STOP or completion.text == text
    require(is_told, f"with {limit} it ends by itself with the text {completion.text!r:.60}")
