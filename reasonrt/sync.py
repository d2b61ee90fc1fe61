"""A runtime for code without `async`: scripts, and notebooks, where an event loop runs already."""

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from reasonrt.errors import EngineError, ReasonRTError
from reasonrt.tasks import LoopThread
from reasonrt.types import Completion, Event, Request

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


class AsyncRuntime(Protocol):
    """What of `reasonrt.runtime.Runtime` is used here."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(self, *_: object) -> None: ...

    def solve(self, request: Request) -> AsyncGenerator[Event, None]: ...

    async def complete(self, request: Request) -> Completion: ...

    def solve_all(
        self, requests: Iterable[Request], concurrency: int = 8
    ) -> AsyncGenerator[tuple[int, Completion | ReasonRTError], None]: ...


R = TypeVar("R", bound=AsyncRuntime)
T = TypeVar("T")


class SyncRuntime(Generic[R]):
    """A `Runtime` whose calls wait for their result; it works in a thread of its own, also where an event loop runs.

    Use it as a context manager. In a notebook, `start` it in one cell and `close` it in another.
    """

    def __init__(self, runtime: R) -> None:
        self.runtime = runtime
        self._thread: LoopThread | None = None

    def start(self) -> Self:
        """Start engines and tools; does nothing where they run.

        Raises:
            EngineError, ConfigError: one cannot be started.
        """
        if self._thread is None:
            self._thread = LoopThread("reasonrt")
            try:
                self._thread.run(self.runtime.__aenter__())
            except BaseException:
                self._end()
                raise
        return self

    def close(self) -> None:
        """Close engines and tools. Idempotent."""
        if self._thread is not None:
            try:
                self._thread.run(self.runtime.__aexit__())
            finally:
                self._end()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that uses `runtime`, such as an evaluation; Ctrl-C cancels it.

        Raises:
            EngineError: the runtime is not started.
        """
        if self._thread is None:
            work.close()
        return self._running().run(work)

    def solve(self, request: Request) -> Iterator[Event]:
        """As `Runtime.solve`: each step as it is committed and, last, the `Completion`."""
        return self._running().iterate(self.runtime.solve(request))

    def complete(self, request: Request) -> Completion:
        """As `Runtime.complete`: `solve` without the steps in between."""
        return self.run(self.runtime.complete(request))

    def solve_all(
        self, requests: Iterable[Request], concurrency: int = 8, *, has_bar: bool | None = None
    ) -> list[Completion | ReasonRTError]:
        """Solve many requests, `concurrency` at a time; the results in the order of the requests.

        A request that fails gives its error and costs the others nothing.

        Args:
            has_bar: show a progress bar; None shows one in a terminal and in a notebook.
        """
        asked = list(requests)

        async def work() -> list[Completion | ReasonRTError]:
            results: dict[int, Completion | ReasonRTError] = {}
            with progress_bar("requests", len(asked), has_bar) as advance:
                async with aclosing(self.runtime.solve_all(asked, concurrency)) as ended:
                    async for index, result in ended:
                        results[index] = result
                        advance(1)
            return [results[index] for index in range(len(asked))]

        return self.run(work())

    def _running(self) -> LoopThread:
        if self._thread is None:
            raise EngineError("the runtime is not started; write `with Runtime.sync() as runtime`, or call its start()")
        return self._thread

    def _end(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()


@contextmanager
def progress_bar(name: str, total: int, has_bar: bool | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, or in the notebook; what it gives is told how many more of `total` are done.

    Args:
        has_bar: None shows one in a terminal and in a notebook.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    is_shown = console.is_terminal or console.is_jupyter if has_bar is None else has_bar
    with Progress(*bar_columns(), console=console, disable=not is_shown) as bar:
        line = bar.add_task(name, total=total)
        yield lambda done: bar.advance(line, done)


def bar_columns() -> "tuple[ProgressColumn, ...]":
    """What a bar shows: a name, how much is done, how fast, and the time that is left."""
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.3g}/s" if speed else "")

    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
