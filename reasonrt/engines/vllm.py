"""vLLM in process, as an engine: the only file that imports vllm.

Token ids go in and out; vLLM's own tokenizer and detokenizer are left out. The same settings work on CPUs and
GPUs. When the engine core dies, what runs on it fails with `EngineError` and the next call starts a new one.
"""

import asyncio
import atexit
import itertools
import logging
import multiprocessing
import os
import secrets
import signal
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from reasonrt.engines.fingerprint import engine_fingerprint, model_fingerprint
from reasonrt.engines.main_guard import require_main_guard
from reasonrt.engines.orphans import kill_family, remove_shared_memory_at_end
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.engines.vllm_settings import (
    DRAFT_ARGUMENT,
    VllmSettings,
    computed_settings,
    engine_arguments,
    quiet_vllm,
    score_task,
    start_environment,
)
from reasonrt.engines.whole import JoinedStreams
from reasonrt.errors import CapabilityError, ConfigError, EngineError, RequestError
from reasonrt.ports import Capability, Reading, Score, Verified, refuse_decoding
from reasonrt.types import GREEDY, FinishReason, Message, Sampling, TokenDelta

_MAX_REASON = 300  # characters of vLLM's own words
_log = logging.getLogger(__name__)
_LOOK_S = 0.1
_starting = threading.Lock()  # vLLM reads its environment while it starts


