"""The one entry: a `Runtime` owns the engines and solves requests by the policies that they name.

A policy says what to ask of which engine; the runtime does what is the same for all of them: it meters engines,
enforces the limits, and makes sure that leaving the iterator stops all work under it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Self

from reasonrt.engines.base import Engine
from reasonrt.errors import ConfigError, ReasonRTError, RequestError
from reasonrt.metering import CallLimitReached, Calls, MeteredEngine
from reasonrt.policies.base import Policy
from reasonrt.policies.registry import build_policy
from reasonrt.types import Completion, Event, FinishReason, PolicyEvent, Request, Step, Stop


class Runtime:
    """Engines by role (`target`, `draft`, ...), and the requests that run on them.

    Use it as an async context manager: entering starts the engines one after the other, leaving closes them.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.engines = dict(engines)

    @classmethod
    def from_config(cls, path: str | None = None, **changes: Any) -> Self:
        """A runtime by a YAML file (default: `reasonrt.yaml` if it is there, else the models that ship with us).

        Args:
            path: the file.
            changes: top-level keys of the file, over it.

        Raises:
            ConfigError: the file, or a key in it, cannot be used.
        """
        from reasonrt.config import build_engines, load_config

        return cls(build_engines(load_config(path, changes)))

    async def __aenter__(self) -> Self:
        started: list[Engine] = []
        try:
            for engine in self.engines.values():
                started.append(await engine.start())
        except BaseException:
            for engine in started:
                await engine.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for engine in self.engines.values():
            await engine.aclose()

    async def solve(self, request: Request) -> AsyncGenerator[Event, None]:
        """Yield each step as it is committed and, last, the `Completion`.

        Closing the iterator aborts what the request does in every engine.

        Raises:
            RequestError: the request cannot be served as it stands.
            EngineError: an engine died and the policy could not go on without it.
        """
        policy = build_policy(request.policy, request.options)
        calls = Calls(request.limits.max_engine_calls)
        engines = {name: MeteredEngine(self._engine(name), calls) for name in policy.engines}
        steps: list[Step] = []
        started = time.perf_counter()
        stop = Stop(FinishReason.STOP)
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
        usage = {name: engine.usage(committed[engine.name]) for name, engine in engines.items()}
        yield Completion(tuple(steps), stop.reason, usage, time.perf_counter() - started, stop.details)

    async def complete(self, request: Request) -> Completion:
        """`solve` without the steps in between."""
        async with aclosing(self.solve(request)) as events:
            async for event in events:
                if isinstance(event, Completion):
                    return event
        raise AssertionError("solve ends with a completion")

    async def solve_all(
        self, requests: Iterable[Request], concurrency: int = 8
    ) -> AsyncIterator[tuple[int, Completion | ReasonRTError]]:
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

    def _engine(self, role: str) -> Engine:
        if role not in self.engines:
            raise ConfigError(f"no engine has the role {role!r}; the configuration has {', '.join(self.engines)}")
        return self.engines[role]


async def _limited(
    policy: Policy, request: Request, engines: Mapping[str, Engine]
) -> AsyncGenerator[PolicyEvent, None]:
    """The policy's events up to the first limit that is met; what a limit cuts off is left out."""
    limits = request.limits
    loop = asyncio.get_running_loop()
    deadline = None if limits.deadline_s is None else loop.time() + limits.deadline_s
    left = limits.max_tokens
    async with aclosing(policy.solve(request, engines)) as events:
        while True:
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
