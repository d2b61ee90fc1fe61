"""`reasonrt solve`: one question; each step is printed as it is committed, in the colour of its author."""

import dataclasses
from contextlib import aclosing
from typing import Annotated

import typer
from rich.markup import escape

from reasonrt.cli.common import (
    AUTHOR_STYLES,
    ConfigOption,
    JsonOption,
    MaxTokensOption,
    TemperatureOption,
    change_limits,
    complete_policy,
    console,
    read_policy,
    run,
    write_json,
)
from reasonrt.types import Completion, FinishReason, Request, Step


def solve(
    question: Annotated[str, typer.Argument(help="Solve this question; - reads it from standard input.")],
    policy: Annotated[
        str,
        typer.Option(
            help="Solve it by this policy, written as NAME or NAME@OPTION=VALUE,OPTION=VALUE; `reasonrt policies` "
            "lists them.",
            autocompletion=complete_policy,
        ),
    ] = "target",
    option: Annotated[list[str] | None, typer.Option("--option", "-o", hidden=True)] = None,
    max_tokens: MaxTokensOption = None,
    deadline_s: Annotated[
        float | None, typer.Option("--deadline", help="Stop after this many seconds and return what is there by then.")
    ] = None,
    temperature: TemperatureOption = 0.0,
    seed: Annotated[int | None, typer.Option(help="Draw with this seed, so that the answer can be reproduced.")] = None,
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Solve one question and print each step as it is committed."""
    from reasonrt.config import load_config
    from reasonrt.runtime import Runtime

    settings = load_config(config)
    limits = change_limits(settings.limits.to_limits(), max_tokens, deadline_s)
    text = typer.get_text_stream("stdin").read() if question == "-" else question
    name, options = read_policy(policy, option or ())
    request = Request.ask(text, name, options=options, limits=limits, temperature=temperature, seed=seed)
    runtime = Runtime.of(settings, policies=[(name, options)])  # only what this policy asks is started

    async def work() -> Completion:
        with console.status(f"starting {', '.join(runtime.engines)} ..."):
            await runtime.__aenter__()
        try:
            async with aclosing(runtime.solve(request)) as events:
                async for event in events:
                    if isinstance(event, Completion):
                        return event
                    _print_step(event)
        finally:
            await runtime.__aexit__()
        raise AssertionError("solve ends with a completion")

    completion = run(work())
    _print_end(completion)
    write_json(json_file, dataclasses.asdict(completion))


def _print_step(step: Step) -> None:
    style = AUTHOR_STYLES.get(step.author, "magenta")
    console.print(f"[{style}]{step.author:>8}[/] {escape(step.text.strip())}")


def _print_end(completion: Completion) -> None:
    spent = ", ".join(
        f"{usage.generated} by {name}" + (f" in {usage.passes} passes" if usage.canvas else "")
        for name, usage in completion.usage.items()
    )
    if completion.finish_reason is not FinishReason.STOP:
        console.print(f"[yellow]ended by {completion.finish_reason}[/]: this is what was committed by then")
    console.print(f"[bold]{escape(completion.content or '(no answer)')}[/]")
    console.print(f"[dim]{completion.seconds:.2f} s, tokens generated: {spent}[/]")