class VllmEngine:
    """One model in one `AsyncLLM`.

    Raises:
        ConfigError: `model` is no folder with a model and a tokenizer.
    """

    def __init__(self, name: str, model: Path, settings: VllmSettings | None = None) -> None:
        if not (model / "config.json").exists():
            raise ConfigError(f"engine {name!r}: {model} holds no model (no config.json); give a Hugging Face folder")
        self.name, self.model, self.settings = name, model, settings or VllmSettings()
        self.max_model_len = self.settings.max_model_len
        self.tokenizer = HFTokenizer(model, self.settings.boundary)
        scoring = {Capability.SCORE}
        generating = set(Capability) - scoring - {Capability.VERIFY_SAMPLED}  # found out at the start
        if not self.settings.structured:
            generating -= {Capability.STRUCTURE}
        self.capabilities = frozenset(scoring if self.settings.scores else generating)
        self.restarts = 0
        self._llm: Any = None
        self._startup: asyncio.Task[Any] | None = None
        self._started_before: list[BaseProcess] | None = None  # while vLLM builds this engine, processes of others
        self._is_closing = False
        self._ids = itertools.count()

    @cached_property
    def model_fingerprint(self) -> str:
        return model_fingerprint(self.model, self.tokenizer.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        return engine_fingerprint(self.model_fingerprint, computed_settings(self.settings))

    async def start(self) -> Self:
        await self._alive()
        return self

    async def aclose(self) -> None:
        self._is_closing = True
        try:
            while self._startup is not None and not self._startup.done():
                self._kill_what_starts()  # vLLM waits for it, and cannot be told to stop
                await asyncio.wait({self._startup}, timeout=_LOOK_S)
            llm, self._llm = self._llm, None
            if llm is not None:
                await _shut_down(llm)
        finally:
            self._is_closing = False

    async def check_health(self, within_s: float) -> None:
        llm, startup = self._llm, self._startup
        if llm is None or llm.errored or (startup is not None and not startup.done()):
            return  # the next call starts it, or waits for its start
        try:
            async with asyncio.timeout(within_s):
                await llm.collective_rpc("check_health")  # answered between two passes, whatever waits
        except TimeoutError:
            if llm.errored:
                return  # it has died meanwhile, which its next call finds out
            await asyncio.to_thread(_kill, _processes_of(llm))
            raise EngineError(f"engine {self.name!r} has not answered for {within_s:g} s, and was killed") from None
        except Exception:
            if not llm.errored:
                raise

    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> "_Stream":
        if self.settings.scores:
            raise CapabilityError(f"engine {self.name!r} is a scoring model and generates nothing")
        refuse_decoding(self.name, sampling)
        return _Stream(self, _prompt(prompt_token_ids, cache_salt), sampling)

    def generate_whole(
        self, prompt_token_ids: Sequence[int], samplings: Sequence[Sampling], cache_salt: str = ""
    ) -> "_WholeStream":
        if self.settings.scores:
            raise CapabilityError(f"engine {self.name!r} is a scoring model and generates nothing")
        refuse_decoding(self.name, *samplings)
        # one request each: of the choices of one request, vLLM would tell only when the last has ended
        prompt = _prompt(prompt_token_ids, cache_salt)
        return _WholeStream([_Stream(self, prompt, sampling, is_whole=True) for sampling in samplings])

    async def read(
        self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = ""
    ) -> Reading:
        output = await self._one_pass(prompt_token_ids, cache_salt, logprob_token_ids=list(candidate_ids))
        logprobs = output.outputs[0].logprobs[0]
        return Reading(tuple([float(logprobs[candidate].logprob) for candidate in candidate_ids]), _cached(output))

    async def verify(
        self,
        prompt_token_ids: Sequence[int],
        drafted_ids: Sequence[int],
        sampling: Sampling = GREEDY,
        cache_salt: str = "",
    ) -> Verified:
        token_ids = [*prompt_token_ids, *drafted_ids]
        asked = {"prompt_logprobs": 1} | self._drawn_at(len(drafted_ids), sampling)
        output = await self._one_pass(token_ids, cache_salt, skip_reading_prefix_cache=False, **asked)
        passes, cached = 1, _cached(output)
        if cached >= len(prompt_token_ids):  # of what is cached, vLLM tells nothing
            output = await self._one_pass(token_ids, cache_salt, skip_reading_prefix_cache=True, **asked)
            passes, cached = 2, cached + _cached(output)
        written: list[int] = []
        for drafted, place in zip(drafted_ids, output.prompt_logprobs[-len(drafted_ids) :], strict=True):
            written.append(min(place, key=lambda token_id: place[token_id].rank))
            if written[-1] != drafted:
                break
        return Verified(tuple(written), cached, passes)

    def _drawn_at(self, num_drafted: int, sampling: Sampling) -> dict[str, Any]:
        """What lets our worker give the token that it has drawn, in the place of the most probable one."""
        if not sampling.temperature:
            return {}
        if Capability.VERIFY_SAMPLED not in self.capabilities:
            raise CapabilityError(
                f"engine {self.name!r} verifies greedily alone, on this model runner of vLLM; verify at temperature 0"
            )
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        draws = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        return draws | {"extra_args": {DRAFT_ARGUMENT: [num_drafted, seed]}}

    async def _one_pass(self, token_ids: Sequence[int], cache_salt: str, **asked: Any) -> Any:
        """vLLM's output for a text that it reads and does not continue."""
        from vllm import SamplingParams

        if self.settings.scores:
            raise CapabilityError(f"engine {self.name!r} is a scoring model and has no next token")
        self._check_fits(token_ids, 1)
        params = SamplingParams(max_tokens=1, detokenize=False, **{"temperature": 0.0} | asked)
        llm = await self._alive()
        with _translated(self):
            outputs = [out async for out in llm.generate(_prompt(token_ids, cache_salt), params, self.next_id())]
        return outputs[-1]

    async def score(self, prompt_token_ids: Sequence[int], cache_salt: str = "") -> Score:
        from vllm import PoolingParams

        if not self.settings.scores:
            raise CapabilityError(f"engine {self.name!r} has no scalar head; set `scores: true` for a model that has")
        self._check_fits(prompt_token_ids, 0)
        params = PoolingParams(task=score_task(self.model), skip_reading_prefix_cache=False)
        llm = await self._alive()
        with _translated(self):
            outputs = [out async for out in llm.encode(_prompt(prompt_token_ids, cache_salt), params, self.next_id())]
        return Score(float(outputs[-1].outputs.data.flatten()[-1]), _cached(outputs[-1]))

    def next_id(self) -> str:
        return f"{self.name}-{next(self._ids)}"

    async def _alive(self) -> Any:
        """The running engine; started, or started anew after its death."""
        if self._llm is not None and (not self._llm.errored or asyncio.current_task() is self._startup):
            return self._llm
        if self._startup is None or self._startup.done():
            self._startup = asyncio.create_task(self._start_anew())
        return await asyncio.shield(self._startup)  # the engine's own: a caller that leaves does not end it

    async def _start_anew(self) -> Any:
        require_main_guard()
        if self._llm is not None:
            _log.warning("engine %s died and is started again", self.name)
            self.restarts += 1
            dead, self._llm = self._llm, None
            await _shut_down(dead)
        try:
            self._llm = await asyncio.to_thread(self._build)
        except Exception as error:
            if self._is_closing:
                raise EngineError(f"engine {self.name!r} was closed while it started") from None
            reason = " ".join(str(error).split())[:_MAX_REASON]
            raise EngineError(f"engine {self.name!r} did not start from {self.model}: {reason}") from error
        await asyncio.to_thread(lambda: self.fingerprint)  # it reads all weights, once: not in a request
        await self._warm_up()
        return self._llm

    def _build(self) -> Any:
        quiet_vllm()
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        on_cpu = current_platform.is_cpu()
        args = AsyncEngineArgs(**engine_arguments(self.model, self.settings, on_cpu))
        with _starting, _deaf_to_the_terminal():
            before = dict(os.environ)
            os.environ.update(start_environment(self.settings, on_cpu))
            try:
                if self._is_closing:
                    raise EngineError("it was closed")
                self._started_before = multiprocessing.active_children()
                llm = AsyncLLM.from_engine_args(args)
            finally:  # vLLM leaves LD_PRELOAD and more set, meant for its own processes
                self._started_before = None
                os.environ.clear()
                os.environ.update(before)
        for process in _processes_of(llm):
            remove_shared_memory_at_end(process.pid or 0)
        atexit.register(_end, weakref.ref(llm))
        return llm

    def _kill_what_starts(self) -> None:
        if (before := self._started_before) is not None:
            _kill([process for process in multiprocessing.active_children() if process not in before])

    async def _warm_up(self) -> None:
        """Make each kind of call once: the first one compiles for seconds."""
        with _translated(self):
            await self._llm.collective_rpc("give_way", args=(self.settings.niceness,))
        prompt = self.tokenizer.chat((Message("user", "1 + 1"),))
        if self.settings.scores:
            await self.score(prompt)
            return
        with _translated(self):
            await self._llm.collective_rpc("keep_reads_apart")
            if all(await self._llm.collective_rpc("draw_in_place_of_drafts")):
                self.capabilities |= {Capability.VERIFY_SAMPLED}
        for sampling in (Sampling(8, top_logprobs=20), Sampling(8, temperature=0.7, top_p=0.9, seed=0)):
            async for _ in self.generate(prompt, sampling):
                pass
        await self.read(prompt, prompt[:2])

    def _check_fits(self, prompt_token_ids: Sequence[int], new_tokens: int) -> None:
        if not prompt_token_ids or len(prompt_token_ids) + new_tokens > self.max_model_len:
            raise RequestError(
                f"engine {self.name!r}: {len(prompt_token_ids)} prompt tokens and {new_tokens} new ones do not fit "
                f"into max_model_len {self.max_model_len}; shorten the prompt or raise it"
            )


class _Stream:
    """One generation. It drains vLLM's queue itself, so that an abort still counts every token that was made."""

    def __init__(
        self, engine: VllmEngine, prompt: dict[str, Any], sampling: Sampling, *, is_whole: bool = False
    ) -> None:
        self._engine, self._prompt, self._sampling, self._is_whole = engine, prompt, sampling, is_whole
        self._llm: Any = None
        self._queue: Any = None
        self._is_over = False
        self._outputs = 0  # of vLLM's core
        self.generated_tokens = self.cached_tokens = 0

    @property
    def passes(self) -> int:
        return self._outputs if self._engine.settings.speculative else self.generated_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenDelta:
        if self._is_over:
            raise StopAsyncIteration
        with _translated(self._engine):
            if self._queue is None:
                await self._submit()
            output = self._queue.get_nowait() or await self._queue.get()
        return self._delta(output)

    async def _submit(self) -> None:
        self._engine._check_fits(self._prompt["prompt_token_ids"], self._sampling.max_tokens)
        self._llm = await self._engine._alive()
        self._queue = await self._llm.add_request(self._engine.next_id(), self._prompt, self._params())
        if self._engine.settings.speculative:
            self._count_outputs(self._queue)

    def _count_outputs(self, queue: Any) -> None:
        """vLLM's core hands over one output for each pass; the queue joins those that nobody has fetched."""
        put = queue.put

        def counting(output: Any) -> None:
            self._outputs += not isinstance(output, Exception) and bool(output.outputs[0].token_ids)
            put(output)

        queue.put = counting

    def _params(self) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        # where passes bring several tokens, they are counted by the outputs that come one by one
        is_whole = self._is_whole and not self._engine.settings.speculative
        sampling = self._sampling
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=sampling.seed,
            stop_token_ids=sorted(sampling.stop_token_ids | self._engine.tokenizer.eos_token_ids),
            logprobs=sampling.top_logprobs if sampling.logprobs or sampling.top_logprobs else None,
            flat_logprobs=True,
            detokenize=False,
            structured_outputs=StructuredOutputsParams(**sampling.structure) if sampling.structure else None,
            output_kind=RequestOutputKind.FINAL_ONLY if is_whole else RequestOutputKind.DELTA,
        )

    def _delta(self, output: Any) -> TokenDelta:
        written = output.outputs[0]
        token_ids = tuple(written.token_ids)
        self._count(output)
        logprobs: tuple[float, ...] = ()
        top: tuple[tuple[float, ...], ...] = ()
        if flat := written.logprobs:  # at each place the token's own, then the other highest or all of the highest
            values, highest = flat.logprobs, self._sampling.top_logprobs
            if self._sampling.logprobs:
                logprobs = tuple([values[start] for start in flat.start_indices])
            if highest:
                top = tuple([tuple(sorted(values[end - highest : end], reverse=True)) for end in flat.end_indices])
        reason = None
        if output.finished:
            self._is_over = True
            self._llm = self._queue = None
            reason = FinishReason.LENGTH if written.finish_reason == "length" else FinishReason.STOP
        return TokenDelta(token_ids, logprobs, reason, self.cached_tokens, top)

    def _count(self, output: Any) -> None:
        self.generated_tokens += len(output.outputs[0].token_ids)
        self.cached_tokens = _cached(output)

    async def aclose(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        llm, queue = self._llm, self._queue
        self._llm = self._queue = None
        if queue is None:
            return
        if llm.errored:
            self._count_dead(llm, queue)
            return
        # shielded: a cancelled caller must not leave the engine writing
        await asyncio.shield(llm.abort(queue.request_id, internal=True))
        left = queue.get_nowait()
        if left is not None:
            self._count(left)

    def _count_dead(self, llm: Any, queue: Any) -> None:
        """What a dead core had made of an answer that nobody will get."""
        state = llm.output_processor.request_states.get(queue.request_id)
        if state is not None:
            self.generated_tokens, self.cached_tokens = state.detokenizer.num_output_tokens(), state.num_cached_tokens


class _WholeStream(JoinedStreams):
    def __init__(self, streams: Sequence[_Stream]) -> None:
        super().__init__(streams)
        self._of_vllm = streams

    @property
    def cached_tokens(self) -> int:
        return sum(stream.cached_tokens for stream in self._of_vllm)  # also of those that were aborted


def _cached(output: Any) -> int:
    """Prompt tokens that vLLM read from its prefix cache."""
    return output.num_cached_tokens or 0


def _prompt(token_ids: Sequence[int], cache_salt: str) -> dict[str, Any]:
    return {"prompt_token_ids": list(token_ids)} | ({"cache_salt": cache_salt} if cache_salt else {})


@contextmanager
def _translated(engine: VllmEngine) -> Iterator[None]:
    """vLLM's errors in our words."""
    from vllm.exceptions import VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    try:
        yield
    except VLLMClientError as error:  # of a structure, for instance, that cannot be held
        raise RequestError(f"engine {engine.name!r} refuses it: {' '.join(str(error).split())[:_MAX_REASON]}") from None
    except (EngineDeadError, EngineGenerateError) as error:
        raise EngineError(f"engine {engine.name!r} died while it worked on this request; ask again") from error


@contextmanager
def _deaf_to_the_terminal() -> Iterator[None]:
    """Processes that this thread starts inherit what it blocks: Ctrl-C and a closed terminal are for us to handle."""
    resource_tracker.ensure_running()  # starting it would end the blocking; and it ends last, when it has cleaned up
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _processes_of(llm: Any) -> Sequence[BaseProcess]:
    processes: Sequence[BaseProcess] = llm.engine_core.resources.engine_manager.processes
    return processes


def _kill(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        if process.pid is not None and process.is_alive():
            kill_family(process.pid)


async def _shut_down(llm: Any) -> None:
    # its reader would take the end of the core for a crash
    if llm.output_handler is not None:
        llm.output_handler.cancel()
    await asyncio.to_thread(llm.shutdown)
    llm.shutdown = lambda timeout=None: None  # it would shut down again when it is collected


def _end(known: "weakref.ref[Any]") -> None:
    """Shut down what nobody has closed; it would do so as the interpreter ends, with half of its modules gone."""
    if (llm := known()) is not None:
        with suppress(Exception):
            llm.shutdown()
        llm.shutdown = lambda timeout=None: None
