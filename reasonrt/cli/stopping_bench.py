"""`reasonrt bench stopping`: do certificates hold, how near do they come to the best rule, what do they save live."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from reasonrt.calibration.stopping.candidates import FAMILIES, Splits, splits
from reasonrt.calibration.stopping.ledger import Ledger
from reasonrt.cli.common import ConfigOption, JsonOption, TaskOption, bars, console, run, start, write_json
from reasonrt.cli.stopping import LearnOption
from reasonrt.config import load_config
from reasonrt.errors import CalibrationError, shown
from reasonrt.policies.stopping.traces import Split, problem_hash, read_traces, refuse_overlap
from reasonrt.types import Limits

ALPHA, DELTA = 0.05, 0.1
PARTS = ("validity", "tightness", "live")
PartOption = Annotated[
    list[str] | None,
    typer.Option(help=f"Run this part; may be repeated; by default all that are possible: {', '.join(PARTS)}."),
]
TracesOption = Annotated[
    Path | None,
    typer.Option(
        "--traces",
        help="Read the traces that `reasonrt calibrate traces` wrote; without them, populations are made up.",
    ),
]

_LIVE_WITH_TRACES = ("task", "split", "arm", "replayed", "replayed_at_once")
_LIVE_WITHOUT = "recorded"  # traces


def bench(
    ctx: typer.Context,
    traces_file: TracesOption = None,
    learn_file: LearnOption = None,
    part: PartOption = None,
    family: Annotated[
        list[str] | None,
        typer.Option(help=f"Simulate this family of rules; may be repeated; by default all: {', '.join(FAMILIES)}."),
    ] = None,
    draws: Annotated[int, typer.Option(min=100, help="Simulate this many draws of problems per row.")] = 2000,
    out: Annotated[
        Path, typer.Option(help="Live: write into this folder; the same command continues from there.")
    ] = Path("runs/stopping"),
    task: TaskOption = "zoo",
    split: Annotated[
        str, typer.Option(help="Live: take this split of the zoo's tasks, and not that of the traces.")
    ] = "test",
    problems: Annotated[int, typer.Option(min=10, help="Live: measure risk and tokens on this many problems.")] = 500,
    timed: Annotated[
        int, typer.Option(min=10, help="Live: measure time on this many of these problems, the first ones.")
    ] = 100,
    time: Annotated[
        list[str] | None,
        typer.Option(help="Live: measure the time of this arm; may be repeated; by default all that run."),
    ] = None,
    replayed: Annotated[
        int, typer.Option(min=0, help="Live: record and serve this many problems, to compare where they stop.")
    ] = 200,
    replayed_at_once: Annotated[int, typer.Option(min=1, help="Live: work on this many of these concurrently.")] = 1,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="Live: run this arm, by its name in the table; may be repeated; by default all run."),
    ] = None,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Live: measure time with this many concurrent problems; may be repeated."),
    ] = None,
    recorded: Annotated[
        int,
        typer.Option(
            min=100,
            help="Live, without --traces: record this many problems of the zoo to learn on, and as many to certify on, "
            "with each model that stopping is for.",
        ),
    ] = 1500,
    max_tokens: Annotated[int | None, typer.Option(help="Live: end a problem after this many tokens.")] = None,
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Measure whether certificates hold and what they leave, by simulation, and what they save with real engines.

    The live part certifies on --traces, the families that it measures in one try of their ledger; without them it
    records models of the zoo first, and measures the default family. The exit code is 1 where a promise does not hold.
    """
    parts = part or [name for name in PARTS if name != "live" or traces_file]
    if unknown := sorted(set(parts) - set(PARTS)):
        raise CalibrationError(f"unknown part {shown(unknown[0])}; there are {', '.join(PARTS)}")
    _refuse_unused(ctx, parts, traces_file is not None)
    learn = read_traces(learn_file) if learn_file else None
    known = splits(read_traces(traces_file), learn) if traces_file else None
    rows = _simulate(known, parts, draws, family or [])
    results: dict[str, Any] = {"rows": rows}
    write_json(json_file, results)  # kept, whatever becomes of the live part
    if "live" in parts:
        from reasonrt.benches.stopping_live import LiveSettings

        limits = Limits(max_tokens or load_config(config).limits.max_tokens)
        levels = concurrency or (1, 16)
        settings = LiveSettings(
            out, task, limits, problems, timed, replayed, levels, replayed_at_once, arm or None, time or None
        )
        if known is None or traces_file is None:
            rows += _measure_zoo(settings, recorded, config)
        else:
            results["live"] = _measure(known, Ledger.beside(traces_file), split, settings, config)
        write_json(json_file, results)
    promised = (*rows, *results.get("live", {}).get("rows", ()))
    failed = [row for row in promised if row["part"] != "tightness" and not row.get("ok", True)]
    for row in failed:
        console.print(f"[red]does not hold[/] {escape(str(row))}")
    if failed:
        raise typer.Exit(1)


