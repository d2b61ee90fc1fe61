"""`reasonrt bench speculation` and `reasonrt plan`: what calling the large model only where it pays is worth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from reasonrt.cli.common import ConfigOption, JsonOption, console, run, write_json
from reasonrt.config import Config, VllmConfig, load_config
from reasonrt.errors import ConfigError
from reasonrt.evals.report import Report
from reasonrt.evals.run import EvalProgress, PolicySpec, RunSettings
from reasonrt.runtime import Runtime
from reasonrt.types import Limits

OUT = Path("runs/speculation")
TOKEN_LEVEL: dict[str, dict[str, Any]] = {
    "target, n-gram": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4},
    "target, draft model": {"method": "draft_model", "num_speculative_tokens": 4},
}


def bench(
    out: Annotated[Path, typer.Option(help="The run's folder; the same command goes on from what is there.")] = OUT,
    task: Annotated[str, typer.Option(help="As for `reasonrt eval`.")] = "zoo",
    split: Annotated[str, typer.Option(help="Of the zoo's tasks.")] = "test",
    problems: Annotated[int, typer.Option(min=10, help="For accuracy.")] = 400,
    timed: Annotated[int, typer.Option(min=10, help="For time; the first ones of these problems.")] = 100,
    inflate: Annotated[int, typer.Option(min=1, max=16, help="Time with a target so many times as wide.")] = 1,
    concurrency: Annotated[list[int] | None, typer.Option(min=1, help="Problems at once; may be repeated.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Policies to sweep; default: all.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Arms not to time, by the name in the table.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens per problem.")] = 640,
    suffix: Annotated[str, typer.Option(help="Words to put after each question.")] = "",
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Accuracy and time of step-level policies against the target alone, in alternation, with every setting swept."""
    from reasonrt.evals import speculation as arms
    from reasonrt.evals.tasks import load_task

    settings = load_config(config)
    families = family or list(arms.SWEEPS)
    if unknown := sorted(set(families) - set(arms.SWEEPS)):
        raise ConfigError(f"unknown family {unknown[0]!r}; there are {', '.join(arms.SWEEPS)}")
    drawn = load_task(task, max(problems, timed), split)
    levels = concurrency or [1, 8, 32]

    def run_settings(at_once: int, block: int) -> RunSettings:
        return RunSettings(task, Limits(max_tokens), at_once, prompt_suffix=suffix, block=block)

    async def work() -> tuple[Report, list[dict[str, Any]]]:
        specs = arms.accuracy_arms(families)
        if "reward" not in settings.engines:
            specs = [spec for spec in specs if spec.name != "oracle"]
        sweep = (specs, run_settings(48, 100), out / "accuracy")
        (swept,), _ = await _evaluate(settings, drawn[:problems], [sweep])
        points = arms.operating_points(swept, families)
        timing = _timing_config(settings, inflate, [role for role in TOKEN_LEVEL if role not in (skip or ())])
        extra = [role for role in timing.engines if role in TOKEN_LEVEL]
        chosen = [arms.timing_arms(points, extra, skip or ()) for _ in levels]
        reports, paces = await _evaluate(
            timing,
            drawn[:timed],
            [
                ([arm.policy for arm in arms_of], run_settings(level, 10 if level == 1 else 50), out / f"timed-{level}")
                for level, arms_of in zip(levels, chosen, strict=True)
            ],
        )
        rows = [
            row
            for level, arms_of, report in zip(levels, chosen, reports, strict=True)
            for row in arms.bench_rows(arms_of, report, swept, level, paces)
        ]
        return swept, rows

    swept, rows = run(work())
    label = f"target inflated {inflate} times (the same function, {inflate**2} times the work)" if inflate > 1 else ""
    _print_rows(rows, label)
    write_json(json_file or out / "speculation.json", {"rows": rows, "swept": swept.rows(), "inflate": inflate})
    arms.plot_bench(rows, swept, label or task, out / "speculation.png")
    console.print(f"[dim]journals, speculation.json and speculation.png are in {out}[/]")


def _timing_config(settings: Config, inflate: int, token_level: Sequence[str]) -> Config:
    target = settings.engines["target"]
    if not isinstance(target, VllmConfig):
        if inflate > 1:
            raise ConfigError("only a target that runs in vLLM here can be inflated; leave --inflate out")
        return settings
    target = target.model_copy(update={"inflate": inflate})
    engines = dict(settings.engines) | {"target": target}
    draft = settings.engines["draft"]
    if isinstance(draft, VllmConfig):
        for role in token_level:
            speculative = TOKEN_LEVEL[role]
            known = speculative | ({"model": draft.model} if speculative["method"] == "draft_model" else {})
            engines[role] = target.model_copy(update={"speculative": known})
    return settings.model_copy(update={"engines": engines})


