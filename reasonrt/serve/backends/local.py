"""Requests solved in this process."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Self

from reasonrt.errors import EngineError, RequestError
from reasonrt.ports import ChecksHealth, Engine
from reasonrt.runtime import Prepared, Runtime
from reasonrt.serve.backends.base import Accepted, CertificateState, states_of
from reasonrt.serve.wire.errors import ABSENT, ApiError
from reasonrt.tasks import LONG_CHARACTERS, cancel, read_text
from reasonrt.types import Event, Report

_log = logging.getLogger(__name__)
_LOOK_S = 1.0
_SILENCE_S = 20.0
_MOST_CHARACTERS_PER_TOKEN = 32
_PROMPT_S = 0.5  # a live engine says so faster, a dead one takes seconds to start
_LOST_S = 600.0  # the largest models take minutes to start


class Worker:
    """A runtime behind the protocol. Engines that die are started again, whether or not a request waits for them.

    Args:
        runtime: the engines.
        engine_silence_s: an engine that does not answer for so long hangs, and is killed.
    """

    def __init__(self, runtime: Runtime, engine_silence_s: float = _SILENCE_S) -> None:
        self.runtime, self._engine_silence_s = runtime, engine_silence_s
        self.restarts = self.running = self.served = 0  # the last two: requests
        self._absent = {engine.name: time.monotonic() for engine in runtime.engines.values()}  # and since when
        self._is_started = False
        self._watches: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.runtime.__aenter__()
        self._absent.clear()
        self._is_started = True
        engines = {engine.name: engine for engine in self.runtime.engines.values()}
        self._watches = [asyncio.create_task(self._watch(engine)) for engine in engines.values()]
        answering = [engine for engine in engines.values() if isinstance(engine, ChecksHealth)]
        self._watches += [asyncio.create_task(self._listen(engine.name, engine)) for engine in answering]
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(*self._watches)
        await self.runtime.__aexit__()

    @property
    def ready(self) -> int:
        return int(not self._absent)

    def check_health(self) -> None:
        """Raises: EngineError: an engine does not come back; only a new process might help."""
        for name, since in self._absent.items():
            if time.monotonic() - since > _LOST_S:
                raise EngineError(f"engine {name!r} has been absent for more than {_LOST_S:g} s")

    @property
    def certificates(self) -> Sequence[CertificateState]:
        return states_of(self.runtime.certificates)

    async def solve(
        self, prepared: Prepared, session: str = "", is_patient: bool = True
    ) -> AsyncGenerator[Accepted | Report | Event, None]:
        """See the protocol; `session` means nothing to a single worker.

        Args:
            is_patient: wait for an engine that is being started again, as a single worker must.

        Raises:
            ApiError: with the code `ABSENT`, where such an engine is needed and not waited for.
        """
        accepted = await self._accept(prepared, is_patient)
        self.running += 1
        try:
            yield accepted
            solve = _with_reports if prepared.request.trace else Runtime.solve
            async with aclosing(solve(self.runtime, prepared)) as events:
                async for event in events:
                    yield event
        finally:
            self.running -= 1
            self.served += 1

    async def _accept(self, prepared: Prepared, is_patient: bool) -> Accepted:
        if not self._is_started:
            raise ApiError(503, "the engines are starting", code="starting", retry_after_s=5.0)
        request, engines = prepared.request, [prepared.engines[role] for role in prepared.policy.engines]
        names = frozenset(engine.name for engine in self.runtime.engines.values())
        if not engines:  # it asks other policies, which tell what they have no room for
            return Accepted(0, False, names)
        if not is_patient and any(engine.name in self._absent for engine in engines):
            raise ApiError(503, "an engine is being started again", code=ABSENT, retry_after_s=5.0)
        replaceable = getattr(prepared.policy, "replaceable_engines", ())
        needed = [prepared.engines[role] for role in prepared.policy.engines if role not in replaceable] or engines
        room = min(engine.max_model_len for engine in needed)
        num_characters = request.num_characters
        if num_characters > _MOST_CHARACTERS_PER_TOKEN * room:  # no need to find out exactly, which takes long
            raise _too_long(f"{num_characters} characters", room)
        first, *others = [*needed, *(engine for engine in engines if engine not in needed)]
        prompt = await read_text(num_characters, request.prompt, first.tokenizer)
        for engine in others if num_characters > LONG_CHARACTERS else ():  # policies find it then
            with suppress(RequestError):  # of a template that whoever asks for it will be told of
                await read_text(num_characters, request.prompt, engine.tokenizer)
        if len(prompt) >= room:
            raise _too_long(f"{len(prompt)} tokens", room)
        return Accepted(len(prompt), prepared.prompt_opens_thinking, names, prepared.call_marks)

    async def _watch(self, engine: Engine) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await self._bring_back(engine)

    async def _bring_back(self, engine: Engine) -> None:
        """Starting a live engine does nothing, starting a dead one brings it back: no request need find it dead."""
        starting = asyncio.ensure_future(engine.start())
        try:
            await asyncio.wait({starting}, timeout=_PROMPT_S)
            if not starting.done():
                _log.warning("engine %s is being started again", engine.name)
                self._absent.setdefault(engine.name, time.monotonic())
                self.restarts += 1
            await starting
            self._absent.pop(engine.name, None)
        except Exception as error:  # noqa: BLE001 (whatever it is, the engine is not there and is tried again)
            self._absent.setdefault(engine.name, time.monotonic())
            _log.error("engine %s does not start: %r", engine.name, error)
        finally:
            starting.cancel()

    async def _listen(self, name: str, engine: ChecksHealth) -> None:
        """A dead engine is found by what fails in it; one that hangs must be asked."""
        pause_s = self._engine_silence_s / 4
        while True:
            await asyncio.sleep(pause_s)
            try:
                await engine.check_health(self._engine_silence_s - pause_s)
            except Exception as error:  # noqa: BLE001 (whatever it is, it is asked again)
                self._absent.setdefault(name, time.monotonic())
                _log.error("%s", error)


async def _with_reports(runtime: Runtime, prepared: Prepared) -> AsyncGenerator[Report | Event, None]:
    """As `Runtime.solve`, with what the request reports between its events."""
    come: asyncio.Queue[Report | Event | Exception | None] = asyncio.Queue()
    request = replace(prepared.request, report=lambda known: come.put_nowait(Report(known)))

    async def work() -> None:
        try:
            async with aclosing(runtime.solve(replace(prepared, request=request))) as events:
                async for event in events:
                    come.put_nowait(event)
            come.put_nowait(None)
        except Exception as error:  # noqa: BLE001 (it is the reader's)
            come.put_nowait(error)

    working = asyncio.create_task(work())
    try:
        while (item := await come.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        await cancel(working)


def _too_long(size: str, room: int) -> ApiError:
    message = f"the prompt has {size}, there is room for {room - 1} tokens; shorten it"
    return ApiError(400, message, "messages", "context_length_exceeded")
