"""What vLLM's passes bring becomes deltas: its own output processing runs, and a script stands for its core."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.outputs import LogprobsLists

from reasonrt.boundaries import Ends, StepSplitter, boundaries_of
from reasonrt.config import ZOO_FOLDER
from reasonrt.engines.deltas import MOST_HELD
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.engines.vllm import VllmEngine
from reasonrt.engines.vllm_settings import VllmSettings
from reasonrt.engines.whole import joined
from reasonrt.transcript import Transcript
from reasonrt.types import FinishReason as Reason
from reasonrt.types import Message, Sampling, Step, TokenDelta
from reasonrt.writing import write_steps

TEXT = "<think>\nSo 12 * 7 = 84.\n\nIt is\n- one,\n- two.\n\n\nNow 84 + 9 = 93.\n\n</think>\n\n\\boxed{93}"
HIGHEST = 2
ENDS = {FinishReason.STOP: Reason.STOP, FinishReason.LENGTH: Reason.LENGTH}


class ScriptedLLM:
    """As much of `AsyncLLM` as an engine asks for; each request gets what `script` says, one item per pass."""

    errored, output_handler = False, None

    def __init__(self, script: Sequence[Sequence[int]], end: FinishReason) -> None:
        self._script, self._end = script, end
        self._names = map(str, itertools.count())
        self.output_processor = OutputProcessor(None, log_stats=False)
        self.running: dict[str, Iterator[EngineCoreOutput]] = {}

    async def add_request(self, name: str, prompt: dict[str, Any], params: Any) -> RequestOutputCollector:
        request_id, ids = f"{name}-{next(self._names)}", prompt["prompt_token_ids"]
        queue = RequestOutputCollector(params.output_kind, request_id)
        request = EngineCoreRequest(request_id, ids, None, params, None, 0.0, None, None, None, external_req_id=name)
        self.output_processor.add_request(request, None, None, 0, queue)
        self.running[request_id] = self._outputs(request_id, params)
        return queue

    def _outputs(self, request_id: str, params: Any) -> Iterator[EngineCoreOutput]:
        for place, ids in enumerate(self._script):
            is_last = place == len(self._script) - 1
            logprobs = None if params.logprobs is None else self.logprobs(ids, params.logprobs)
            yield EngineCoreOutput(request_id, [*ids], logprobs, finish_reason=self._end if is_last else None)

    @staticmethod
    def logprobs(ids: Sequence[int], highest: int) -> LogprobsLists:
        """At each place the token's own first, which is lower than the highest."""
        tokens = np.array([[token, *(token + 1 + i for i in range(highest))] for token in ids])
        values = np.array([[-9.0 - token, *(-1.0 - token - i for i in range(highest))] for token in ids])
        return LogprobsLists(tokens, values, np.full(len(ids), highest + 1))

    def run_pass(self) -> None:
        """One pass for every request."""
        outputs = [output for passes in self.running.values() for output in itertools.islice(passes, 1)]
        self.output_processor.process_outputs(outputs)

    async def abort(self, request_id: str, internal: bool) -> None:
        self.output_processor.abort_requests([request_id], internal)
        del self.running[request_id]

    def shutdown(self, timeout: float | None = None) -> None:
        pass


@pytest.fixture(scope="module")
def engine() -> VllmEngine:
    return VllmEngine("target", ZOO_FOLDER / "nano-target", VllmSettings(speculative={"method": "ngram"}))


@dataclass
class Run:
    """What a reader got, and how many tokens it had after each pass."""

    stream: Any
    deltas: list[TokenDelta]
    read: list[int]

    @property
    def whole(self) -> TokenDelta:
        return joined(self.deltas)


async def run(
    engine: VllmEngine, script: Sequence[Sequence[int]], sampling: Sampling, end: FinishReason, every: int = 1
) -> Run:
    """A reader that has its turn after so many passes."""
    llm = engine._llm = ScriptedLLM(script, end)
    run = Run(engine.generate(prompt(engine), sampling), [], [])

    async def read() -> None:
        async for delta in run.stream:
            run.deltas.append(delta)

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    for index in range(len(script)):
        llm.run_pass()
        for _ in range(3 * (index % every == 0)):
            await asyncio.sleep(0)
        run.read.append(sum(len(delta.token_ids) for delta in run.deltas))
    await asyncio.wait_for(reading, 60)
    return run


def prompt(engine: VllmEngine) -> list[int]:
    return engine.tokenizer.chat((Message("user", "12 * 7 + 9"),))


IDS = HFTokenizer(ZOO_FOLDER / "nano-target").encode(TEXT * 2)
LENGTHS = st.integers(1, len(IDS))
PLACES = st.one_of(st.just([*range(1, len(IDS))]), st.lists(st.integers(1, len(IDS) - 1)))


def parts(places: Sequence[int], length: int) -> list[list[int]]:
    ends = sorted({0, length, *(place for place in places if place < length)})
    return [IDS[a:b] for a, b in itertools.pairwise(ends)]


