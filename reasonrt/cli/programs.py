"""`reasonrt bench programs` and `reasonrt calibrate programs`: what program search is worth, and whom to believe."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from reasonrt.cli.ask import ModelOption, WindowOption, engines_of
from reasonrt.cli.common import (
    ConfigOption,
    JsonOption,
    YesOption,
    bars,
    confirm_by,
    console,
    run,
    start,
    write_json,
)

if TYPE_CHECKING:
    from reasonrt.evals.contexts import ContextProblem
    from reasonrt.evals.program_recording import ProgramSettings, RecordedQuestion
    from reasonrt.runtime import Runtime

DEFAULT_TASKS = ("needle_words", "needle_uuids", "variables", "where_object", "label_counts", "label_users")
DEFAULT_CHARACTERS = (32_000, 256_000)


def complete_context_task(incomplete: str) -> list[str]:
    """Names of tasks over long contexts, for the shell."""
    from reasonrt.evals.contexts import task_names

    return [name for name in task_names() if name.startswith(incomplete)]


TasksOption = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help=f"Ask questions of this task; may be repeated; by default {', '.join(DEFAULT_TASKS)}.",
        autocompletion=complete_context_task,
    ),
]
CharactersOption = Annotated[
    list[int] | None,
    typer.Option("--characters", help="Make contexts of this length; may be repeated; by default 32000 and 256000."),
]
ProblemsOption = Annotated[int, typer.Option(min=1, help="Ask this many questions for each task and length.")]
OptionsOption = Annotated[
    str, typer.Option("--options", help="Search with these options of program_search, OPTION=VALUE,OPTION=VALUE.")
]
OutOption = Annotated[
    Path, typer.Option(help="Record into this folder; the same command continues what is recorded there.")
]
ConcurrentOption = Annotated[
    int, typer.Option("--concurrency", min=1, help="Work on this many questions concurrently.")
]
SeedOption = Annotated[int, typer.Option(help="Make the questions and draw the candidates with this seed.")]


def bench(
    simulated: Annotated[
        bool,
        typer.Option(help="Draw candidates from a model whose truth is known, and ask no language model."),
    ] = False,
    questions: Annotated[int, typer.Option(min=100, help="Simulated: ask this many questions.")] = 2000,
    redraws: Annotated[int, typer.Option(min=10, help="Simulated: draw this many certificates.")] = 200,
    task: TasksOption = None,
    characters: CharactersOption = None,
    problems: ProblemsOption = 10,
    options: OptionsOption = "",
    weights: Annotated[
        Path | None, typer.Option(help="Also choose by these weights, which `reasonrt calibrate programs` wrote.")
    ] = None,
    model: ModelOption = None,
    window: WindowOption = 16_384,
    direct_window: Annotated[
        int | None,
        typer.Option(min=256, help="Give the direct call so many tokens, of which the context fills what it can."),
    ] = None,
    out: OutOption = Path("runs/programs"),
    problems_file: Annotated[
        Path | None, typer.Option(help="Also write the questions to this JSONL file, for the benchmark of the peers.")
    ] = None,
    concurrency: ConcurrentOption = 8,
    seed: SeedOption = 0,
    yes: YesOption = False,
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Compare ways of choosing among programs' answers with each other and with a direct call."""
    from dataclasses import replace

    if simulated:
        from reasonrt.benches.programs_simulated import measure_simulated

        value = measure_simulated(num_questions=questions, redraws=redraws, seed=seed)
        _print_rows(value["rows"])
        write_json(json_file, value)
        return
    from reasonrt.benches.programs import arms_of
    from reasonrt.evals.contexts import write_problems
    from reasonrt.programs.weights import Weights

    runtime, settings = _prepare(options, model, window, concurrency, seed, config)
    learned = Weights.read(weights) if weights else None
    drawn = _problems(task or DEFAULT_TASKS, characters or DEFAULT_CHARACTERS, problems, seed, "test")
    if problems_file:
        write_problems(problems_file, drawn)
    records, _ = _record(runtime, drawn, replace(settings, direct_window=direct_window), out, yes)
    rows = arms_of(records, drawn, learned)
    rows.append(_keyword_row(drawn))
    _print_rows(row for row in rows if row["task"] == "all")
    write_json(json_file, {"options": options, "model": str(model or ""), "rows": rows})


