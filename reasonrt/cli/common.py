"""What commands share: options, the console, JSON files, and running asynchronous work."""

import asyncio
import inspect
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, wraps
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from reasonrt.benches.progress import Advance
from reasonrt.errors import ConfigError
from reasonrt.files import write_whole
from reasonrt.policies.options import format_policy, parse_options, parse_policy
from reasonrt.runtime import Runtime
from reasonrt.sync import bar_columns
from reasonrt.tasks import cancel
from reasonrt.types import Limits

console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def complete_policy(incomplete: str) -> list[str]:
    """Names of policies for the shell."""
    from reasonrt.policies.registry import policy_names

    return [name for name in policy_names() if name.startswith(incomplete)]


def complete_task(incomplete: str) -> list[str]:
    """Names of tasks for the shell; files are completed by the shell itself."""
    from reasonrt.evals.tasks import task_names

    return [name for name in task_names() if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """Names of the models that ship, for the shell."""
    from reasonrt.zoo.catalog import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Read this YAML file; by default reasonrt.yaml where it exists, else the models that ship are used.",
    ),
]
_STANDARD_OUTPUT = Path("-")


def _leave_standard_output(file: Path | None) -> Path | None:
    """What people read goes to standard error where the JSON goes to standard output."""
    console.stderr = file == _STANDARD_OUTPUT
    return file


JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        help="Write the result to this file as JSON; - is standard output.",
        callback=_leave_standard_output,
    ),
]
SuffixOption = Annotated[str, typer.Option(help="Append these words to each question.")]
TaskOption = Annotated[
    str,
    typer.Option(
        help="Take problems of this task: zoo, a family of it, FAMILY:LEVEL, a task of an installed package, or a "
        "JSONL file (docs/evaluation.md names its fields).",
        autocompletion=complete_task,
    ),
]
SplitOption = Annotated[
    str,
    typer.Option(
        help="Take this split of the zoo's tasks: train, router, certify or test; drawn again, test-2 and so on."
    ),
]
TemperatureOption = Annotated[float, typer.Option(help="Draw tokens at this temperature; 0 is greedy.")]
MaxTokensOption = Annotated[
    int | None, typer.Option(help="End a problem after this many tokens of reasoning and answer.")
]
YesOption = Annotated[
    bool,
    typer.Option("--yes", help="Take the records of a journal that has lost its first line as of this run, unasked."),
]
ConcurrencyOption = Annotated[int | None, typer.Option(min=1, help="Work on this many problems concurrently.")]

AUTHOR_STYLES = {"target": "cyan", "draft": "green"}

_TELL_S = 5.0
_LINE_S = 30.0
T = TypeVar("T")


def _be_quiet(is_asked: bool) -> bool:
    console.quiet = console.quiet or is_asked
    return is_asked


QuietOption = Annotated[
    bool, typer.Option("--quiet", help="Print errors only, and what --json - asks for.", callback=_be_quiet)
]


