"""The one entry: a `Runtime` owns engines and tools, and solves requests by the policies that they name.

A policy says what to ask of which engine; the runtime does what is the same for all of them: it merges defaults and
options, meters engines, enforces the limits, and makes sure that leaving the iterator stops all work under it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from reasonrt.boundaries import boundaries_of
from reasonrt.config import Config, load_config
from reasonrt.errors import ConfigError, EngineError, PluginError, ReasonRTError, RequestError, shown
from reasonrt.metering import MeteredEngine
from reasonrt.pace import Pace
from reasonrt.plugins import FAILURES, reason_of
from reasonrt.policies.answering import answered
from reasonrt.policies.echo import can_echo, echoed
from reasonrt.policies.registry import build_policy
from reasonrt.policies.stopping.policy import Stopping
from reasonrt.policies.stopping.service import ServedCertificates
from reasonrt.policies.structured import answering_role, can_hold_structure, is_written_apart, structured
from reasonrt.policies.tool_calls import hold_to_calls, parse_answer, refuse_tools
from reasonrt.ports import (
    Allowance,
    Capability,
    ChecksStructure,
    Engine,
    Engines,
    Policy,
    RequestEngine,
    Tool,
    calling,
    is_known,
)
from reasonrt.scopes import LimitReached, Scope
from reasonrt.sync import SyncRuntime
from reasonrt.tasks import Expired, before, gather, run_bounded
from reasonrt.thinking import opens_thinking
from reasonrt.tools import default_tools
from reasonrt.transcript import vocabulary_of
from reasonrt.types import (
    NO_PENALTIES,
    THE_RUNTIMES,
    Completion,
    EngineUsage,
    Event,
    FinishReason,
    Limits,
    PolicyEvent,
    Request,
    Step,
    Stop,
    Usage,
    total_usage,
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request with its policy: all that is known before any engine is asked.

    Attributes:
        request: with its limits; its options are those that it asked for.
        policy: built from the defaults of the runtime and these options.
        engines: by role, those that the policy asks and those that it makes use of; not metered.
    """

    request: Request
    policy: Policy
    engines: Mapping[str, Engine]

    @property
    def is_finished(self) -> bool:
        """Whether the last committed step ends with an end token of its author."""
        if not self.request.committed or not (last := self.request.committed[-1]).token_ids:
            return False
        authors = (engine for engine in self.engines.values() if engine.name == last.author)
        return any(last.token_ids[-1] in author.tokenizer.eos_token_ids for author in authors)

    @property
    def call_marks(self) -> tuple[str, ...] | None:
        """What a call of a tool begins with in the answer, as in `CallsTools.call_marks`; None without tools."""
        if not self.request.tools:
            return None
        return calling(self.engines[answering_role(self.policy)]).call_marks

    @property
    def prompt_opens_thinking(self) -> bool:
        """Whether the first engine's chat template has opened the thinking: the text then begins inside of it."""
        if not self.policy.engines:
            return False
        tokenizer = self.engines[self.policy.engines[0]].tokenizer
        return opens_thinking(tokenizer.decode, self.request.prompt(tokenizer))

    @property
    def why_no_logprobs(self) -> str:
        """Why its tokens cannot have log-probabilities; "" where they can."""
        if not self.policy.gives_logprobs:
            return f"policy {self.request.policy} gives no log-probabilities"
        for engine in (self.engines[role] for role in self.policy.engines):
            if is_known(engine) and Capability.LOGPROBS not in engine.capabilities:
                return f"engine {engine.name!r} gives no log-probabilities"
        return ""

    @property
    def why_no_echo(self) -> str:
        """Why its prompt cannot come back; "" where it can."""
        if not can_echo(self.policy):
            return f"policy {self.request.policy} returns no prompt, as target and draft do"
        engine = self.engines[self.policy.engines[0]]
        if self.request.logprobs is not None and Capability.VERIFY not in engine.capabilities:
            return f"engine {engine.name!r} does not say how likely a prompt is"
        return "a structure is that of an answer, and a prompt is continued" if self.request.structure else ""


