"""vLLM in process, as an engine. Only `engines.vllm`, `vllm_calls` and `vllm_start` import vllm.

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
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from reasonrt.engines.compiled import remove_cut_off
from reasonrt.engines.deltas import Deltas
from reasonrt.engines.fingerprint import engine_fingerprint, model_fingerprint
from reasonrt.engines.main_guard import require_main_guard
from reasonrt.engines.orphans import kill_family, remove_shared_memory_at_end
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.engines.vllm_calls import ToolCalls, bounded
from reasonrt.engines.vllm_settings import (
    DRAFT_ARGUMENT,
    VllmSettings,
    computed_settings,
    cores_of,
    engine_arguments,
    importing_vllm,
    is_cpu_build,
    score_task,
    start_environment,
)
from reasonrt.engines.vllm_start import Leads, starting
from reasonrt.engines.whole import JoinedStreams
from reasonrt.errors import CapabilityError, ConfigError, EngineError, RequestError
from reasonrt.ports import Capability, Reading, Score, Verified, refuse_decoding
from reasonrt.types import GREEDY, FinishReason, FunctionTool, Message, ParsedAnswer, Sampling, TokenDelta

_MAX_REASON = 300  # characters of vLLM's own words
_log = logging.getLogger(__name__)
_LOOK_S = 0.1
_leads = Leads()
_LEAST_BLOCK = 16  # tokens, of a prefix cache


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
        wanted = None if self.settings.scores else self.settings.tool_parser
        self._calls = ToolCalls(name, wanted, self.tokenizer, model)
        scoring = {Capability.SCORE}
        generating = set(Capability) - scoring - {Capability.VERIFY_SAMPLED}  # found out at the start
        if not self.settings.structured:
            generating -= {Capability.STRUCTURE}
        if self._calls.parser is None:
            generating -= {Capability.TOOLS}
        self.capabilities = frozenset(scoring if self.settings.scores else generating)
        self.restarts = 0
        self._llm: Any = None
        self._startup: asyncio.Task[Any] | None = None
        self._started_before: list[BaseProcess] | None = None  # while vLLM begins processes of this one, all others
        self._cores: list[int] = []  # on CPUs, that of its first thread first
        self._begun: list[BaseProcess] = []  # while vLLM waits for them
        self._is_closing = False
        self._ids = itertools.count()

    @property
    def starts_beside_others(self) -> bool:
        return is_cpu_build() and self.settings.kv_cache_mib is not None  # else vLLM looks how much memory is free

    @property
    def tool_parser(self) -> str | None:
        """The name of vLLM's parser that reads calls of tools; None where there is none."""
        return self._calls.parser

    @property
    def call_marks(self) -> tuple[str, ...]:
        return self._calls.marks

    async def parse_calls(self, answer: str, tools: Sequence[FunctionTool], choice: str) -> ParsedAnswer:
        return await self._calls.parse(answer, tools, choice)

    async def structure_of_calls(
        self, tools: Sequence[FunctionTool], choice: str, *, is_parallel: bool, structure: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        return await self._calls.structure(tools, choice, is_parallel=is_parallel, structure=structure)

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
                _kill(self._starting_processes())  # vLLM waits for them, and cannot be told to stop
                await asyncio.wait({self._startup}, timeout=_LOOK_S)
            llm, self._llm = self._llm, None
            if llm is not None:
                await _shut_down(llm)
        finally:
            self._leave()
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
        drawn_at = self._drawn_at(len(drafted_ids), sampling)
        num_told = sampling.top_logprobs + 1 if drawn_at else max(1, sampling.top_logprobs)
        asked = {"prompt_logprobs": num_told} | drawn_at
        is_short = len(prompt_token_ids) < _LEAST_BLOCK  # whatever is cached is more than that
        output = await self._one_pass(token_ids, cache_salt, skip_reading_prefix_cache=is_short, **asked)
        passes, cached = 1, _cached(output)
        if cached >= len(prompt_token_ids):  # of what is cached, vLLM tells nothing
            output = await self._one_pass(token_ids, cache_salt, skip_reading_prefix_cache=True, **asked)
            passes, cached = 2, cached + _cached(output)
        places = output.prompt_logprobs[-len(drafted_ids) :]
        written: list[int] = []
        for drafted, place in zip(drafted_ids, places, strict=True):
            own_rank = num_told if drawn_at else 1
            written.append(next(token_id for token_id, known in place.items() if known.rank == own_rank))
            if written[-1] != drafted:
                break
        highest = sampling.top_logprobs
        tops = [_highest({token_id: place[token_id].logprob for token_id in place}, highest) for place in places]
        return Verified(
            tuple(written),
            cached,
            passes,
            tuple([place[drafted].logprob for drafted, place in zip(drafted_ids, places, strict=True)])
            if sampling.logprobs
            else (),
            tuple([logprobs for logprobs, _ in tops]) if highest else (),
            tuple([ids for _, ids in tops]) if highest else (),
            places[len(written) - 1][written[-1]].logprob if sampling.logprobs else None,
        )

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
        """The running engine; started, or started anew after its death. Nobody but its start has it unprepared."""
        startup = self._startup
        if startup is None or startup.done():
            if self._llm is not None and not self._llm.errored:
                return self._llm
            startup = self._startup = asyncio.create_task(self._start_anew())
        elif asyncio.current_task() is startup:
            return self._llm
        return await asyncio.shield(startup)  # the engine's own: a caller that leaves does not end it

    async def _start_anew(self) -> Any:
        require_main_guard()
        if self._llm is not None:
            _log.warning("engine %s died and is started again", self.name)
            self.restarts += 1
            dead, self._llm = self._llm, None
            await _shut_down(dead)
        if Capability.TOOLS in self.capabilities and not await self._calls.load():
            self.capabilities -= {Capability.TOOLS}
        self._leave()
        try:
            self._cores = _leads.take(cores_of(self.settings)) if is_cpu_build() else []
            self._llm = await asyncio.to_thread(self._build)
            await asyncio.to_thread(lambda: self.fingerprint)  # it reads all weights, once: not in a request
            await self._warm_up()
        except BaseException as error:
            self._leave()
            llm, self._llm = self._llm, None
            if llm is not None:  # its workers may lack what they are to do for us
                await _shut_down(llm)
            if not isinstance(error, Exception):
                raise
            if self._is_closing:
                raise EngineError(f"engine {self.name!r} was closed while it started") from None
            reason = " ".join(str(error).split())[:_MAX_REASON]
            raise EngineError(f"engine {self.name!r} did not start from {self.model}: {reason}") from error
        return self._llm

    def _build(self) -> Any:
        with importing_vllm():
            from vllm import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM

        on_cpu = current_platform.is_cpu()
        args = AsyncEngineArgs(**engine_arguments(self.model, self.settings, on_cpu))
        try:
            environment = start_environment(self.settings, on_cpu, self._cores)
            with starting(environment, self.starts_beside_others, self._note_begun):
                if folder := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
                    remove_cut_off(Path(folder))
                if self._is_closing:
                    raise EngineError("it was closed")
                self._started_before = multiprocessing.active_children()
                llm = AsyncLLM.from_engine_args(args)
        finally:
            self._begun = []
        for process in _processes_of(llm):
            remove_shared_memory_at_end(process.pid or 0)
        atexit.register(_end, weakref.ref(llm))
        return llm

    def _leave(self) -> None:
        if self._cores:
            _leads.give_back(self._cores[0])
        self._cores = []

    def _note_begun(self) -> None:
        """Which processes are this start's: while it had the environment, nobody else started any."""
        self._begun, self._started_before = self._starting_processes(), None

    def _starting_processes(self) -> list[BaseProcess]:
        if (before := self._started_before) is None:
            return self._begun
        return [process for process in multiprocessing.active_children() if process not in before]

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
            draws = all(await self._llm.collective_rpc("draw_in_place_of_drafts"))
        drawing = {Capability.VERIFY_SAMPLED}
        self.capabilities = self.capabilities | drawing if draws else self.capabilities - drawing
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
        self._passes = 0  # those that have been seen
        self.generated_tokens = self.cached_tokens = 0

    @property
    def passes(self) -> int:
        return self._passes if self._engine.settings.speculative else self.generated_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenDelta:
        if self._is_over:
            raise StopAsyncIteration
        if self._queue is None:
            with _translated(self._engine):
                await self._submit()
        try:
            output = self._queue.get_nowait() or await self._queue.get()
        except Exception as error:
            with _translated(self._engine):
                raise error
        return self._delta(output)

    async def _submit(self) -> None:
        self._engine._check_fits(self._prompt["prompt_token_ids"], self._sampling.max_tokens)
        self._llm = await self._engine._alive()
        structure = self._sampling.structure
        params = self._params(await asyncio.to_thread(bounded, structure) if structure else {})
        self._queue = await self._llm.add_request(self._engine.next_id(), self._prompt, params)
        state = self._llm.output_processor.request_states.get(self._queue.request_id)
        if state is not None and (self._sampling.by_step or self._engine.settings.speculative):
            self._watch(state)

    def _watch(self, state: Any) -> None:
        """See what each pass has brought before vLLM makes an output of it, which costs more than all else here.

        Passes are counted, and where nobody waits for a token there is no output for each.
        """
        make, written = state.make_request_output, state.detokenizer
        num_given = written.num_output_tokens()
        deltas = Deltas(self._engine.tokenizer, self._prompt["prompt_token_ids"]) if self._sampling.by_step else None

        def make_where_due(
            new_token_ids: list[int], pooling_output: Any, finish_reason: Any, *rest: Any, **more: Any
        ) -> Any:
            nonlocal num_given
            if new_token_ids:
                self._passes += 1
            if deltas and finish_reason is None and not deltas.is_due(new_token_ids):
                return None
            token_ids = written.output_token_ids[num_given:]
            num_given += len(token_ids)
            return make(token_ids, pooling_output, finish_reason, *rest, **more)

        state.make_request_output = make_where_due

    def _params(self, structure: Mapping[str, Any]) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling = self._sampling
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.penalties.presence,
            frequency_penalty=sampling.penalties.frequency,
            repetition_penalty=sampling.penalties.repetition,
            seed=sampling.seed,
            stop_token_ids=sorted(sampling.stop_token_ids | self._engine.tokenizer.eos_token_ids),
            logprobs=sampling.top_logprobs if sampling.logprobs or sampling.top_logprobs else None,
            flat_logprobs=True,
            detokenize=False,
            structured_outputs=StructuredOutputsParams(**structure) if structure else None,
            output_kind=RequestOutputKind.FINAL_ONLY if self._is_whole else RequestOutputKind.DELTA,
        )

    def _delta(self, output: Any) -> TokenDelta:
        written = output.outputs[0]
        token_ids = tuple(written.token_ids)
        self._count(output)
        logprobs: tuple[float, ...] = ()
        top: list[tuple[float, ...]] = []
        top_ids: list[tuple[int, ...]] = []
        if flat := written.logprobs:  # at each place the token's own, then the other highest or all of the highest
            values, highest = flat.logprobs, self._sampling.top_logprobs
            if self._sampling.logprobs:
                logprobs = tuple([values[start] for start in flat.start_indices])
            for end in flat.end_indices if highest else ():
                places = slice(end - highest, end)
                known = dict(zip(flat.token_ids[places], values[places], strict=True))
                found, ids = _highest(known, highest)
                top.append(found)
                top_ids.append(ids)
        reason = None
        if output.finished:
            self._is_over = True
            self._llm = self._queue = None
            reason = FinishReason.LENGTH if written.finish_reason == "length" else FinishReason.STOP
        return TokenDelta(token_ids, logprobs, reason, self.cached_tokens, tuple(top), tuple(top_ids))

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


def _highest(logprobs: Mapping[int, float], count: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The highest ones by token id, in descending order, and their ids."""
    ids = sorted(logprobs, key=lambda token_id: -logprobs[token_id])[:count]
    return tuple([logprobs[token_id] for token_id in ids]), tuple(ids)


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
