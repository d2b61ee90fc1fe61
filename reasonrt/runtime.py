"""The one entry: a `Runtime` owns the engines and solves requests by the policies that they name.

A policy says what to ask of which engine; the runtime does what is the same for all of them: it meters engines,
enforces the limits, and makes sure that leaving the iterator stops all work under it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, Self

from reasonrt.boundaries import boundaries_of
from reasonrt.errors import ConfigError, ReasonRTError, RequestError
from reasonrt.metering import CallLimitReached, Calls, MeteredEngine
from reasonrt.pace import Pace
from reasonrt.policies.registry import build_policy
from reasonrt.policies.stopping.service import Guards
from reasonrt.ports import Engine, PacedEngine, Policy
from reasonrt.thinking import opens_thinking
from reasonrt.types import Completion, Event, FinishReason, PolicyEvent, Request, Step, Stop


class Runtime:
    """Engines by role (`target`, `draft`, ...), and the requests that run on them.

    Use it as an async context manager: entering starts the engines one after the other, leaving closes them. One
    engine may have several roles.

    Args:
        engines: role to engine.
        options: policy to options that hold where a request says nothing else.

    Raises:
        ConfigError: two engines have the same name; steps and usage could not be told apart.
    """

    def __init__(self, engines: Mapping[str, Engine], options: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.engines = dict(engines)
        self.options = dict(options or {})
        self.paces = {engine.name: Pace() for engine in self.engines.values()}
        self.guards = Guards()  # of the certificates that requests are stopped under
        self._closing = AsyncExitStack()
        by_name: dict[str, Engine] = {}
        for role, engine in self.engines.items():
            if by_name.setdefault(engine.name, engine) is not engine:
                raise ConfigError(f"two engines are named {engine.name!r}; give the one in role {role!r} another name")

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
        from reasonrt.config import load_config
        from reasonrt.engines.build import build_engines

        config = load_config(path, changes)
        return cls(build_engines(config, roles), config.policies)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for engine in self.engines.values():
                stack.push_async_callback(engine.aclose)
                await engine.start()
                boundaries_of(engine.tokenizer)  # a large vocabulary takes a while: not in the first request
            self._closing = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._closing.aclose()

    async def solve(self, request: Request) -> AsyncGenerator[Event, None]:
        """Yield each step as it is committed and, last, the `Completion`.

        Closing the iterator aborts what the request does in every engine. A request that was cut off goes on from
        the steps that it has as `committed`; these are not yielded again.

        Raises:
            RequestError: the request cannot be served as it stands.
            ConfigError: no engine has a role that the policy asks for.
            EngineError: an engine died and the policy could not go on without it.
        """
        started = time.perf_counter()
        options = {**self.options.get(request.policy, {}), **request.options}
        policy = build_policy(request.policy, options, self.guards)
        calls = Calls(request.limits.max_engine_calls)
        roles = {role: self._engine(role) for role in policy.engines}
        roles |= {role: self.engines[role] for role in policy.optional_engines if role in self.engines}
        meters = {
            engine.name: MeteredEngine(engine, calls, self.paces[engine.name], request.cache_salt)
            for engine in roles.values()
        }
        engines = {role: meters[engine.name] for role, engine in roles.items()}
        steps: list[Step] = []
        stop = Stop(FinishReason.STOP)
        if not self.is_finished(request):
            async with aclosing(_limited(policy, request, engines)) as events:
                async for event in events:
                    if isinstance(event, Stop):
                        stop = event
                        break
                    steps.append(event)
                    yield event
        committed = Counter[str]()
        for step in steps:
            committed[step.author] += len(step.token_ids)
        usage = {name: meter.usage(committed[name]) for name, meter in meters.items()}
        seconds, tokenizers = time.perf_counter() - started, [engine.tokenizer for engine in roles.values()]
        is_open = any(opens_thinking(first.decode, first.chat(request.messages)) for first in tokenizers[:1])
        yield Completion((*request.committed, *steps), stop.reason, usage, seconds, stop.details, is_open)

    async def complete(self, request: Request) -> Completion:
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
        waiting = enumerate(requests)
        running: set[asyncio.Task[tuple[int, Completion | ReasonRTError]]] = set()

        async def run(index: int, request: Request) -> tuple[int, Completion | ReasonRTError]:
            try:
                return index, await self.complete(request)
            except ReasonRTError as error:
                return index, error

        try:
            while True:
                while len(running) < concurrency and (drawn := next(waiting, None)):
                    running.add(asyncio.create_task(run(*drawn)))
                if not running:
                    return
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def is_finished(self, request: Request) -> bool:
        """Whether its last committed step ends with an end token of its author."""
        if not request.committed or not (last := request.committed[-1]).token_ids:
            return False
        authors = (engine for engine in self.engines.values() if engine.name == last.author)
        return any(last.token_ids[-1] in author.tokenizer.eos_token_ids for author in authors)

    def _engine(self, role: str) -> Engine:
        if role not in self.engines:
            known = ", ".join(self.engines) or "none"
            raise ConfigError(f"no engine has the role {role!r}; there are {known}: add it or choose another policy")
        return self.engines[role]


async def _limited(
    policy: Policy, request: Request, engines: Mapping[str, PacedEngine]
) -> AsyncGenerator[PolicyEvent, None]:
    """The policy's events up to the first limit that is met; what a limit cuts off is left out."""
    limits = request.limits
    loop = asyncio.get_running_loop()
    deadline = None if limits.deadline_s is None else loop.time() + limits.deadline_s
    left = limits.max_tokens - sum(len(step.token_ids) for step in request.committed)
    async with aclosing(policy.solve(request, engines)) as events:
        while True:
            if deadline is not None and loop.time() >= deadline:  # a policy that never waits meets no timeout
                yield Stop(FinishReason.DEADLINE)
                return
            try:
                async with asyncio.timeout_at(deadline) as clock:
                    event = await anext(events)
            except TimeoutError:
                if not clock.expired():  # somebody else's
                    raise
                yield Stop(FinishReason.DEADLINE)
                return
            except CallLimitReached:
                yield Stop(FinishReason.CALLS)
                return
            except StopAsyncIteration:
                return
            if isinstance(event, Step):
                if len(event.token_ids) > left:
                    yield Stop(FinishReason.LENGTH)
                    return
                left -= len(event.token_ids)
            yield event
