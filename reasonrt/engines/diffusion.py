"""Block diffusion as an engine: a thread of its own runs one forward pass after the other over all requests.

Requests go to that thread, and settled tokens come back, through queues: the event loop never waits for a pass. When
the thread dies, what runs in it fails with `EngineError` and the next call starts a new one.
"""

import asyncio
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reasonrt.boundaries import BoundaryKind
from reasonrt.diffusion.batcher import Batcher
from reasonrt.diffusion.cache import KvCache
from reasonrt.diffusion.canvas import Canvas
from reasonrt.diffusion.checkpoints import load_model, read_shape
from reasonrt.diffusion.decoding import Decoding, over_defaults, read_decoding
from reasonrt.diffusion.job import Job
from reasonrt.diffusion.model import DiffusionModel
from reasonrt.diffusion.sampling import Drawing
from reasonrt.diffusion.shape import ModelShape
from reasonrt.diffusion.verifier import Verifier
from reasonrt.diffusion.writers import ADAPTIVE_WINDOW, Settled, Task
from reasonrt.engines.fingerprint import engine_fingerprint, model_fingerprint
from reasonrt.engines.tokenizer import HFTokenizer
from reasonrt.errors import CapabilityError, ConfigError, EngineError, ReasonRTError, RequestError
from reasonrt.kernels.online import RowStats
from reasonrt.ports import Capability, Reading, Score, Verified
from reasonrt.types import GREEDY, NO_PENALTIES, Message, Sampling, TokenDelta

_VERIFYING = {Capability.VERIFY, Capability.VERIFY_SAMPLED}
_FREE_SHARE = 0.9  # of the free memory, for the cache
_MAX_REASON = 300  # characters
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DiffusionSettings:
    """How one model runs.

    Attributes:
        max_model_len: prompt and generation together, tokens; less where the model has not so many positions and one
            block more.
        max_num_seqs: requests that run concurrently; more wait.
        kv_cache_mib: memory of the key-value cache at most; None: what `max_num_seqs` requests of `max_model_len`
            tokens take. Where that is not free, fewer requests run concurrently.
        cores: CPU cores of the thread that computes and of its helpers, such as "0" or "0-1"; None takes all.
        niceness: 0 to 19, of these threads.
        dtype: of weights and activations; None is bfloat16 on GPUs and float32 on CPUs.
        compile: torch.compile: a slow start, faster passes; None does so on GPUs alone.
        reference_model: of `residual_start: reference`.
        passes_together: so many passes follow each other on the device before the host sees what they predict, where
            all requests commit by `threshold` and draw nothing; for GPUs, which would wait for the host otherwise. The
            last passes of a block may be in vain.
        decoding: options of `diffusion.decoding.Decoding` for requests that do not name them.
        boundary: what ends a step of this model's.
    """

    max_model_len: int = 1024
    max_num_seqs: int = 32
    kv_cache_mib: int | None = None
    cores: str | None = None
    niceness: int = 0
    dtype: str | None = None
    compile: bool | None = None
    reference_model: Path | None = None
    passes_together: int = 1
    decoding: Mapping[str, Any] = field(default_factory=dict)
    boundary: BoundaryKind = "blank_line"