class Runtime:
    """Engines by role (`target`, `draft`, ...) and tools by name, and the requests that run on them.

    Use it as an async context manager: entering starts engines and tools, leaving closes them. One
    engine may have several roles. It belongs to the event loop that it is entered in; code without one has `sync`.

    Args:
        engines: role to engine.
        options: policy to options that hold where a request says nothing else.
        tools: name to tool, over those of `tools.default_tools`.
        limits: of a request that brings none of its own.

    Raises:
        ConfigError: two engines have the same name; steps and usage could not be told apart.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        options: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        tools: Mapping[str, Tool] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.engines, self.tools = dict(engines), default_tools() | dict(tools or {})
        self.options, self.limits = dict(options or {}), limits or Limits()
        self.paces = {engine.name: Pace() for engine in self.engines.values()}
        self.certificates = ServedCertificates()  # that requests are stopped under
        self._closing = AsyncExitStack()
        self._loop: asyncio.AbstractEventLoop | None = None
        by_name: dict[str, Engine] = {}
        for role, engine in self.engines.items():
            if by_name.setdefault(engine.name, engine) is not engine:
                raise ConfigError(
                    f"two engines are named {engine.name!r}; give the one in role {shown(role)} another name"
                )

    @classmethod
    def from_config(cls, path: str | Path | None = None, *, roles: Sequence[str] | None = None, **changes: Any) -> Self:
        """A runtime by a YAML file (default: `reasonrt.yaml` if it is there, else the models that ship with us).

        Args:
            path: the file.
            roles: which of its engines; None is all.
            changes: top-level keys of the file, over it.

        Raises:
            ConfigError: the file, or a key in it, cannot be used.
        """
        return cls.of(load_config(path, changes), roles=roles)

    @classmethod
    def of(
        cls,
        config: Config,
        *,
        roles: Iterable[str] | None = None,
        policies: Iterable[tuple[str, Mapping[str, Any]]] = (),
    ) -> Self:
        """A runtime by a configuration that has been read.

        Args:
            roles: which of its engines; None is all.
            policies: in place of `roles`, names and options of the policies that are to be solved by; of the engines,
                those that they ask.

        Raises:
            ConfigError: an engine or a tool of it cannot be built.
            RequestError: an option of a policy is not allowed.
        """
        from reasonrt.engines.build import build_engines
        from reasonrt.tools import build_tools

        roles = roles_of(config, policies) if policies else roles
        engines = build_engines(config, None if roles is None else set(roles))
        return cls(engines, config.policies, tools=build_tools(config), limits=config.limits.to_limits())

    @classmethod
    def sync(
        cls, path: str | Path | None = None, *, roles: Sequence[str] | None = None, **changes: Any
    ) -> "SyncRuntime[Runtime]":
        """As `from_config`, for code without `async`, in a script or in a notebook.

        Raises:
            ConfigError: the file, or a key in it, cannot be used.
        """
        return SyncRuntime(cls.from_config(path, roles=roles, **changes))

    async def __aenter__(self) -> Self:
        self.bind()
        async with AsyncExitStack() as stack:
            stack.callback(setattr, self, "_loop", None)
            stack.callback(self.certificates.close)
            begun: list[Engine | Tool] = []
            stack.push_async_callback(_close, begun)
            await _start([*self.engines.values(), *self.tools.values()], begun)
            for engine in self.engines.values():
                boundaries_of(engine.tokenizer)  # a large vocabulary takes a while: not in the first request
                vocabulary_of(engine.tokenizer)
            self.check_defaults()
            self._closing = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._closing.aclose()

    def bind(self) -> None:
        """Belong to the running event loop: in another one, engines that run there would seem to have died.

        Raises:
            EngineError: it belongs to another one.
        """
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise EngineError(
                "this runtime was started in another event loop, and its engines belong to that one; make all calls in "
                "one asyncio.run(), or use Runtime.sync()"
            )
        self._loop = loop

    def prepare(self, request: Request) -> Prepared:
        """The only place where defaults and options are merged, and where a policy is built.

        Raises:
            RequestError: there is no such policy, an option is not allowed, or the policy does not take the request.
            ConfigError: no engine has a role that the policy asks for, or it uses a tool that is not there.
        """
        if request.limits is THE_RUNTIMES:
            request = replace(request, limits=self.limits)
        if request.tool_choice == "none":
            request = replace(request, tools=(), tool_choice="auto")
        policy = self._build(request.policy, request.options)
        engines = {role: self._engine(role) for role in policy.engines}
        engines |= {role: self.engines[role] for role in policy.optional_engines if role in self.engines}
        if missing := [name for name in policy.tools if name not in self.tools]:
            known = ", ".join(self.tools) or "none"
            raise ConfigError(
                f"policy {request.policy} uses a tool {shown(missing[0])}; there are {known}: configure it"
            )
        policy.accept(request, engines)
        cuts = request.top_k or request.min_p or request.penalties != NO_PENALTIES
        if cuts and not policy.has_one_author:
            raise RequestError(
                f"policy {request.policy} does not draw by top_k, min_p and penalties alone; leave them out"
            )
        if request.structure and not can_hold_structure(policy, engines):
            raise RequestError(
                f"policy {request.policy} cannot hold its answer to a structure here; the engine that writes it must "
                "be one of vLLM with `structured: true`, or a server that holds texts to one"
            )
        if request.structure and engines:
            writer = engines[answering_role(policy)]
            if isinstance(writer, ChecksStructure) and is_known(writer):
                writer.check_structure(request.structure)
        refuse_tools(request, policy, engines)
        if request.thinking_tokens is not None and policy.reads_context:
            raise RequestError(f"policy {request.policy} commits no thinking; leave its limit out")
        prepared = Prepared(request, policy, engines)
        if request.logprobs is not None and (reason := prepared.why_no_logprobs):
            raise RequestError(f"{reason}; leave them out, or choose another policy")
        if request.echo and (reason := prepared.why_no_echo):
            raise RequestError(f"{reason}; leave echo out")
        return prepared

    def asked_roles(
        self, policy: str, options: Mapping[str, Any] | None = None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The engines that a policy needs here, and those that it makes use of, whether or not they are there.

        Raises:
            RequestError, ConfigError: as `prepare`.
        """
        built = self._build(policy, options or {})
        return tuple(built.engines), tuple(built.optional_engines)

    def reads_context(self, policy: str, options: Mapping[str, Any] | None = None) -> bool:
        """Whether a policy reads documents beside the messages.

        Raises:
            RequestError: as `prepare`.
        """
        return self._build(policy, options or {}).reads_context

    def solve(self, request: Request | Prepared) -> AsyncGenerator[Event, None]:
        """Yield each step as it is committed and, last, the `Completion`.

        Closing the iterator aborts what the request does in every engine. A request that was cut off continues after
        the steps that it has as `committed`; these are not yielded again.

        Raises:
            RequestError: the request cannot be served as it stands; raised by this call.
            ConfigError: no engine has a role that the policy asks for; raised by this call.
            EngineError: an engine died and the policy could not continue without it; raised by the iterator.
        """
        prepared = request if isinstance(request, Prepared) else self.prepare(request)
        return _solve(prepared, _RequestEngines(self, prepared, Scope(prepared.request.limits)))

    async def complete(self, request: Request | Prepared) -> Completion:
        """`solve` without the steps in between."""
        async with aclosing(self.solve(request)) as events:
            async for event in events:
                if isinstance(event, Completion):
                    return event
        raise AssertionError("solve ends with a completion")

    async def solve_all(
        self, requests: Iterable[Request], concurrency: int = 8
    ) -> AsyncGenerator[tuple[int, Completion | ReasonRTError], None]:
        """Solve many requests, `concurrency` at a time; yield (index, result) as they end.

        A request that fails yields its error and costs the others nothing. The requests are taken from their
        iterable as places become free.
        """
        if concurrency < 1:
            raise RequestError(f"concurrency must be at least 1, got {concurrency}")

        async def run(index: int, request: Request) -> tuple[int, Completion | ReasonRTError]:
            try:
                return index, await self.complete(request)
            except ReasonRTError as error:
                return index, error

        calls = (partial(run, index, request) for index, request in enumerate(requests))
        async with aclosing(run_bounded(calls, concurrency)) as results:
            async for result in results:
                yield result

    def _build(self, policy: str, options: Mapping[str, Any]) -> Policy:
        return build_policy(policy, {**self.options.get(policy, {}), **options}, self.certificates)

    def _engine(self, role: str) -> Engine:
        if role not in self.engines:
            raise _no_engine(role, self.engines)
        return self.engines[role]

    def check_defaults(self) -> None:
        """Build the configured policies, and open the files that they name; done when the runtime starts.

        Raises:
            ConfigError: an option is not allowed, or a file cannot be used here; names it.
        """
        for name, options in self.options.items():
            with suppress(PluginError):  # named in the log, and left out
                self.check_policy(name, {}, opens_files=bool(options))

    def check_policy(self, name: str, options: Mapping[str, Any], *, opens_files: bool = True) -> None:
        """Build a policy from its defaults and `options`, and open the files that these name.

        Raises:
            ConfigError: an option is not allowed, or a file cannot be used here; names it.
        """
        try:
            policy = self._build(name, options)
        except RequestError as error:
            raise ConfigError(f"policies.{name}: {error}") from None
        engines = {role: self.engines[role] for role in self.engines if role in policy.engines}
        engines |= {role: self.engines[role] for role in policy.optional_engines if role in self.engines}
        if opens_files and set(policy.engines) <= set(engines):  # a part of the engines serves a part of the policies
            _check_files(name, policy, engines)


