"""One engine of vLLM's after the other has this process's environment while it starts.

vLLM reads there what its processes are to be, and these read it as they begin. Then nobody needs it any more: on CPUs
engines import, load and compile side by side. On GPUs each measures how much memory is free, so that one waits for
the other.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from multiprocessing import resource_tracker
from typing import Any

_environment = threading.Lock()
_telling: list[Callable[..., Any]] = []  # what stands in the place of a function of vLLM's
_this = threading.local()  # `has_begun`, of the start that runs in this thread


@contextmanager
def starting(environment: Mapping[str, str], is_beside_others: bool, has_begun: Callable[[], None]) -> Iterator[None]:
    """In this context vLLM starts an engine that finds `environment`.

    Args:
        is_beside_others: whether the next start may begin when the processes of this one have.
        has_begun: is called when they have, at the latest at the end.
    """
    with ExitStack() as held:
        held.enter_context(_environment)
        _tell_when_vllm_waits()
        held.enter_context(_with(environment))
        held.enter_context(deaf_to_the_terminal())
        held.callback(has_begun)
        _this.has_begun = held.close if is_beside_others else None
        try:
            yield
        finally:
            _this.has_begun = None


class Leads:
    """Which core an engine's first thread has: of its own, one that the fewest first threads of this process have.

    All that an engine does beside its kernels is done there, imports and schedules among it: two engines on the same
    cores would take turns, with the other cores idle.
    """

    def __init__(self) -> None:
        self._engines = Counter[int]()

    def take(self, cores: Sequence[int]) -> list[int]:
        """`cores` with that one first; it is to be given back."""
        at = min(range(len(cores)), key=lambda place: self._engines[cores[place]])
        self._engines[cores[at]] += 1
        return [*cores[at:], *cores[:at]]

    def give_back(self, core: int) -> None:
        self._engines[core] -= 1


@contextmanager
def _with(environment: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:  # vLLM leaves LD_PRELOAD and more set, meant for its own processes
        os.environ.clear()
        os.environ.update(before)


def _tell_when_vllm_waits() -> None:
    """Let vLLM call `has_begun` when all that is left to do is to wait for its processes.

    It has no hook for that. One that waits elsewhere keeps the environment to its end, and nothing else changes.
    """
    from vllm.v1.engine import utils

    wait = getattr(utils, "wait_for_engine_startup", None)
    if wait is None or wait in _telling:
        return

    @wraps(wait)
    def tell_and_wait(*arguments: Any, **named: Any) -> Any:
        if has_begun := getattr(_this, "has_begun", None):
            has_begun()
        return wait(*arguments, **named)

    _telling.append(tell_and_wait)
    utils.wait_for_engine_startup = tell_and_wait


@contextmanager
def deaf_to_the_terminal() -> Iterator[None]:
    """Processes that this thread starts inherit what it blocks: Ctrl-C and a closed terminal are for us to handle."""
    resource_tracker.ensure_running()  # starting it would end the blocking; and it ends last, when it has cleaned up
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