Evaluation = tuple[Sequence[PolicySpec], RunSettings, Path]
"""What to run, how, and where its journal is."""


async def _evaluate(
    settings: Config, problems: Sequence[Any], evaluations: Sequence[Evaluation]
) -> tuple[list[Report], dict[str, Any]]:
    """The reports of several evaluations on the same engines, and the pace of each of these."""
    from reasonrt.engines.build import build_engines
    from reasonrt.evals.run import evaluate
    from reasonrt.policies.registry import roles_of

    roles = {role for specs, _, _ in evaluations for spec in specs for role in roles_of(spec.name, spec.options)}
    engines = build_engines(settings, roles)
    reports = []
    with console.status(f"starting {', '.join(engines)} ...") as status:
        async with Runtime(engines, settings.policies) as runtime:
            for specs, run_settings, out in evaluations:

                def advance(progress: EvalProgress, name: str = out.name) -> None:
                    status.update(f"{name}: {progress.done} of {progress.total}, {progress.label}")

                reports.append(await evaluate(runtime, problems, specs, run_settings, out, advance))
            return reports, runtime.paces


def _print_rows(rows: Sequence[dict[str, Any]], title: str) -> None:
    table = Table(
        "at once", "policy", "accuracy", "- target", "s/problem", "speed-up", "plan", "by draft", "useless", title=title
    )
    for row in rows:
        table.add_row(
            str(row["concurrency"]),
            row["policy"],
            f"{row['accuracy']:.1%}",
            f"{100 * row['accuracy_minus_target']:+.1f}",
            f"{row['seconds_per_problem']:.3f}",
            f"{row['speedup_vs_target']:.2f} ({row['speedup_low']:.2f}-{row['speedup_high']:.2f})",
            f"{row['predicted_speedup']:.2f}" if row["predicted_speedup"] else "",
            f"{row['draft_token_share']:.0%}",
            f"{row['useless_escalation_rate']:.0%}" if row["escalation_rate"] else "",
        )
    console.print(table)


def plan(
    task: Annotated[str, typer.Option(help="As for `reasonrt eval`.")] = "zoo",
    problems: Annotated[int, typer.Option(min=2, help="To measure both models on.")] = 20,
    concurrency: Annotated[int, typer.Option(min=1, help="Problems at once.")] = 1,
    inflate: Annotated[int, typer.Option(min=1, max=16, help="Plan for a target so many times as wide.")] = 1,
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Measure both models alone and predict what speculation can gain, or that it does not pay."""
    import tempfile

    from reasonrt.calibration.speedup import Parts, break_even_share, predicted_speedup
    from reasonrt.evals.tasks import load_task

    settings = _timing_config(load_config(config), inflate, token_level=())
    drawn = load_task(task, problems)

    async def measure(out: Path) -> Report:
        run_settings = RunSettings(task, Limits(640), concurrency, block=max(5, concurrency))
        reports, _ = await _evaluate(
            settings, drawn, [([PolicySpec("target"), PolicySpec("draft")], run_settings, out)]
        )
        return reports[0]

    with tempfile.TemporaryDirectory() as folder:
        rows = {row["policy"]: row for row in run(measure(Path(folder))).rows()}
    seconds = {name: row["seconds_per_problem"] / row["tokens_per_problem"] for name, row in rows.items()}
    tokens = rows["target"]["tokens_per_problem"]

    def parts(share: float) -> Parts:
        return Parts(seconds["draft"], seconds["target"], share, step_tokens=16.0, wasted_share=1.0 - share)

    table = Table("accepted by draft", "seconds per problem", "speed-up")
    predictions = {share: predicted_speedup(parts(share)) for share in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)}
    for share, gain in predictions.items():
        table.add_row(f"{share:.0%}", f"{seconds['target'] * tokens / gain:.3f}", f"{gain:.2f}")
    console.print(
        f"target {1000 * seconds['target']:.2f} ms per token, draft {1000 * seconds['draft']:.2f} ms, "
        f"{concurrency} at once: c = {seconds['draft'] / seconds['target']:.2f}"
    )
    console.print(table)
    enough = break_even_share(parts(1.0))
    console.print(
        "[yellow]Speculation does not pay here: the draft is not faster than the target.[/]"
        if enough is None
        else f"It pays from {enough:.0%} of the tokens accepted; below, the target alone is faster."
    )
    write_json(
        json_file,
        {"draft_s_per_token": seconds["draft"], "target_s_per_token": seconds["target"], "break_even_share": enough,
         "predicted_speedup": predictions},
    )  # fmt: skip