def roles_of(config: Config, policies: Iterable[tuple[str, Mapping[str, Any]]]) -> set[str]:
    """The engines that policies, by name and options, need or make use of under a configuration; none is built.

    Raises:
        ConfigError: it has no engine in a role that is needed.
        RequestError: there is no such policy, or an option is not allowed.
    """
    asking, roles = Runtime({}, config.policies), set[str]()
    for name, options in policies:
        needed, used = asking.asked_roles(name, options)
        if missing := [role for role in needed if role not in config.engines]:
            raise _no_engine(missing[0], config.engines)
        roles |= {*needed, *used}
    return roles


async def _start(parts: Iterable[Engine | Tool], begun: list[Engine | Tool]) -> None:
    """All of them: one after the other, and then side by side those that say that they may start so.

    These change what processes inherit that begin meanwhile, so that no other start is beside them.

    Args:
        begun: takes each before it starts.
    """
    different = list({id(part): part for part in parts}.values())  # one engine may have several roles
    beside = [part for part in different if getattr(part, "starts_beside_others", False)]
    for part in different:
        if part not in beside:
            begun.append(part)
            await part.start()
    begun += beside
    await gather(*(part.start() for part in beside))


async def _close(parts: Sequence[Engine | Tool]) -> None:
    """All of them, side by side, whatever becomes of one; then its error is raised."""
    for error in await asyncio.gather(*(part.aclose() for part in parts), return_exceptions=True):
        if isinstance(error, BaseException):
            raise error


