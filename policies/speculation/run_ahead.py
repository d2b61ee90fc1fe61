"""The draft's steps, written ahead of whoever judges them."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace

from reasonrt.ports import Engine
from reasonrt.tasks import cancel
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason, Sampling, Step
from reasonrt.writing import StepWriter, write_step


@dataclass(frozen=True, slots=True)
class Drafted:
    """A step of the draft's, or its beginning so far (`is_partial`), or its end token alone (`is_end`)."""

    step: Step
    is_partial: bool = False
    is_end: bool = False


async def run_ahead(
    engine: Engine,
    transcript: Transcript,
    sampling: Sampling,
    look_ahead: int,
    watch: bool = False,
    dropped: Callable[[Step], None] = lambda step: None,
) -> AsyncGenerator[Drafted | FinishReason, None]:
    """Steps after `transcript` while the engine writes on; the reason where the text ends.

    An end that stands in no step comes as one of its own before the reason: it wants to be judged as well.

    Args:
        look_ahead: so many steps may be written and not taken yet; with one more the engine is stopped, and the
            iterator ends without a reason. 0 is lock-step: one step, and the engine stops at its boundary.
        watch: yield the beginning of a step too, each time that it has grown.
        dropped: called at the end with each step, whole or begun, that was written and not taken.

    Closing the iterator aborts the engine's work.
    """
    if look_ahead == 0:
        step, reason = await write_step(engine, transcript, sampling)
        if step is not None:
            yield Drafted(step)
        elif reason is FinishReason.STOP:
            yield _end_of(engine)
        if reason is not None:
            yield reason
        return
    pump = _Pump(look_ahead, watch)
    task = asyncio.create_task(pump.run(engine, transcript, sampling))
    try:
        while True:
            event = await pump.take()
            if event is None:
                return
            yield event
    finally:
        await cancel(task)
        for step in pump.left():
            dropped(step)


def _end_of(engine: Engine) -> Drafted:
    return Drafted(Step("", (min(engine.tokenizer.eos_token_ids),), engine.name), is_end=True)


class _Pump:
    """Takes what an engine streams, so that it never waits for the reader; stops it when it is too far ahead."""

    def __init__(self, look_ahead: int, watch: bool) -> None:
        self._look_ahead, self._watch = look_ahead, watch
        self._queue: asyncio.Queue[Drafted | FinishReason | Exception | None] = asyncio.Queue()
        self._ahead = 0  # complete steps in the queue
        self._written: StepWriter | None = None

    async def take(self) -> Drafted | FinishReason | None:
        event = await self._queue.get()
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Drafted) and not event.is_partial and not event.is_end:
            self._ahead -= 1
        return event

    async def run(self, engine: Engine, transcript: Transcript, sampling: Sampling) -> None:
        try:
            self._written = written = StepWriter(engine, transcript)
            part = replace(sampling, by_step=not self._watch)
            async with aclosing(engine.generate(transcript.token_ids(engine).copy(), part)) as stream:
                async for delta in stream:
                    for step in written.take(delta):
                        self._put(step)
                    if delta.finish_reason:
                        is_stop = delta.finish_reason is FinishReason.STOP
                        if rest := written.rest(is_complete=is_stop):
                            self._put(rest)
                        elif is_stop:
                            self._queue.put_nowait(_end_of(engine))
                        self._queue.put_nowait(delta.finish_reason)
                    elif self._ahead > self._look_ahead:
                        break
                    elif self._watch and (begun := written.unfinished()).token_ids:
                        self._queue.put_nowait(Drafted(begun, is_partial=True))
            self._queue.put_nowait(None)
        except Exception as error:  # noqa: BLE001 (it is the reader's)
            self._queue.put_nowait(error)

    def left(self) -> Iterator[Step]:
        """What nobody has taken; the engine has been stopped."""
        while not self._queue.empty():
            event = self._queue.get_nowait()
            if isinstance(event, Drafted) and not event.is_partial and not event.is_end:
                yield event.step
        if self._written and (begun := self._written.unfinished()).token_ids:
            yield begun

    def _put(self, step: Step) -> None:
        self._ahead += 1
        self._queue.put_nowait(Drafted(step))