class DiffusionEngine:
    """One block-diffusion model.

    Its log-probabilities are those of the pass that committed the token, whatever later passes expect there.
    `generated_tokens` counts tokens that have settled; what was committed after the end of the text, or in a block
    whose stream was closed, is work that `passes` and `canvas_positions` tell of. `verify` speaks of what the model
    writes token by token, which is what `generate` writes with the strategy `self_speculation`.

    Raises:
        ConfigError: `model` is no folder with a model and a tokenizer, or the settings do not fit it.
    """

    def __init__(self, name: str, model: Path, settings: DiffusionSettings | None = None) -> None:
        self.name, self.model, self.settings = name, model, settings or DiffusionSettings()
        self.shape = _read_shape(name, model)
        self.tokenizer = HFTokenizer(model, self.settings.boundary)
        self._reference_shape = self._read_reference(self.settings.reference_model)
        self.max_model_len = self._most_tokens()
        try:
            self._decoding = self._read_decoding({})
        except RequestError as error:
            raise ConfigError(f"engine {name!r}: decoding: {error}") from None
        known = {Capability.LOGPROBS, Capability.READ, Capability.TOKEN_IDS}
        self._can_verify = self.shape.context == "causal"
        self.capabilities = frozenset(known | (_VERIFYING if self._can_verify else set()))
        self.restarts = 0
        self._worker: _Worker | None = None
        self._startup: asyncio.Task[_Worker] | None = None

    def _read_reference(self, folder: Path | None) -> ModelShape | None:
        if folder is None:
            return None
        shape = _read_shape(self.name, folder)
        if shape.tokens != self.shape.tokens or HFTokenizer(folder).vocabulary() != self.tokenizer.vocabulary():
            raise ConfigError(
                f"engine {self.name!r}: reference_model {folder} writes other tokens than the model; "
                "give one with the same tokenizer"
            )
        return shape

    @cached_property
    def model_fingerprint(self) -> str:
        return model_fingerprint(self.model, self.tokenizer.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        reference = self.settings.reference_model
        settings = {
            "dtype": self._dtype_name(_device()),
            "decoding": asdict(self._decoding),
            "reference": None if reference is None else model_fingerprint(reference, ""),
            "boundary": None if self.settings.boundary == "blank_line" else self.settings.boundary,
        }
        return engine_fingerprint(self.model_fingerprint, settings)

    @property
    def running(self) -> int:
        """Generations, reads and verifications that it works on, or that wait for a slot."""
        return 0 if self._worker is None else len(self._worker.live)

    async def start(self) -> Self:
        await self._alive()
        return self

    async def aclose(self) -> None:
        if self._startup is not None and not self._startup.done():
            await asyncio.wait({self._startup})
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.end()

    def check_decoding(self, decoding: Mapping[str, Any]) -> None:
        self._read_decoding(decoding)

    def generate(self, prompt_token_ids: Sequence[int], sampling: Sampling, cache_salt: str = "") -> "_Stream":
        return _Stream(self, list(prompt_token_ids), sampling, cache_salt)

    async def read(
        self, prompt_token_ids: Sequence[int], candidate_ids: Sequence[int], cache_salt: str = ""
    ) -> Reading:
        """How likely each candidate is at the first position of a block that is masked whole.

        Where `self_speculation` is the default, it is that of the model that writes token by token. A candidate that
        is never written, such as the mask token, has the log-probability minus infinity.

        Raises:
            RequestError: the prompt does not fit, or an id is none of the vocabulary.
        """
        self._check_prompt(prompt_token_ids, 1)
        self._check_ids(candidate_ids, "candidate")
        task = Task(tuple(prompt_token_ids), 1, frozenset())
        is_causal = self._decoding.strategy == "self_speculation"
        options = {"block_length": self._decoding.block, "residual": False}
        plain = read_decoding(options | ({"strategy": "self_speculation"} if is_causal else {}), self.shape)
        watch = _Distribution(candidate_ids)
        job = Job(task, plain, Drawing(), _unheard, cache_salt, watch)
        await self._run(job)
        return Reading(watch.logprobs, job.cached)

    async def verify(
        self,
        prompt_token_ids: Sequence[int],
        drafted_ids: Sequence[int],
        sampling: Sampling = GREEDY,
        cache_salt: str = "",
    ) -> Verified:
        """What the model writes token by token where a draft has written `drafted_ids`.

        It draws as `generate` does: with the same seed it agrees with what `self_speculation` writes.

        Raises:
            CapabilityError: the model has no causal context.
            RequestError: prompt and draft do not fit, the draft is empty, or an id is none of the vocabulary.
        """
        if not self._can_verify:
            raise CapabilityError(
                f"engine {self.name!r} attends to both sides within a block and does not write token by token; "
                "verify with another engine"
            )
        if not drafted_ids:
            raise RequestError("the draft is empty; give at least one token to verify")
        self._check_prompt(prompt_token_ids, len(drafted_ids))
        self._check_ids(drafted_ids, "draft")
        task = Task((*prompt_token_ids, *drafted_ids), 1, frozenset())
        drawing = Drawing(sampling.temperature, sampling.top_p, sampling.seed)
        wants = sampling.logprobs or sampling.top_logprobs
        watch = _DraftLogprobs(drafted_ids, len(prompt_token_ids), sampling) if wants else None
        job = Job(task, self._decoding, drawing, _unheard, cache_salt, watch, make=Verifier.of(len(drafted_ids)))
        settled = await self._run(job)
        verified = Verified(tuple(settled.tokens), job.cached)
        return watch.fill(verified, settled.logprobs[-1]) if watch else verified

    async def score(self, prompt_token_ids: Sequence[int], cache_salt: str = "") -> Score:
        raise CapabilityError(f"engine {self.name!r} has no scalar head; ask a reward or router model to score")

    def job(self, prompt: list[int], sampling: Sampling, cache_salt: str) -> tuple[Job, "_TopLogprobs | None"]:
        """What `generate` asks of the batcher, and where the highest log-probabilities come if they are wanted.

        Raises:
            RequestError: the prompt does not fit, is empty or has ids that are none, or the decoding is not known.
        """
        self._check_prompt(prompt, sampling.max_tokens)
        if sampling.structure:
            raise CapabilityError(f"engine {self.name!r} writes in blocks, which no structure can hold; leave it out")
        if sampling.top_k or sampling.min_p or sampling.penalties != NO_PENALTIES:
            raise CapabilityError(
                f"engine {self.name!r} draws by temperature and top_p; leave top_k, min_p and penalties out"
            )
        decoding = self._read_decoding(sampling.decoding)
        if sampling.top_logprobs and decoding.edit_threshold is not None:
            raise RequestError("top_logprobs do not go with edit_threshold; leave one of them out")
        ends = self.tokenizer.eos_token_ids | set(self.shape.end_token_ids) | sampling.stop_token_ids
        task = Task(tuple(prompt), sampling.max_tokens, ends, self._delimiter_ids)
        watch = _TopLogprobs(sampling.top_logprobs) if sampling.top_logprobs else None
        drawing = Drawing(sampling.temperature, sampling.top_p, sampling.seed)
        canvas = Canvas(len(prompt), watch) if sampling.passes else watch
        return Job(task, decoding, drawing, _unheard, cache_salt, canvas), watch

    async def ask(self, job: Job) -> "_Asked":
        """Let `job` take part in the next pass."""
        return (await self._alive()).add(job)

    async def _run(self, job: Job) -> Settled:
        """All that `job` settles."""
        asked = await self.ask(job)
        settled = Settled([], [])
        try:
            while not asked.is_over:
                more = await asked.next()
                settled.tokens.extend(more.tokens)
                settled.logprobs.extend(more.logprobs)
        finally:
            asked.leave()
        return settled

    @cached_property
    def _delimiter_ids(self) -> frozenset[int]:
        if self.shape.context != "full":
            return frozenset()
        return frozenset(token_id for token_id, text in self.tokenizer.vocabulary().items() if "\n" in text)

    def _most_tokens(self) -> int:
        """Prompt and generation, so that the last block also has positions."""
        shapes = [self.shape, *([self._reference_shape] if self._reference_shape else [])]
        most = min(shape.max_positions for shape in shapes) - self.shape.block_length
        if most < 2:
            raise ConfigError(
                f"engine {self.name!r}: the model has {self.shape.max_positions} positions, too few for blocks of "
                f"{self.shape.block_length}; correct its config.json"
            )
        return min(self.settings.max_model_len, most)

    def _read_decoding(self, options: Mapping[str, Any]) -> Decoding:
        merged = over_defaults(options, self.settings.decoding)
        return read_decoding(merged, self.shape, has_reference=self._reference_shape is not None)

    def _check_prompt(self, prompt: Sequence[int], new_tokens: int) -> None:
        if not prompt:
            raise RequestError(f"engine {self.name!r}: the prompt is empty; give at least one token")
        if len(prompt) + new_tokens > self.max_model_len:
            raise RequestError(
                f"engine {self.name!r}: {len(prompt)} prompt tokens and {new_tokens} new ones do not fit into "
                f"max_model_len {self.max_model_len}; shorten the prompt or raise it"
            )
        self._check_ids(prompt, "prompt")

    def _check_ids(self, token_ids: Sequence[int], what: str) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self.shape.vocab_size:
                raise RequestError(
                    f"engine {self.name!r}: the {what} has the token id {str(token_id)[:24]}, the model those in "
                    f"[0, {self.shape.vocab_size}); use its own tokenizer"
                )

    async def _alive(self) -> "_Worker":
        """The running thread; started, or started anew after its death."""
        if self._worker is not None and self._worker.is_alive:
            return self._worker
        if self._startup is None or self._startup.done():
            self._startup = asyncio.create_task(self._start_anew())
        return await asyncio.shield(self._startup)  # the engine's own: a caller that leaves does not end it

    async def _start_anew(self) -> "_Worker":
        if self._worker is not None:
            _log.warning("engine %s died and is started again", self.name)
            self.restarts += 1
            self._worker = None
        worker = _Worker(self.name, self._build)
        try:
            await worker.start()
        except ReasonRTError:
            raise
        except Exception as error:
            raise EngineError(f"engine {self.name!r} did not start from {self.model}: {_reason(error)}") from error
        await asyncio.to_thread(lambda: self.fingerprint)  # it reads all weights, once: not in a request
        self._worker = worker
        return worker

    # in the thread that computes

    def _build(self) -> Batcher:
        settings, device = self.settings, _device()
        if device.type == "cpu":
            _take_place(self.name, settings)
        dtype: torch.dtype = getattr(torch, self._dtype_name(device))
        models = [load_model(self.model, dtype)]
        if settings.reference_model is not None:
            models.append(load_model(settings.reference_model, dtype))
        for model in models:
            model.to(device).eval()
            if settings.compile if settings.compile is not None else device.type == "cuda":
                _compile(model)
        slots = self._num_slots(dtype, device)
        reference = models[1] if models[1:] else None
        batcher = Batcher(models[0], slots, self.max_model_len, reference, settings.passes_together)
        self._warm_up(batcher)
        return batcher

    def _dtype_name(self, device: torch.device) -> str:
        return self.settings.dtype or ("bfloat16" if device.type == "cuda" else "float32")

    def _num_slots(self, dtype: torch.dtype, device: torch.device) -> int:
        """How many sequences there is memory for.

        Raises:
            ConfigError: not even for one.
        """
        block = self.shape.block_length * (ADAPTIVE_WINDOW if self.shape.context == "full" else 1)
        each: int = KvCache.num_bytes(self.shape, 1, self.max_model_len + block, dtype)
        each += block * self.shape.hidden * dtype.itemsize
        free, limit = _free_bytes(device), self.settings.kv_cache_mib
        room = int(_FREE_SHARE * free) if limit is None else min(limit << 20, int(_FREE_SHARE * free))
        slots: int = min(self.settings.max_num_seqs, room // each)
        if slots < 1:
            given = "" if limit is None else f"kv_cache_mib is {limit}, and "
            raise ConfigError(
                f"engine {self.name!r}: the key-value cache of one sequence of {self.max_model_len} tokens takes "
                f"{-(-each >> 20)} MiB; {given}{free >> 20} MiB are free; lower max_model_len or give more memory"
            )
        if slots < self.settings.max_num_seqs:
            _log.warning(
                "engine %s: %d MiB hold %d concurrent sequences of %d tokens, not %d; more wait",
                *(self.name, room >> 20, slots, self.max_model_len, self.settings.max_num_seqs),
            )
        return slots

    def _warm_up(self, batcher: Batcher) -> None:
        """Make each kind of pass once: the first one allocates and compiles."""
        most = self.max_model_len - 1
        prompt = self.tokenizer.chat((Message("user", "1 + 1"),))[-most:]
        new = min(self.shape.block_length + 2, self.max_model_len - len(prompt))
        highest = int(self._decoding.edit_threshold is None)
        for temperature in (0.0, 0.7):
            job, _ = self.job(prompt, Sampling(new, temperature, seed=0, top_logprobs=highest), "warm-up")
            batcher.add(job)
        while not batcher.is_idle:
            batcher.step()


class _Stream:
    """One generation."""

    def __init__(self, engine: DiffusionEngine, prompt: list[int], sampling: Sampling, cache_salt: str) -> None:
        self._engine, self._prompt, self._sampling, self._salt = engine, prompt, sampling, cache_salt
        self._asked: _Asked | None = None
        self._highest: _TopLogprobs | None = None
        self._is_over = False
        self.generated_tokens = 0

    @property
    def passes(self) -> int:
        return 0 if self._asked is None else self._asked.job.passes

    @property
    def canvas_positions(self) -> int:
        return 0 if self._asked is None else self._asked.job.canvas

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenDelta:
        if self._is_over:
            raise StopAsyncIteration
        if self._asked is None:
            job, self._highest = self._engine.job(self._prompt, self._sampling, self._salt)
            self._asked = await self._engine.ask(job)
        try:
            settled = await self._asked.next()
        finally:
            self._is_over = self._asked.is_over
        first = len(self._prompt) + self.generated_tokens
        self.generated_tokens += len(settled.tokens)
        places = range(first, first + len(settled.tokens))
        canvas = self._asked.job.watch
        return TokenDelta(
            tuple(settled.tokens),
            tuple(settled.logprobs) if self._sampling.logprobs else (),
            settled.finish,
            self._asked.job.cached,
            *(self._highest.at(places) if self._highest else ((), ())),
            canvas.take() if isinstance(canvas, Canvas) else (),
        )

    async def aclose(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._asked is not None:
            self._asked.leave()
            # shielded: a cancelled caller must not leave tokens uncounted
            await asyncio.shield(asyncio.ensure_future(self._count_rest(self._asked)))

    async def _count_rest(self, asked: "_Asked") -> None:
        with suppress(ReasonRTError):
            while not asked.is_over:
                self.generated_tokens += len((await asked.next()).tokens)


class _Distribution:
    """For `Job.watch`: log-probabilities of candidates in the last pass that predicted anything."""

    def __init__(self, candidate_ids: Sequence[int]) -> None:
        self._candidate_ids = list(candidate_ids)
        self.logprobs: tuple[float, ...] = ()

    def __call__(self, targets: NDArray[np.int64], stats: RowStats, logits: Tensor) -> None:
        values = logits[0].double().log_softmax(-1).tolist()
        self.logprobs = tuple([values[i] if i < len(values) else -np.inf for i in self._candidate_ids])


class _TopLogprobs:
    """For `Job.watch`: the highest log-probabilities at each position, of the last pass that predicted it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._found: dict[int, tuple[tuple[float, ...], tuple[int, ...]]] = {}

    def __call__(self, targets: NDArray[np.int64], stats: RowStats, logits: Tensor) -> None:
        top, ids = logits.topk(min(self._count, logits.shape[-1]), dim=-1)
        values = stats.max_prob.log()[:, None] + (top - top[:, :1])  # as `predict` does, so that its own is among them
        found = zip(map(tuple, values.tolist()), map(tuple, ids.tolist()), strict=True)
        self._found.update(zip(targets.tolist(), found, strict=True))

    def at(self, positions: range) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[int, ...], ...]]:
        """Once for each position: the log-probabilities, and the ids of their tokens."""
        found = [self._found.pop(position) for position in positions]
        return tuple([values for values, _ in found]), tuple([ids for _, ids in found])


class _DraftLogprobs:
    """For `Job.watch`: log-probabilities of the tokens of a draft, and the highest in their places.

    Args:
        first: the position of the first of them.
        sampling: says which of both are wanted.
    """

    def __init__(self, drafted_ids: Sequence[int], first: int, sampling: Sampling) -> None:
        self._drafted_ids, self._first, self._sampling = drafted_ids, first, sampling
        self._logprobs: dict[int, float] = {}
        self._highest = _TopLogprobs(sampling.top_logprobs)

    def __call__(self, targets: NDArray[np.int64], stats: RowStats, logits: Tensor) -> None:
        places = targets.tolist()
        drafted = stats.argmax.new_tensor([self._drafted_ids[place - self._first] for place in places])
        both = logits.gather(-1, torch.stack((drafted, stats.argmax), 1))
        found = stats.max_prob.log() + (both[:, 0] - both[:, 1])  # as `predict` does
        self._logprobs.update(zip(places, found.tolist(), strict=True))
        if self._sampling.top_logprobs:
            self._highest(targets, stats, logits)

    def fill(self, verified: Verified, own_logprob: float) -> Verified:
        """`verified` with what is wanted; `own_logprob` is that of its last token."""
        places = range(self._first, self._first + len(self._drafted_ids))
        top, top_ids = self._highest.at(places) if self._sampling.top_logprobs else ((), ())
        wants = self._sampling.logprobs
        return replace(
            verified,
            logprobs=tuple([self._logprobs[place] for place in places]) if wants else (),
            top_logprobs=top,
            top_token_ids=top_ids,
            own_logprob=own_logprob if wants else None,
        )


class _Asked:
    """A job as its asker sees it, in the asker's event loop."""

    def __init__(self, job: Job, worker: "_Worker") -> None:
        self.job, self._worker = job, worker
        self.loop = asyncio.get_running_loop()
        self.items: asyncio.Queue[Settled | ReasonRTError | None] = asyncio.Queue()
        self.is_over = False

    async def next(self) -> Settled:
        """What has settled since the last time, at least one token but for the end.

        Raises:
            EngineError: a pass failed, or the engine died.
            RequestError: the batcher refuses it.
        """
        item = await self.items.get()
        if isinstance(item, ReasonRTError):
            self.is_over = True
            raise item
        self.is_over = item is None or item.finish is not None
        return item or Settled()

    def leave(self) -> None:
        """Take the job out before the next pass; `next` then gives what has come until then."""
        if not self.is_over:
            self._worker.cancel(self)


class _Worker:
    """One life of the thread that computes.

    Args:
        name: of the engine.
        build: called in the thread.
    """

    def __init__(self, name: str, build: Callable[[], Batcher]) -> None:
        self._name, self._build = name, build
        self.live: dict[Job, _Asked] = {}
        self._orders: queue.SimpleQueue[tuple[bool, _Asked] | None] = queue.SimpleQueue()
        self._outbox: list[tuple[_Asked, Settled | ReasonRTError | None]] = []
        self._is_dead = False
        self._lock = threading.Lock()  # of `live` and `_is_dead`
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"passes of {name}")

    @property
    def is_alive(self) -> bool:
        return not self._is_dead

    async def start(self) -> None:
        """Raises whatever `build` raises."""
        self._thread.start()
        await asyncio.wrap_future(self._started)

    async def end(self) -> None:
        """What runs fails."""
        self._orders.put(None)
        await asyncio.to_thread(self._thread.join)

    def add(self, job: Job) -> _Asked:
        """Raises: EngineError: the thread has died."""
        asked = _Asked(job, self)
        with self._lock:
            if self._is_dead:
                raise self._death()
            self.live[job] = asked
        job.report = self._report
        self._orders.put((True, asked))
        return asked

    def cancel(self, asked: _Asked) -> None:
        self._orders.put((False, asked))

    def _death(self) -> EngineError:
        return EngineError(f"engine {self._name!r} died or was closed while it worked on this request; ask again")

    # in the thread

    def _work(self) -> None:
        try:
            self._batcher = self._build()
        except BaseException as error:  # noqa: BLE001 (whatever it is, whoever starts the engine is to hear of it)
            self._is_dead = True
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        try:
            while self._follow_orders():
                self._pass()
        except BaseException:  # noqa: BLE001 (it is logged, and whoever waits hears of it)
            _log.exception("the thread of engine %s died", self._name)
        with self._lock:
            self._is_dead = True
            left = list(self.live.values())
            self.live.clear()
        self._outbox += [(asked, self._death()) for asked in left]
        self._deliver()
        del self._batcher

    def _follow_orders(self) -> bool:
        """All that have come; wait for one where there is nothing to compute. Whether to go on."""
        is_idle = self._batcher.is_idle
        with suppress(queue.Empty):
            while (order := self._orders.get(block=is_idle)) is not None:
                is_idle = False
                is_new, asked = order
                if is_new:
                    self._add(asked)
                elif self._forget(asked.job):
                    self._batcher.cancel(asked.job)
                    self._outbox.append((asked, None))
            return False
        return True

    def _add(self, asked: _Asked) -> None:
        try:
            self._batcher.add(asked.job)
        except RequestError as error:
            self._forget(asked.job)
            self._outbox.append((asked, error))

    def _pass(self) -> None:
        failure: str | None = None
        try:
            self._batcher.step()
        except Exception as error:  # noqa: BLE001 (torch has many: out of memory, a broken kernel; the others go on)
            _log.exception("a pass of engine %s failed", self._name)
            failure = _reason(error)
        if failure is not None:  # the error is gone by now, and with it what its frames held
            for job in self._batcher.abandon():
                if (asked := self._forget(job)) is not None:
                    message = f"engine {self._name!r}: a forward pass failed: {failure}; ask again"
                    self._outbox.append((asked, EngineError(message)))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self._deliver()

    def _report(self, job: Job, settled: Settled) -> None:
        asked = self.live[job]
        if settled.finish is not None:
            self._forget(job)
        self._outbox.append((asked, settled))

    def _forget(self, job: Job) -> _Asked | None:
        with self._lock:
            return self.live.pop(job, None)

    def _deliver(self) -> None:
        """Into the event loops of those who asked: one call for each loop and pass."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Asked, Settled | ReasonRTError | None]]] = {}
        for asked, item in self._outbox:
            by_loop.setdefault(asked.loop, []).append((asked, item))
        self._outbox.clear()
        for loop, items in by_loop.items():
            with suppress(RuntimeError):  # a loop that has closed: nobody waits there
                loop.call_soon_threadsafe(_hand_over, items)


def _hand_over(items: list[tuple[_Asked, Settled | ReasonRTError | None]]) -> None:
    for asked, item in items:
        asked.items.put_nowait(item)


def _unheard(job: Job, settled: Settled) -> None:
    """The report of a job that nobody has added yet."""


def _read_shape(name: str, folder: Path) -> ModelShape:
    if not (folder / "config.json").exists():
        raise ConfigError(f"engine {name!r}: {folder} holds no model (no config.json); give a folder with one")
    try:
        return read_shape(folder)
    except ConfigError as error:
        raise ConfigError(f"engine {name!r}: {error}") from None


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _take_place(name: str, settings: DiffusionSettings) -> None:
    """Cores and priority of this thread; those that torch starts from it inherit them."""
    if settings.cores is not None:
        cores = _parse_cores(settings.cores)
        torch.set_num_threads(len(cores))
        if sys.platform == "linux":
            try:
                os.sched_setaffinity(0, cores)
            except OSError as error:
                raise ConfigError(
                    f"engine {name!r}: cores {settings.cores!r} are not there: {error.strerror}; name others"
                ) from None
    if settings.niceness and sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), settings.niceness)


def _parse_cores(cores: str) -> set[int]:
    """Of "0-2,5" 0, 1, 2 and 5."""
    found: set[int] = set()
    for part in cores.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _compile(model: DiffusionModel) -> None:
    for layer in model.layers:
        layer.project = torch.compile(layer.project, dynamic=True)
        layer.mix = torch.compile(layer.mix, dynamic=True)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_REASON]