def _no_engine(role: str, known: Iterable[str]) -> ConfigError:
    there = ", ".join(known) or "none"
    return ConfigError(f"no engine has the role {shown(role)}; there are {there}: add it or choose another policy")


def _check_files(name: str, policy: Policy, engines: Mapping[str, Engine]) -> None:
    try:
        policy.check(engines)
    except ReasonRTError:
        raise
    except FAILURES as error:  # it may be code of others
        raise ConfigError(f"policies.{name}: {reason_of(error)}") from error


class _RequestEngines(Engines):
    """The metered engines of one request, its tools, and its sub-requests."""

    def __init__(self, runtime: Runtime, prepared: Prepared, scope: Scope) -> None:
        self.runtime, self._request, self.scope = runtime, prepared.request, scope
        self.steps: list[Step] = []  # that the request has committed on them
        self._told: list[tuple[Callable[[], Mapping[str, Any]], Callable[[], Mapping[str, str]]]] = []
        self._meters = {
            engine.name: MeteredEngine(engine, scope, runtime.paces[engine.name], prepared.request.cache_salt)
            for engine in prepared.engines.values()
        }
        self._by_role = {role: self._meters[engine.name] for role, engine in prepared.engines.items()}
        self._tools = MappingProxyType({name: runtime.tools[name] for name in prepared.policy.tools})
        self._below: list[Usage] = []  # what sub-requests have used

    def __getitem__(self, role: str) -> RequestEngine:
        return self._by_role[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_role)

    def __len__(self) -> int:
        return len(self._by_role)

    @property
    def allowance(self) -> Allowance:
        return self.scope.allowance

    @property
    def tools(self) -> Mapping[str, Any]:
        return self._tools

    def at_limit(
        self, details: Callable[[], Mapping[str, Any]], warnings: Callable[[], Mapping[str, str]] = dict
    ) -> None:
        self._told.append((details, warnings))

    @property
    def told(self) -> Mapping[str, Any]:
        told: dict[str, Any] = {}
        for tell_details, _ in self._told:
            told.update(tell_details())
        return told

    def ended_by(self, reason: FinishReason) -> Stop:
        """In the place of the policy's own, where a limit has ended the request."""
        warnings: dict[str, str] = {}
        for _, tell_warnings in self._told:
            warnings.update(tell_warnings())
        return Stop(reason, self.told, warnings)

    async def solve(self, request: Request) -> AsyncGenerator[Event, None]:
        prepared = self.runtime.prepare(replace(request, cache_salt=self._request.cache_salt, report=None))
        async with self.scope.nested(prepared.request.limits) as scope:
            engines = _RequestEngines(self.runtime, prepared, scope)
            try:
                async with aclosing(_solve(prepared, engines)) as events:
                    async for event in events:
                        yield event
            finally:
                self._below.append(engines.spent())

    def usage(self) -> dict[str, EngineUsage]:
        """What the request has spent, sub-requests included; what it commits of their text is not thrown away."""
        committed = Counter[str]()
        for step in self.steps:
            committed[step.author] += len(step.token_ids)
        spent = self.spent().items()
        # as in `MeteredEngine.usage`, never fewer than none
        return {name: replace(usage, discarded=max(0, usage.discarded - committed[name])) for name, usage in spent}

    def spent(self) -> Usage:
        """As `usage`, with nothing committed: for a sub-request, the one that asked for it says what it commits."""
        return total_usage([{name: meter.usage(0) for name, meter in self._meters.items()}, *self._below])


