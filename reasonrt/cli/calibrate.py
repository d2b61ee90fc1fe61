"""`reasonrt calibrate`: what is learned before serving."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from reasonrt.cli.common import (
    ConfigOption,
    JsonOption,
    SplitOption,
    SuffixOption,
    TaskOption,
    YesOption,
    bars,
    confirm_by,
    console,
    run,
    start,
    write_json,
)
from reasonrt.errors import CalibrationError

app = typer.Typer(no_args_is_help=True, help="Learn routers and stopping rules from recorded runs.")


@app.command(epilog="Example: reasonrt calibrate router --problems 200 --out runs/router")
def router(
    out: Annotated[Path, typer.Option(help="Write recorded steps, router files, report and plot into this folder.")],
    task: TaskOption = "zoo",
    split: SplitOption = "router",
    problems: Annotated[int, typer.Option(min=20, help="Record this many problems.")] = 1200,
    rollouts: Annotated[
        int,
        typer.Option(min=1, max=64, help="Let the target complete this many times per step; the first is greedy."),
    ] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="End a problem after this many tokens.")] = 640,
    suffix: SuffixOption = "",
    concurrency: Annotated[int, typer.Option(min=1, help="Work on this many problems concurrently.")] = 32,
    judges: Annotated[
        bool, typer.Option(help="Also train nano-router and nano-reward, for the models of the zoo only.")
    ] = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Record what draft and target write step by step, and learn when the target should write.

    Ctrl-C stops the recording, and the same command continues it.
    """
    from reasonrt.calibration.routers.report import plot_routers
    from reasonrt.calibration.routers.training import advantages, train_feature_router
    from reasonrt.evals.step_recording import RecordingSettings, record_pairs
    from reasonrt.evals.tasks import load_task
    from reasonrt.runtime import Runtime

    drawn = [replace(problem, question=problem.question + suffix) for problem in load_task(task, problems, split)]

    async def record() -> tuple[Any, dict[str, str]]:
        runtime = Runtime.from_config(config, roles=("draft", "target"))
        await start(runtime)
        try:
            with bars() as advance:
                settings = RecordingSettings(rollouts, max_tokens=max_tokens, concurrency=concurrency)
                show = partial(advance, "recording steps")
                records = await record_pairs(runtime, drawn, settings, out, show, confirm_by(yes))
            return records, {role: runtime.engines[role].model_fingerprint for role in ("draft", "target")}
        finally:
            await runtime.__aexit__()

    records, models = run(record(), out)
    learned, predicted = train_feature_router(records, models)
    learned.save(out / "features.json")
    predictions, reports = {"features": predicted}, {"features": dict(learned.report or {})}
    if judges:
        learned, predicted = _train_judges(records, models, out)
        learned.save(out / "classifier.json")
        predictions["classifier"], reports["classifier"] = predicted, dict(learned.report or {})
    _print(reports)
    plot_routers(predictions, advantages(records), out / "routers.png")
    write_json(json_file, {"reports": reports, "models": models})
    console.print(f"[dim]recorded steps, router files and routers.png are in {escape(str(out))}[/]")


@app.command(epilog="Example: reasonrt calibrate boundary --role draft --config pair.yaml --task problems.jsonl")
def boundary(
    role: Annotated[str, typer.Option(help="Let the engine of this role write.")] = "draft",
    task: TaskOption = "zoo",
    split: SplitOption = "router",
    problems: Annotated[int, typer.Option(min=1, help="Let it solve this many problems.")] = 20,
    max_tokens: Annotated[int, typer.Option(min=1, help="End a problem after this many tokens.")] = 640,
    suffix: SuffixOption = "",
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Find what ends the steps of a model in answers that it writes, for the engine's setting `boundary`."""
    from reasonrt.calibration.boundaries import choose_boundary, cuts_of
    from reasonrt.evals.tasks import load_task
    from reasonrt.runtime import Runtime
    from reasonrt.types import Completion, Limits, Request, Tokenizer

    drawn = load_task(task, problems, split)

    async def write() -> tuple[list[list[int]], Tokenizer]:
        async with Runtime.from_config(config, roles=(role,)) as runtime:
            limits, options = Limits(max_tokens), {"engine": role}
            requests = [Request.ask(each.question + suffix, options=options, limits=limits) for each in drawn]
            answers = []
            with bars() as advance:
                done = 0
                async for _, result in runtime.solve_all(requests):
                    answers += [result] if isinstance(result, Completion) else []
                    done += 1
                    advance("writing", done, len(requests))
            return [[i for step in each.steps for i in step.token_ids] for each in answers], runtime.engines[
                role
            ].tokenizer

    texts, tokenizer = run(write())
    cuts = cuts_of(texts, tokenizer)
    table = Table("boundary", "steps per answer", "tokens per step", "ended by length", title=f"{len(texts)} answers")
    for kind, cut in cuts.items():
        table.add_row(kind, f"{cut.steps_per_text:.1f}", f"{cut.step_tokens:.0f}", f"{cut.too_long:.0%} of the tokens")
    console.print(table)
    console.print(f"engines.{escape(role)}.boundary: {choose_boundary(cuts)}")
    write_json(
        json_file, {"boundary": choose_boundary(cuts), "cuts": {kind: asdict(cut) for kind, cut in cuts.items()}}
    )


def _train_judges(records: Any, models: dict[str, str], out: Path) -> Any:
    """Both judges on all records; the router's curve from a model that was trained on the other half of them."""
    from reasonrt.calibration.routers.training import fit_model_router
    from reasonrt.zoo.catalog import write_judge_card
    from reasonrt.zoo.judges import crossed_scores, train_judge

    try:
        scores = crossed_scores("nano-router", records, out / "halves")
    except FileNotFoundError as error:
        raise CalibrationError(f"judges start from the zoo's draft, which is not here: {error}") from None
    remarks = {
        "nano-router": "Reads marked steps; P(the target's step is better than the draft's).",
        "nano-reward": "Reads plain steps; the value of a step: P(the target ends right after it).",
    }
    for name, remark in remarks.items():
        with console.status(f"training {name} ..."):
            train_judge(name, records, out / name)
        write_judge_card(name, out / name, remark)
    from reasonrt.engines.vllm import VllmEngine
    from reasonrt.engines.vllm_settings import VllmSettings

    fingerprint = VllmEngine("router", out / "nano-router", VllmSettings(scores=True)).model_fingerprint
    return fit_model_router(records, scores, models | {"router": fingerprint})


def _print(reports: dict[str, dict[str, Any]]) -> None:
    table = Table(
        "router", "pairs", "Spearman", "AUC", "captured at 10 / 20 / 30 %", title="on problems not learned from"
    )
    for name, report in reports.items():
        table.add_row(
            name,
            str(report["pairs"]),
            f"{report['spearman']:.3f} ({report['spearman_low']:.2f}-{report['spearman_high']:.2f})",
            f"{report['auc']:.3f}",
            " / ".join(f"{share:.0%}" for share in report["captured"].values()),
        )
    console.print(table)