SCRIPTS = st.builds(parts, PLACES, LENGTHS)
"""A text, or its beginning, in passes of one or more tokens."""


@given(script=SCRIPTS, by_step=st.booleans(), end=st.sampled_from(list(ENDS)), every=st.integers(1, 9))
@settings(deadline=None)
async def test_deltas_hold_what_the_passes_have_brought(
    engine: VllmEngine, script: list[list[int]], by_step: bool, end: FinishReason, every: int
) -> None:
    """However tokens are put together, and however late the reader is."""
    ids = [token_id for part in script for token_id in part]
    sampling = Sampling(900, logprobs=True, top_logprobs=HIGHEST)
    one_by_one = await run(engine, [[token_id] for token_id in ids], sampling, end)

    put_together = await run(engine, script, replace(sampling, by_step=by_step), end, every)

    assert put_together.whole == one_by_one.whole
    assert put_together.whole.token_ids == tuple(ids)
    assert put_together.whole.finish_reason is ENDS[end]
    assert put_together.whole.logprobs == tuple(-9.0 - token_id for token_id in ids)
    assert (put_together.stream.generated_tokens, put_together.stream.passes) == (len(ids), len(script))


@given(script=SCRIPTS)
@settings(deadline=None)
async def test_what_may_end_a_step_is_given_in_its_own_pass(engine: VllmEngine, script: list[list[int]]) -> None:
    done = await run(engine, script, Sampling(900, by_step=True), FinishReason.LENGTH)

    ends, written = Ends(boundaries_of(engine.tokenizer)), 0
    for part, read in zip(script, done.read, strict=True):
        seen = [ends.before(token_id) | ends.after(token_id) for token_id in part]
        written += len(part)
        assert read == written or (not any(seen) and written - read < MOST_HELD)
    assert done.read[0] == len(script[0])


async def test_tokens_within_a_step_are_one_delta(engine: VllmEngine) -> None:
    done = await run(engine, [[token_id] for token_id in IDS], Sampling(900, by_step=True), FinishReason.STOP)

    assert len(done.deltas) < len(IDS) / 4


async def test_steps_are_committed_as_soon_as_they_are_written(engine: VllmEngine) -> None:
    llm = engine._llm = ScriptedLLM([[token_id] for token_id in IDS], FinishReason.STOP)
    splitter, written = StepSplitter(boundaries_of(engine.tokenizer)), list[Step | Reason]()

    async def write() -> None:
        async for event in write_steps(engine, Transcript([Message("user", "?")], [engine]), Sampling(900)):
            written.append(event)

    writing = asyncio.create_task(write())
    await asyncio.sleep(0)
    num_steps = 0
    for token_id in IDS[:-1]:
        llm.run_pass()
        for _ in range(3):
            await asyncio.sleep(0)
        num_steps += len(splitter.feed([token_id]))
        assert len(written) == num_steps
    llm.run_pass()
    await writing


@given(script=SCRIPTS, passes=st.integers(0, 50), by_step=st.booleans(), is_whole=st.booleans())
@settings(deadline=None)
async def test_what_was_made_for_a_reader_that_has_left_is_counted(
    engine: VllmEngine, script: list[list[int]], passes: int, by_step: bool, is_whole: bool
) -> None:
    passes = min(passes, len(script) - 1)
    llm = engine._llm = ScriptedLLM(script, FinishReason.STOP)
    sampling = Sampling(900, by_step=by_step)
    stream: Any = engine.generate(prompt(engine), sampling)
    if is_whole:
        stream = engine.generate_whole(prompt(engine), [sampling])
    reading = asyncio.ensure_future(anext(stream))
    for _ in range(5):
        await asyncio.sleep(0)
    for _ in range(passes):
        llm.run_pass()
    reading.cancel()
    with suppress(asyncio.CancelledError):
        await reading
    await stream.aclose()

    assert stream.generated_tokens == sum(map(len, script[:passes]))
    assert stream.passes == passes
    assert not llm.running


async def test_a_whole_generation_is_one_output(engine: VllmEngine) -> None:
    llm = engine._llm = ScriptedLLM([IDS[:3], IDS[3:]], FinishReason.STOP)
    async with aclosing(engine.generate_whole(prompt(engine), [Sampling(100, logprobs=True)] * 2)) as stream:
        reading = asyncio.ensure_future(anext(stream))
        for _ in range(5):
            await asyncio.sleep(0)
        for _ in range(2):
            llm.run_pass()
        wholes = [await reading, await anext(stream)]

    assert [(index, whole.token_ids, len(whole.logprobs)) for index, whole in wholes] == [
        (0, tuple(IDS), len(IDS)),
        (1, tuple(IDS), len(IDS)),
    ]
    assert (stream.generated_tokens, stream.passes) == (2 * len(IDS), 4)