def calibrate(
    out: OutOption,
    weights: Annotated[Path, typer.Option("--weights", "-o", help="Write what is learned to this file.")],
    task: TasksOption = None,
    characters: CharactersOption = None,
    problems: ProblemsOption = 20,
    options: OptionsOption = "",
    alpha: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Certify that less than this share of what is answered is wrong."),
    ] = None,
    delta: Annotated[
        float,
        typer.Option(min=0, max=1, help="Let any certificate from these questions be wrong with this probability."),
    ] = 0.1,
    ledger_file: Annotated[
        Path | None,
        typer.Option(
            "--ledger",
            help="Keep the tries on these questions in this file; by default in ledger.jsonl beside the records.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = None,
    window: WindowOption = 16_384,
    concurrency: ConcurrentOption = 8,
    seed: SeedOption = 1_000_000,
    yes: YesOption = False,
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Record candidates on made-up questions, and learn whom to believe, when to stop and when to ask directly.

    Half of the questions is learned from; with --alpha, a promise is certified on the other half.
    """
    from dataclasses import asdict, replace

    from reasonrt.calibration.programs.abstention import certify_abstention
    from reasonrt.calibration.programs.questions import Question, believed, draw
    from reasonrt.calibration.programs.routing import direct_threshold
    from reasonrt.calibration.programs.votes import fit_weights
    from reasonrt.calibration.stopping.ledger import NAME, Ledger
    from reasonrt.evals.contexts import score

    tasks = task or DEFAULT_TASKS
    runtime, settings = _prepare(options, model, window, concurrency, seed, config)
    drawn = _problems(tasks, characters or DEFAULT_CHARACTERS, problems, seed, "train")
    records, fingerprint = _record(runtime, drawn, settings, out, yes)
    asked = [
        Question(record.candidates(), record.answer, record.kind, f"{record.problem}\n{record.question}")  # type: ignore[arg-type]
        for record in records
    ]
    half = slice(None, None, None if alpha is None else 2)  # the other one has a part in the certificate alone
    learned_from = asked[half]
    learned = fit_weights(learned_from, model=fingerprint, task=", ".join(tasks))
    below = direct_threshold(
        (
            record.context_tokens,
            score(problem, record.direct) >= 1,
            score(problem, believed(draw(question, "answer_mass", learned)[0]) or "") >= 1,
        )
        for record, problem, question in zip(records[half], drawn[half], learned_from, strict=True)
        if record.direct is not None
    )
    if alpha is not None:
        ledger = Ledger.beside(out / NAME, ledger_file)
        learned = certify_abstention(
            learned, asked[1::2], order_on=learned_from, alpha=alpha, delta=delta, ledger=ledger
        )
    learned = replace(learned, direct_below_tokens=below)
    learned.write(weights)
    gate = learned.gate
    if gate:
        console.print(
            f"right, on questions not learned from: plurality {gate.plurality:.1%}, by signals {gate.answer_mass:.1%} "
            f"(noise {gate.noise:.1%}); {'signals count' if learned.coefficients else 'every vote counts alike'}"
        )
    direct = "no direct calls: the certificate is for programs" if alpha else f"direct calls below {below:,} tokens"
    console.print(f"{direct}; weights in {escape(str(weights))}")
    write_json(json_file, asdict(learned))


def _problems(tasks: Sequence[str], sizes: Sequence[int], num: int, seed: int, split: Any) -> "list[ContextProblem]":
    from reasonrt.evals.contexts import generate

    return [problem for task in tasks for size in sizes for problem in generate(task, num, size, seed, split=split)]


def _prepare(
    options: str, model: str | None, window: int, concurrency: int, seed: int, config: Path | None
) -> "tuple[Runtime, ProgramSettings]":
    """What records, not started: whatever is wrong with it is told before questions are made up."""
    from reasonrt.config import load_config
    from reasonrt.evals.program_recording import POLICY, ProgramSettings
    from reasonrt.policies.options import parse_options
    from reasonrt.runtime import Runtime

    given = parse_options(options)
    settings = load_config(config, engines_of(model, window))
    recorded = ProgramSettings(given, settings.limits.to_limits(), seed=seed, concurrency=concurrency)
    return Runtime.of(settings, policies=[(POLICY, given)]), recorded


def _record(
    runtime: "Runtime", drawn: "list[ContextProblem]", settings: "ProgramSettings", out: Path, yes: bool
) -> "tuple[list[RecordedQuestion], str]":
    """The recording, and the `model_fingerprint` of what wrote it."""
    from reasonrt.evals.program_recording import record_programs

    async def work() -> "tuple[list[RecordedQuestion], str]":
        await start(runtime)
        try:
            with bars() as advance:
                show = partial(advance, "asking questions")
                records = await record_programs(runtime, drawn, settings, out, show, confirm_by(yes))
            return records, runtime.engines[str(settings.options.get("engine", "target"))].model_fingerprint
        finally:
            await runtime.__aexit__()

    return run(work(), out)


def _keyword_row(drawn: "list[ContextProblem]") -> dict[str, Any]:
    """What a search for words alone gets, without any model."""
    from reasonrt.evals.contexts import keyword_baseline, score
    from reasonrt.evals.statistics import wilson_interval

    right = sum(score(problem, keyword_baseline(problem)) >= 1 for problem in drawn)
    low, high = wilson_interval(right, len(drawn))
    accuracy = {"accuracy": right / len(drawn), "accuracy_low": low, "accuracy_high": high}
    return {"arm": "keywords, no model", "task": "all", "n": len(drawn), **accuracy}


def _print_rows(rows: Any) -> None:
    table = Table("arm", "n", "right", "95 %", "tokens", "sub-questions", "seconds", "abstained")
    for row in rows:
        table.add_row(
            f"{row['arm']}{', ' + row['confidence'] if row.get('confidence') else ''}",
            str(row["n"]),
            f"{row['accuracy']:.1%}",
            f"{row['accuracy_low']:.1%}-{row['accuracy_high']:.1%}",
            *(_number(row, name) for name in ("tokens_per_question", "sub_calls_per_question", "seconds_per_question")),
            f"{row['abstained']:.1%}" if row.get("abstained") else "",
        )
    console.print(table)


def _number(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None else f"{value:,.1f}"