def _refuse_unused(ctx: typer.Context, parts: Sequence[str], has_traces: bool) -> None:
    """Raises: CalibrationError: an option is given that nothing of this run reads."""
    unused: dict[str, str] = {}
    if not {"validity", "tightness"} & set(parts):
        unused |= dict.fromkeys(("family", "draws"), "is for what is simulated")
    if "live" not in parts:
        live = ("out", "problems", "timed", "time", "concurrency", "max_tokens")
        unused |= dict.fromkeys((*live, *_LIVE_WITH_TRACES, _LIVE_WITHOUT), "is for --part live")
    if has_traces:
        unused[_LIVE_WITHOUT] = "is for a run without --traces"
    else:
        unused |= dict.fromkeys(("learn_file", *_LIVE_WITH_TRACES), "is for a run with --traces")
    for option in ctx.command.params:
        source = ctx.get_parameter_source(option.name or "")
        if option.name in unused and source and source.name != "DEFAULT":
            raise CalibrationError(f"{option.opts[0]} {unused[option.name]}; leave it out")


def _simulate(
    recorded: Splits | None, parts: Sequence[str], draws: int, families: Sequence[str]
) -> list[dict[str, Any]]:
    from reasonrt.benches import stopping

    rows: list[dict[str, Any]] = []
    with bars() as advance:
        tried: list[stopping.Case] = []  # the families of one population
        is_simulated, num_cases = {"validity", "tightness"} & set(parts), stopping.most_cases(recorded, families)
        for place, case in enumerate(stopping.cases(recorded, families) if is_simulated else ()):
            advance("simulating", place, num_cases)
            if "validity" in parts:
                rows += stopping.validity_rows(case, draws)
                tried.append(case)
            if "validity" in parts and case.family == stopping.ALL:
                rows += stopping.control_rows(case, draws)
                rows += [stopping.levels_row(case, draws), stopping.looks_row(case, draws)]
                rows.append(stopping.tries_row(tried[:-1], draws))
                tried = []
            if "tightness" in parts:
                rows.append(stopping.tightness_row(case, num_draws=draws))
        if is_simulated:
            advance("simulating", num_cases, num_cases)
        if "validity" in parts:
            rows += [*stopping.boundary_rows(draws), *stopping.joint_boundary_rows(draws)]
    _print_validity(rows)
    _print_joint([row for row in rows if "mistake_rate" in row])
    _print_tightness([row for row in rows if row["part"] == "tightness"])
    return rows + (_watch(draws) if "validity" in parts else [])


def _watch(worlds: int) -> list[dict[str, Any]]:
    """Certificates in service: is the alarm rarely false, and how soon is it raised?"""
    from reasonrt.benches.monitors import delay_rows, monitor_rows

    with console.status("simulating service ..."):
        rates, delays = list(monitor_rows(worlds)), list(delay_rows())
    table = Table("part", "traffic", "evidence", "alarms", "at least", "as it should be", title=f"{worlds} worlds")
    for row in rates:
        evidence = row["choice"].replace("_", " ")
        shares = f"{row['rate']:.3f}", f"{row['rate_low']:.3f}"
        table.add_row(row["part"], row["population"], evidence, *shares, "yes" if row["ok"] else "no")
    console.print(table)
    table = Table("risk rises to", "limit", "before it", "shadowed until the alarm", "requests", "median")
    for row in delays:
        spans = [
            f"{row[name]:,.0f} ({row[f'{name}_low']:,.0f}-{row[f'{name}_high']:,.0f})"
            for name in ("shadowed", "requests")
        ]
        limit, median = f"{row['alpha']:g}", f"{row['requests_median']:,.0f}"
        table.add_row(f"{row['rise']:g} limits", limit, row["population"].removeprefix("after "), *spans, median)
    console.print(table)
    return rates + delays


