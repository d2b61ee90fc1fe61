"""Whether a text answers a question: equal values first, then `math-verify` in a process of its own."""

import asyncio
import logging
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self

from reasonrt.answers import find_answer, normal_form, same_answer

_log = logging.getLogger(__name__)


class Grader:
    """Grades by comparing values; asks math-verify where that says no.

    math-verify's timeouts are signals, which threads cannot have, so it runs in a process. A grade that hangs or
    kills its process counts as wrong, and the next one gets a new process. Without math-verify, unequal answers are
    wrong.

    Args:
        timeout_s: how long one grade may take.
        judge: the function that is asked in the process, `(text, gold) -> bool`; at module level.
    """

    def __init__(self, timeout_s: float = 10.0, judge: Callable[[str, str], bool] | None = None) -> None:
        self._timeout_s, self._judge = timeout_s, judge or verify
        self._pool: ProcessPoolExecutor | None = None
        self._turn = asyncio.Lock()  # one grade at a time: a stuck process delays no other

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop_pool()

    async def grade(self, text: str, gold: str, is_exact: bool = False) -> bool:
        """Whether the answer in `text` is `gold`.

        With `is_exact` there is no algebra in the answer, and math-verify is not asked: to it the base-16 number f9
        is a product, which equals 9f, and a list is a set. Lists are never left to it.
        """
        answer = find_answer(text)
        if answer is None or same_answer(answer, gold):
            return answer is not None
        if is_exact or isinstance(normal_form(gold), tuple):
            return False
        async with self._turn:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            try:
                return await asyncio.wait_for(
                    asyncio.get_running_loop().run_in_executor(self._pool, self._judge, text, gold), self._timeout_s
                )
            except Exception as error:  # noqa: BLE001 - a time-out, a dead process, whatever a parser trips over
                _log.warning("grading %r ended in %s; it counts as wrong", text[-80:], type(error).__name__)
                if isinstance(error, TimeoutError | BrokenProcessPool):
                    self._drop_pool()
                return False

    def _drop_pool(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)


def verify(text: str, gold: str) -> bool:
    """math-verify's judgement, gold first; False where it is not installed. Runs in the grader's process."""
    try:
        from math_verify import parse
        from math_verify import verify as judge
    except ImportError:
        return False
    boxed = gold if "$" in gold or "\\boxed" in gold else f"\\boxed{{{gold}}}"
    return bool(judge(parse(boxed, parsing_timeout=3), parse(text, parsing_timeout=3), timeout_seconds=3))
