"""What commands share: options, the console, JSON files, and running asynchronous work."""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

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
T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end; Ctrl-C cancels it, and what it holds is closed."""
    return asyncio.run(work)


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
        with console.status(f"{text} ..."):
            await runtime.__aenter__()
    finally:
        await cancel(telling)


def confirm_by(yes: bool) -> Callable[[str], bool]:
    """What asks the person at the terminal; nobody is there without one."""
    return lambda question: yes or (sys.stdin.isatty() and typer.confirm(question, err=True))


def progress() -> Progress:
    return Progress(*bar_columns(), console=console)


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