def _print_validity(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("part", "population", "rows", "certified", "violations, worst", "at least", "as it should be")
    kinds = Counter((row["part"], row["population"]) for row in rows if row["part"] != "tightness")
    for (part, population), num in kinds.items():
        own = [row for row in rows if (row["part"], row["population"]) == (part, population)]
        worst = (min if part == "control" else max)(own, key=lambda row: row["rate"])
        certified = f"{sum(row['certified'] for row in own) / num:.0%}"
        rates = (f"{worst['rate']:.3f}", f"{worst['rate_low']:.3f}")
        table.add_row(part, population, str(num), certified, *rates, f"{sum(row['ok'] for row in own)} of {num}")
    if kinds:
        console.print(table)


def _print_joint(rows: Sequence[dict[str, Any]]) -> None:
    from reasonrt.benches.stopping import MISTAKES

    columns = ("certified", "population", "any wrong", "net saving", "in its place", "any wrong", "net saving")
    table = Table(*columns, title="several certificates from the same problems")
    for row in rows:
        right = (f"{row['rate']:.3f}", f"{row['saving']:.1%}")
        mistake = (f"{row['mistake_rate']:.3f}", f"{row['mistake_saving']:.1%}")
        table.add_row(row["part"], row["population"], *right, MISTAKES[row["part"]], *mistake)
    if rows:
        console.print(table)


def _print_tightness(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(
        "population",
        "family",
        "net saving",
        "of the best rule",
        "share",
        "best single test",
        "certified",
        title="n 300, alpha .05",
    )
    for row in rows:
        share = "nothing to save" if row["share_of_best"] is None else f"{row['share_of_best']:.0%}"
        saving, best, one_test = (f"{row[kind]:.1%}" for kind in ("saving", "best_saving", "one_test_saving"))
        table.add_row(row["population"], row["family"], saving, best, share, one_test, f"{row['certified']:.0%}")
    if rows:
        console.print(table)


def _measure(recorded: Splits, ledger: Ledger, split: str, settings: Any, config: Path | None) -> dict[str, Any]:
    from reasonrt.benches.stopping_live import ALL, CERTIFIED, certify_families, measure_live, policy_of
    from reasonrt.evals.run import EvalProgress
    from reasonrt.evals.tasks import load_task
    from reasonrt.runtime import Runtime

    drawn = load_task(settings.task, max(settings.problems, settings.timed, settings.replayed), split)
    fresh = Split("", frozenset(problem_hash(problem.question) for problem in drawn))
    refuse_overlap({**{role: part.split for role, part in recorded._asdict().items()}, "test": fresh})
    # those that are measured: each level of a try takes a part of delta
    families = [name for name in (ALL, *FAMILIES) if not settings.arms or name + CERTIFIED in settings.arms]
    policy = policy_of(recorded.certify)
    # without the configured defaults: each arm says all of its own options, and one of them never stops
    known = load_config(config, {"policies": {}})
    runtime = Runtime.of(known, policies=[(policy.name, policy.options)])
    model = ", ".join(Path(getattr(known.engines[role], "model", role)).name for role in runtime.engines)

    async def work() -> dict[str, Any]:
        with console.status("certifying ..."):
            certificates = certify_families(recorded, ALPHA, DELTA, families=families, ledger=ledger)
        await start(runtime)
        try:
            with bars() as advance:

                def show(name: str, told: EvalProgress) -> None:
                    advance(name, told.done, told.total)

                found = await measure_live(model, runtime, drawn, recorded.certify, certificates, settings, show)
        finally:
            await runtime.__aexit__()
        return found | {"infeasible": {name: why for name, why in certificates.items() if isinstance(why, str)}}

    found = run(work(), settings.out)
    _print_live(found["rows"], found["infeasible"])
    if "replay" in found:
        console.print("recorded and served: {n}, with the same stop: {same_stop}".format(**found["replay"]))
    return found


def _measure_zoo(live: Any, recorded: int, config: Path | None) -> list[dict[str, Any]]:
    from reasonrt.benches.stopping_zoo import MODELS, ZooSettings, measure_model
    from reasonrt.runtime import Runtime

    settings = ZooSettings(live, ALPHA, DELTA, recorded)

    async def work(model: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
        known = load_config(config, {"policies": {}})
        engines = {"target": known.engines["target"].model_copy(update={"model": f"zoo:{model}"})}
        runtime = Runtime.of(known.model_copy(update={"engines": engines}), roles=["target"])
        await start(runtime, model)
        try:
            with bars() as advance:
                return await measure_model(model, runtime, settings, advance)
        finally:
            await runtime.__aexit__()

    rows: list[dict[str, Any]] = []
    for model in MODELS:
        measured, refused = run(work(model), live.out)
        rows += measured
        _print_live(measured, refused)
    return rows


def _print_live(rows: Sequence[Mapping[str, Any]], infeasible: Mapping[str, str]) -> None:
    at_once = [key for key in (rows[0] if rows else ()) if key.startswith("seconds_saving_at_")]
    columns = [key.replace("seconds_saving_at_", "time saved at ") for key in at_once]
    names = ("arm", "lost", "accuracy", "tokens saved", "certified", "probes", "stopped", "not served", *columns)
    table = Table(*names, title=f"{escape(rows[0]['model'])}, n {rows[0]['n']}" if rows else None)
    shares = ("accuracy", "net_saving", "certified_saving", "probe_share", "stopped")
    for row in rows:
        table.add_row(
            row["arm"],
            f"{row['risk']:.1%} ({row['risk_low']:.1%}-{row['risk_high']:.1%})",
            *(f"{row[key]:.1%}" if key in row else "" for key in shares),
            str(row["fallbacks"]),
            *(f"{row[key]:.1%}" if key in row else "" for key in at_once),
        )
    console.print(table)
    for family, reason in infeasible.items():
        console.print(f"[dim]{family}: {escape(reason)}[/]")
