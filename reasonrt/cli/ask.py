"""`reasonrt ask`: a question about files that no context window holds; what is known so far is shown as it comes."""

import dataclasses
import sys
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from reasonrt.cli.common import (
    ConfigOption,
    JsonOption,
    MaxTokensOption,
    change_limits,
    complete_policy,
    console,
    read_policy,
    run,
    start,
    write_json,
)
from reasonrt.cli.documents import read_documents
from reasonrt.config import model_folder
from reasonrt.errors import ConfigError, shown
from reasonrt.programs.protocol import plain
from reasonrt.types import Completion, Request

POLICY = "program_search"
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Let this model write the programs: a folder, or the id of a model on the Hugging Face hub; else the "
        "configuration's target."
    ),
]
WindowOption = Annotated[int, typer.Option(min=1024, help="Give the model of --model a window of so many tokens.")]
_SHOWN_ANSWERS = 3


def ask(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE... QUESTION",
            help="Read these files, folders or patterns, - for standard input; the last argument is the question.",
        ),
    ],
    model: ModelOption = None,
    window: WindowOption = 16_384,
    policy: Annotated[
        str,
        typer.Option(
            help="Ask by this policy, written as NAME or NAME@OPTION=VALUE,OPTION=VALUE.",
            autocompletion=complete_policy,
        ),
    ] = POLICY,
    max_tokens: MaxTokensOption = None,
    deadline_s: Annotated[
        float | None, typer.Option("--deadline", help="Stop after this many seconds with the best answer by then.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Draw with this seed, so that the answer can be reproduced.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write programs, observations and votes to this file; `reasonrt trace FILE` shows it."),
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="Write what a replay needs to this file, the documents included.")
    ] = None,
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Answer a question about files, by programs that a model writes, and show what the answer rests on."""
    from reasonrt.config import load_config
    from reasonrt.runtime import Runtime

    *files, question = places
    if not files:
        raise ConfigError(f"name at least one file before the question; {shown(question)} is all that was given")
    if any(0xD800 <= ord(character) < 0xE000 for character in question):
        raise ConfigError("the question is not UTF-8 text; set the terminal to UTF-8")
    documents = read_documents(files)
    settings = load_config(config, engines_of(model, window))
    name, options = read_policy(policy)
    if name == POLICY:
        options |= {"trace": True} if trace else {}
        options |= {"journal": True} if journal else {}
    progress = _Progress()
    request = Request.ask(
        question,
        name,
        context=documents,
        options=options,
        limits=change_limits(settings.limits.to_limits(), max_tokens, deadline_s),
        seed=seed,
        report=progress.show,
    )
    runtime = Runtime.of(settings, policies=[(name, options)])

    async def work() -> Completion:
        await start(runtime)
        try:
            with progress:
                async with aclosing(runtime.solve(request)) as events:
                    async for event in events:
                        if isinstance(event, Completion):
                            return event
        finally:
            await runtime.__aexit__()
        raise AssertionError("solve ends with a completion")

    completion = run(work())
    details = dict(completion.details)
    records = [(trace, details.pop("trace", None)), (journal, details.pop("journal", None))]
    print_found(completion, details)
    for file, record in records:
        if record is not None:
            write_json(file, record)
        elif file is not None:
            console.print(f"[yellow]no programs were run, so that there is nothing to write to {escape(str(file))}[/]")
    write_json(json_file, dataclasses.asdict(completion) | {"details": details})


def engines_of(model: str | None, window: int) -> dict[str, Any]:
    """The configuration's `engines` where a model is named, as the one that writes and answers everything."""
    if model is None:
        return {}
    if not (model_folder(model) / "config.json").is_file():
        raise ConfigError(f"there is no model in {model}; name a Hugging Face folder, with config.json and weights")
    return {
        "engines": {
            "target": {
                "kind": "vllm",
                "model": model,
                "max_model_len": window,
                "max_num_seqs": 64,
                "kv_cache_mib": 2048,
            }
        }
    }


class _Progress:
    """One line that changes on a terminal; elsewhere a line for each candidate that has ended."""

    def __init__(self) -> None:
        self._status = console.status("reading ...") if console.is_terminal else None
        self._num_ended = 0

    def __enter__(self) -> None:
        if self._status:
            self._status.start()

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def show(self, known: Mapping[str, Any]) -> None:
        """Say what a run knows so far."""
        if known.get("kind") != "search":
            return
        answers = [f"{_on_one_line(answer)[:40]} ×{votes}" for answer, votes in known["answers"].items()][
            :_SHOWN_ANSWERS
        ]
        line = (
            f"{known['seconds']:.0f} s · {known['ended']} of {known['started']} candidates ended · "
            f"{known['programs']} programs · {known['sub_calls']} sub-questions · {known['tokens']:,} tokens"
            + (f" · so far: {', '.join(answers)}" if answers else "")
        )
        if self._status:
            self._status.update(escape(line))
        elif known["ended"] > self._num_ended:
            self._num_ended = known["ended"]
            sys.stderr.write(f"{line}\n")


def print_found(completion: Completion, details: Mapping[str, Any]) -> None:
    """The answer with its evidence, and what was spent on it."""
    # nothing that models and documents say may act on the terminal
    console.print(f"[bold]{escape(plain(completion.content) or '(no answer)')}[/]", soft_wrap=True)
    for span in details.get("evidence", []):
        name, before, text, after = (escape(_on_one_line(span[part])) for part in ("name", "before", "text", "after"))
        console.print(f"[cyan]{name}:{span['line']}[/] [dim]characters {span['start']}-{span['end']}[/]")
        console.print(f"  [dim]{before}[/] [green]{text}[/] [dim]{after}[/]", soft_wrap=True)
    generated = completion.generated_tokens
    if details.get("route") == "programs":
        shares = ", ".join(
            f"{_on_one_line(answer)[:40]} {share:.0%}" for answer, share in list(details["shares"].items())[:4]
        )
        candidates = ", ".join(f"{count} {status}" for status, count in details["candidates"].items())
        console.print(
            f"[dim]{details['strategy']}: {escape(shares or 'no votes')} · candidates: {candidates} · "
            f"{details['programs']} programs · {details['sub_calls']} sub-questions[/]",
            soft_wrap=True,
        )
    console.print(f"[dim]{completion.seconds:.1f} s · {generated:,} tokens generated · {completion.finish_reason}[/]")


def _on_one_line(text: str) -> str:
    return plain(" ".join(text.split()))


def replay(
    journal: Annotated[Path, typer.Argument(help="Do the run again that this file tells of.")],
    trace: Annotated[Path | None, typer.Option(help="Write the trace of the replay to this file.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Do a journaled run again without any model, and compare the traces."""
    from reasonrt.policies.program_search import replay as replay_run
    from reasonrt.programs.journal import Journal
    from reasonrt.programs.sandbox.build import build_sandbox

    recorded = Journal.read(journal)

    async def work() -> Any:
        sandbox = build_sandbox(recorded.backend)
        await sandbox.start()
        try:
            return await replay_run(recorded, sandbox)
        finally:
            await sandbox.aclose()

    found = run(work())
    write_json(trace, dict(found.trace.value) if trace else None)
    is_same = found.trace.sha256 == recorded.trace_hash
    console.print(f"recorded {recorded.trace_hash}\nreplayed {found.trace.sha256}")
    console.print("[green]the same trace[/]" if is_same else "[red]another trace[/]: this version works in another way")
    write_json(json_file, {"recorded": recorded.trace_hash, "replayed": found.trace.sha256, "is_same": is_same})
    raise typer.Exit(0 if is_same else 1)