async def _solve(prepared: Prepared, engines: _RequestEngines) -> AsyncGenerator[Event, None]:
    """The policy's steps up to the first limit that is met, and the completion; what a limit cuts off is left out."""
    engines.runtime.bind()
    started = time.perf_counter()
    request, steps = prepared.request, engines.steps
    left = request.limits.max_tokens - sum(len(step.token_ids) for step in request.committed)
    stop = Stop(FinishReason.STOP)
    try:
        async with aclosing(before(engines.scope.deadline, _events(prepared, engines))) as events:
            async for event in events:
                if isinstance(event, Stop):
                    stop = event
                    break
                left -= len(event.token_ids)
                if left < 0:
                    stop = engines.ended_by(FinishReason.LENGTH)
                    request.tell_discarded(event, "limit")
                    break
                steps.append(event)
                yield event
    except Expired:
        stop = engines.ended_by(FinishReason.DEADLINE)
    except LimitReached as limit:
        stop = engines.ended_by(limit.reason)
    if is_written_apart(prepared.policy, request):  # the policy itself has not come to its end
        told = engines.ended_by(stop.reason)
        stop = Stop(stop.reason, {**told.details, **stop.details}, {**told.warnings, **stop.warnings})
    whole, is_open = (*request.committed, *steps), prepared.prompt_opens_thinking
    ended = Completion(whole, stop.reason, {}, 0.0, stop.details, is_open, stop.warnings)
    if request.tools:
        ended = await parse_answer(ended, request, engines[answering_role(prepared.policy)])
    yield replace(ended, usage=engines.usage(), seconds=time.perf_counter() - started)


async def _events(prepared: Prepared, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
    """Of the policy, with an answer; a rule that gives up asks for none."""
    policy, request, is_finished = prepared.policy, prepared.request, prepared.is_finished
    if request.tools:
        request = await hold_to_calls(request, engines[answering_role(policy)])
    if request.echo:
        events = echoed(policy, request, engines)
    elif isinstance(policy, Stopping) and not is_finished:
        events = policy.solve(request, engines)
    else:
        inner = policy.inner if isinstance(policy, Stopping) else policy
        solve = structured if is_written_apart(inner, request) else answered
        events = solve(inner, request, engines, is_finished=is_finished)
    async with aclosing(events):
        async for event in events:
            yield event
