"""`reasonrt solve`: one question; each step is printed as it is committed, in the colour of its author."""

import dataclasses
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path
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
    start,
    write_json,
)
from reasonrt.config import ZOO_PREFIX, DiffusionConfig, EngineConfig, VllmConfig
from reasonrt.policies.options import format_policy
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
    server: Annotated[
        str | None,
        typer.Option(help="Ask this running server, such as http://127.0.0.1:8000, and start nothing here."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Write all that happened to this file: each step, what was thrown away, probes and costs; `reasonrt "
            "trace FILE` shows it."
        ),
    ] = None,
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Solve one question and print each step as it is committed.

    With --server, the key that the server asks for is read from the environment: REASONRT_API_KEY.
    """
    from reasonrt.cli.trace import TraceFile
    from reasonrt.config import load_config
    from reasonrt.runtime import Runtime

    text = typer.get_text_stream("stdin").read() if question == "-" else question
    name, options = read_policy(policy, option or ())
    recorded = TraceFile(text, name, options)

    def show_end(completion: Completion) -> None:
        print_end(completion)
        write_json(json_file, dataclasses.asdict(completion))
        write_json(trace, recorded.to_value(completion) if trace else None)

    if server:
        from reasonrt.cli.asking import ask_server

        body = {
            "model": format_policy(name, options),
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "reasonrt": {"trace": True} | ({} if deadline_s is None else {"deadline_s": deadline_s}),
        }
        given = {key: value for key, value in body.items() if value is not None}
        show_end(ask_server(server, given, print_step, recorded.add))
        return
    settings = load_config(config)
    limits = change_limits(settings.limits.to_limits(), max_tokens, deadline_s)
    request = Request.ask(text, name, options=options, limits=limits, temperature=temperature, seed=seed)
    request = dataclasses.replace(request, trace=trace is not None, report=recorded.report)
    runtime = Runtime.of(settings, policies=[(name, options)])  # only what this policy asks is started

    warn_of_unlike_prompt(text, [settings.engines[role] for role in runtime.engines])

    async def work() -> None:
        await start(runtime)
        recorded.begin()
        try:
            async with aclosing(runtime.solve(request)) as events:
                async for event in events:
                    if isinstance(event, Completion):  # shown before engines are closed, which takes seconds
                        show_end(event)
                    else:
                        recorded.step(event)
                        print_step(event)
        finally:
            await runtime.__aexit__()

    run(work())


def warn_of_unlike_prompt(question: str, engines: Iterable[EngineConfig]) -> None:
    """Say so where the models that ship are asked what they cannot know."""
    from reasonrt.zoo.wording import UNLIKE, likeness

    names = [engine.model for engine in engines if isinstance(engine, VllmConfig | DiffusionConfig)]
    if any(name.startswith(ZOO_PREFIX) for name in names) and likeness(question) < UNLIKE:
        console.print(
            "[yellow]this is unlike what the small models that ship have learned: expect nonsense[/]; `reasonrt zoo` "
            "shows what they can be asked",
            soft_wrap=True,
        )


def print_step(step: Step) -> None:
    style = AUTHOR_STYLES.get(step.author, "magenta")
    console.print(f"[{style}]{step.author:>8}[/] {escape(step.text.strip())}")


def print_end(completion: Completion) -> None:
    spent = ", ".join(
        f"{usage.generated} by {name}" + (f" in {usage.passes} passes" if usage.canvas else "")
        for name, usage in completion.usage.items()
    )
    if completion.finish_reason is not FinishReason.STOP:
        console.print(f"[yellow]ended by {completion.finish_reason}[/]: this is what was committed by then")
    for part, reason in completion.warnings.items():
        console.print(f"[yellow]no {part}[/]: {escape(reason)}", soft_wrap=True)
    console.print(f"[bold]{escape(completion.content or '(no answer)')}[/]")
    console.print(f"[dim]{completion.seconds:.2f} s, tokens generated: {escape(spent)}[/]")