def quietable(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, which may also be told after its name to be quiet."""

    @wraps(command)
    def called(*arguments: Any, quiet: bool = False, **options: Any) -> None:
        command(*arguments, **options)

    signature = inspect.signature(command, eval_str=True)
    own = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=QuietOption)
    called.__signature__ = signature.replace(parameters=[*signature.parameters.values(), own])  # type: ignore[attr-defined]
    called.__annotations__ = {**command.__annotations__, "quiet": QuietOption}
    return called


def run(work: Coroutine[Any, Any, T], journals: Path | str | None = None) -> T:
    """Run `work` to its end; Ctrl-C cancels it, and what it holds is closed.

    Args:
        journals: a folder; Ctrl-C then says at once, before engines are closed, that the same command continues. Or, of
            what keeps nothing, how to continue.
    """
    if journals is None:
        return asyncio.run(work)
    says = partial(how_to_continue, journals) if isinstance(journals, Path) else partial(str, journals)

    async def work_and_tell() -> T:
        cancels = signal.getsignal(signal.SIGINT)  # of asyncio, which cancels this task
        if not callable(cancels):  # it is ignored, as in the background of a shell
            return await work

        def stop(number: int, frame: FrameType | None) -> None:
            _say_stopped(says())
            signal.signal(signal.SIGINT, cancels)
            cancels(number, frame)

        signal.signal(signal.SIGINT, stop)
        try:
            return await work
        finally:
            signal.signal(signal.SIGINT, cancels)

    try:
        return asyncio.run(work_and_tell())
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def how_to_continue(journals: Path) -> str:
    """What the same command will do after it was stopped, by what is in its folder."""
    if not any(map(_has_record, journals.rglob("journal.jsonl"))):
        return "nothing is finished yet, the same command begins anew"
    return f"what is finished is in {journals}, the same command continues from there"


def _has_record(journal: Path) -> bool:
    """Whether anything stands after the first line, which says what the journal is of, and those of its arms."""
    with journal.open("rb") as lines:
        return any(not line.startswith(b'{"arm":') for line in islice(lines, 1, None))


@contextmanager
def ends_at_once(says: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C says how to continue and ends the process, whatever library it interrupts; the exit code is 130."""
    own = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:  # and not in a process of a library's, which has this handler, too
            _say_stopped(says())
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if callable(before):  # else it is ignored, as in the background of a shell
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say_stopped(says: str) -> None:
    sys.stderr.write(f"\nstopped; {says}\n" if console.is_terminal else f"stopped; {says}\n")
    sys.stderr.flush()


async def start(runtime: Runtime, what: str = "") -> None:
    """Enter `runtime`; a spinner says that it takes a while, or without a terminal a line each few seconds.

    Args:
        what: starts; by default the names of its engines.
    """
    text = f"starting {what or ', '.join(runtime.engines) or 'nothing'}"

    async def tell() -> None:
        began = time.monotonic()
        while not (console.is_terminal or console.quiet):
            await asyncio.sleep(_TELL_S)
            sys.stderr.write(f"{text}: {time.monotonic() - began:.0f} s\n")

    telling = asyncio.create_task(tell())
    try:
        with console.status(f"{escape(text)} ..."):
            await runtime.__aenter__()
    finally:
        await cancel(telling)


def confirm_by(yes: bool) -> Callable[[str], bool]:
    """What asks the person at the terminal; nobody is there without one."""
    return lambda question: yes or (sys.stdin.isatty() and typer.confirm(question, err=True))


@contextmanager
def bars() -> Iterator[Advance]:
    """A bar for each part of the work, with its rate and the time that is left; elsewhere than on a terminal lines."""
    with Progress(*bar_columns(), console=console, disable=not console.is_terminal) as shown:
        parts: dict[str, _Part] = {}

        def advance(name: str, done: int, total: int) -> None:
            if (part := parts.get(name)) is None:
                part = parts[name] = _Part(shown.add_task(name, total=total, completed=done), done)
            shown.update(part.bar, completed=done, total=total)
            if not (console.is_terminal or console.quiet) and (line := part.line(name, done, total)):
                sys.stderr.write(f"{line}\n")

        yield advance


class _Part:
    """How fast one part of the work is; told in lines, one each half minute and one at the end."""

    def __init__(self, bar: TaskID, done: int) -> None:
        self.bar, self._first, self._began = bar, done, time.monotonic()
        self._told = self._began

    def line(self, name: str, done: int, total: int) -> str:
        """Empty where it is too early for one."""
        now = time.monotonic()
        if done < total and now - self._told < _LINE_S:
            return ""
        self._told = now
        rate = (done - self._first) / max(1e-9, now - self._began)
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        return f"{name}: {done} of {total}, {rate:.3g}/s{left}"


def write_json(path: Path | None, value: object) -> None:
    """Write `value` to `path`, or do nothing without one."""
    if path is None:
        return
    if path == _STANDARD_OUTPUT:
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; give --json another file") from None


def change_limits(limits: Limits, max_tokens: int | None, deadline_s: float | None) -> Limits:
    """`limits` with what a flag was given for."""
    if max_tokens is not None:
        limits = replace(limits, max_tokens=max_tokens)
    return limits if deadline_s is None else replace(limits, deadline_s=deadline_s)


def read_policy(text: str, pairs: Iterable[str] = ()) -> tuple[str, dict[str, Any]]:
    """`NAME@key=value,key=value` as a policy's name and options.

    Two older spellings are accepted until the next version, with a hint: `NAME:key=value`, and `pairs` from `--option`.
    """
    old = re.fullmatch(r"([\w-]+):(\w+=.*)", text)
    name, options = parse_policy(f"{old[1]}@{old[2]}" if old else text)
    for pair in pairs:
        options |= parse_options(pair)
    if old or pairs:
        console.print(f"[yellow]hint:[/] write --policy {escape(format_policy(name, options))}", soft_wrap=True)
    return name, options
