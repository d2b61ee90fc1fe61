"""Stopping with a guarantee: `calibrate traces|stopping|plan`, `certificate show|verify`."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from reasonrt.calibration.stopping.candidates import DEFAULT_FAMILY, FAMILIES, Splits, candidates, splits, without_gold
from reasonrt.calibration.stopping.certification import Level, certify_levels
from reasonrt.calibration.stopping.certification import verify as verify_certificate
from reasonrt.calibration.stopping.importers import read_conformal_thinking
from reasonrt.calibration.stopping.ledger import Ledger
from reasonrt.calibration.stopping.provenance import check_provenance
from reasonrt.calibration.stopping.sample_size import Infeasible, check_level
from reasonrt.calibration.stopping.sample_size import plan as plan_certificate
from reasonrt.cli.common import (
    ConcurrencyOption,
    ConfigOption,
    JsonOption,
    MaxTokensOption,
    SplitOption,
    TaskOption,
    TemperatureOption,
    YesOption,
    bars,
    change_limits,
    complete_policy,
    confirm_by,
    console,
    read_policy,
    run,
    start,
    write_json,
)
from reasonrt.config import load_config
from reasonrt.errors import CalibrationError
from reasonrt.policies.stopping.attempt import MOST_TRIES, share_of_try
from reasonrt.policies.stopping.certificate import Certificate, Finding
from reasonrt.policies.stopping.probes import SUFFIX as PROBE
from reasonrt.policies.stopping.risks import RISKS
from reasonrt.policies.stopping.rules import to_json
from reasonrt.policies.stopping.schedule import Schedule
from reasonrt.policies.stopping.signature import PublicKeys, check_signature
from reasonrt.policies.stopping.signature import sign as sign_certificate
from reasonrt.policies.stopping.traces import TraceSet, read_traces, write_traces

Layout = Literal["reasonrt", "conformal-thinking"]
AlphaOption = Annotated[
    list[float],
    typer.Option(
        help="Tolerate this risk, in (0, 1); give one for each --risk. As many again are a further level, for requests "
        "to choose from: the levels are certified together."
    ),
]
DeltaOption = Annotated[
    float,
    typer.Option(help="Accept this probability that any certificate from these problems is wrong, in (0, 1)."),
]
GrowingOption = Annotated[
    bool, typer.Option("--growing", help="Let problems be added and the same be certified again, at any time.")
]
LedgerOption = Annotated[
    Path | None,
    typer.Option(
        "--ledger",
        help="Keep the tries on these problems in this file; by default in ledger.jsonl beside the traces.",
        show_default=False,
    ),
]
TracesOption = Annotated[
    Path, typer.Option("--traces", help="Read the traces that `reasonrt calibrate traces` wrote into this file.")
]
LearnOption = Annotated[
    Path | None,
    typer.Option("--learn", help="Make and order the rules on these other traces; by default on a part of the same."),
]

CertificateArgument = Annotated[Path, typer.Argument(help="Read the certificate in this file.")]

_LONGEST_RULE = 600

certificate_app = typer.Typer(
    no_args_is_help=True, help="Show what a certificate promises, and verify it from its traces."
)


def traces(
    out: Annotated[Path, typer.Option(help="Write the journal and traces.jsonl into this folder.")],
    task: TaskOption = "zoo",
    split: SplitOption = "certify",
    problems: Annotated[int, typer.Option(min=1, help="Record this many problems.")] = 1600,
    policy: Annotated[
        str,
        typer.Option(
            help="Record this policy, written as NAME or NAME@OPTION=VALUE,OPTION=VALUE.",
            autocompletion=complete_policy,
        ),
    ] = "target",
    option: Annotated[list[str] | None, typer.Option("--option", "-o", hidden=True)] = None,
    first_tokens: Annotated[int, typer.Option(min=1, help="Place the first checkpoint after this many tokens.")] = 32,
    growth: Annotated[
        float, typer.Option(min=1.0, help="Multiply the tokens by this from one checkpoint to the next.")
    ] = 1.25,
    block_tokens: Annotated[
        int,
        typer.Option(min=1, help="Place checkpoints at multiples of the engine's cache block, in tokens."),
    ] = 32,
    answer_tokens: Annotated[int, typer.Option(min=1, help="End a probe's answer after this many tokens.")] = 24,
    probe: Annotated[
        str,
        typer.Option(
            help="Ask for the answer by this text, up to its opening brace; one without the end of thinking is for "
            "models that think in their answer."
        ),
    ] = PROBE,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 0.0,
    concurrency: ConcurrencyOption = None,
    yes: YesOption = False,
    config: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Record problems that are thought through to the end, with probes at checkpoints on the way.

    Ctrl-C stops the recording, and the same command continues it.
    """
    from reasonrt.evals.tasks import load_task
    from reasonrt.evals.trace_recording import TraceSettings, record_traces
    from reasonrt.runtime import Runtime

    settings = load_config(config)
    recording = TraceSettings(
        *read_policy(policy, option or ()),
        Schedule(first_tokens, growth, block_tokens, answer_tokens),
        suffix=probe,
        limits=change_limits(settings.limits.to_limits(), max_tokens, None),
        temperature=temperature,
        concurrency=concurrency or settings.concurrency,
    )
    drawn = load_task(task, problems, split)
    runtime = Runtime.of(settings, policies=[(recording.policy, recording.options)])

    async def record() -> TraceSet:
        await start(runtime)
        try:
            with bars() as advance:
                show = partial(advance, "recording traces")
                return await record_traces(runtime, drawn, recording, out, show, confirm_by(yes))
        finally:
            await runtime.__aexit__()

    recorded = run(record(), out)
    write_traces(out / "traces.jsonl", recorded)
    cut_off = sum(trace.full_answer is None for trace in recorded) / len(recorded)
    file = str(out / "traces.jsonl")
    console.print(f"{len(recorded)} traces are in {escape(file)}; {cut_off:.1%} have no full answer")
    write_json(json_file, {"traces": file, "n": len(recorded), "cut_off": cut_off})


def stopping(
    traces_file: TracesOption,
    alpha: AlphaOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the certificate to this file.")] = Path(
        "certificate.json"
    ),
    risk: Annotated[
        list[str] | None,
        typer.Option(help=f"Certify this risk; may be repeated, and all must hold: {', '.join(RISKS)}."),
    ] = None,
    delta: DeltaOption = 0.1,
    family: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Try this family of rules; may be repeated; by default {DEFAULT_FAMILY}: {', '.join(FAMILIES)}."
        ),
    ] = None,
    learn_file: LearnOption = None,
    growing: GrowingOption = False,
    ledger_file: LedgerOption = None,
    gold: Annotated[
        bool, typer.Option(help="Compare with the right answers, or with the model's own full answers.")
    ] = True,
    layout: Annotated[
        Layout,
        typer.Option(
            help="Read both files in this layout; conformal-thinking is that of xidulu/reasoning_risk_control."
        ),
    ] = "reasonrt",
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw three plots into this PNG file.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Certify the cheapest stopping rule whose risk is below alpha, or say why none can be.

    Each try on the same problems is written down and spends a part of delta, so that all certificates from them hold
    together.
    """
    if growing and not learn_file:
        raise CalibrationError("--growing needs --learn: rules made on a part of the same traces change as those grow")
    learn = _read(learn_file, gold, layout) if learn_file else None
    parts = splits(_read(traces_file, gold, layout), learn)
    held_out, risks = parts.certify, risk or ["lost_correct"]
    if len(alpha) % len(risks):
        raise CalibrationError(f"{len(risks)} risks have {len(alpha)} alphas; give one for each, of every level")
    alphas = [alpha[first : first + len(risks)] for first in range(0, len(alpha), len(risks))]
    with console.status("trying rules ..."):
        tried = candidates(parts, family or [DEFAULT_FAMILY], risks)
        levels = [Level(risks, each, tried.order(risks, each)) for each in alphas]
        found = certify_levels(
            held_out, tried.rules, levels,
            delta=delta, train=tried.train, growing=growing, ledger=Ledger.beside(traces_file, ledger_file),
        )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for level, certificate in zip(alphas, found, strict=True):
        if isinstance(certificate, Infeasible):
            rows.append({"alpha": level, "refused": str(certificate)})
            continue
        name = "" if len(alphas) == 1 else "".join(f"-{value}" for value in level)
        certificate.write(file := out.with_stem(out.stem + name))
        rows.append({"alpha": level, "certificate": str(file)} | _summary(certificate))
        _print(certificate)
        if plot_file:
            from reasonrt.calibration.stopping.report import plot_stopping

            plot_stopping(certificate, held_out, plot_file.with_stem(plot_file.stem + name))
    write_json(json_file, {"rows": rows})
    if refused := [str(each) for each in found if isinstance(each, Infeasible)]:
        raise Infeasible("; ".join(refused))


def plan(
    alpha: Annotated[float, typer.Option(help="Plan for this tolerated risk, in (0, 1).")],
    delta: DeltaOption = 0.1,
    attempt: Annotated[
        int, typer.Option("--try", min=1, max=MOST_TRIES, help="Plan for this try on the same problems.")
    ] = 1,
    growing: GrowingOption = False,
    expected_risk: Annotated[float, typer.Option(help="Expect this risk of the rule, as a pilot has shown.")] = 0.0,
    json_file: JsonOption = None,
) -> None:
    """Tell how many problems a promise takes, before any is recorded."""
    check_level("delta", delta)
    tested_at = delta * share_of_try(attempt)
    found = plan_certificate(alpha, tested_at, expected_risk=expected_risk, growing=growing)
    console.print(
        f"A risk below {alpha:g} at delta {delta:g}, of which try {attempt} spends {tested_at:.3g}, takes at least "
        f"{found.least_n} problems to certify on, without a loss;\na rule of risk {expected_risk:g} is certified with "
        f"{found.n} of them with probability {found.power:.2f}: while it loses at most {found.max_losses}."
    )
    write_json(json_file, asdict(found))


@certificate_app.command(epilog="Example: reasonrt certificate show certificate.json")
def show(file: CertificateArgument, json_file: JsonOption = None) -> None:
    """Show what a certificate promises, for which model and settings, and what was seen."""
    certificate = Certificate.read(file)
    _print(certificate)
    write_json(json_file, _summary(certificate))


@certificate_app.command(epilog="Example: reasonrt certificate sign certificate.json --key private.pem")
def sign(
    file: CertificateArgument,
    key: Annotated[Path, typer.Option(help="Sign with the Ed25519 private key in this PEM file.")],
) -> None:
    """Sign a certificate, for servers that serve signed ones alone (`serve.certificate_keys`)."""
    sign_certificate(Certificate.read(file), key).write(file)
    console.print(f"{escape(str(file))} is signed")


@certificate_app.command(
    epilog="Example: reasonrt certificate verify certificate.json --traces runs/traces/traces.jsonl"
)
def verify(
    file: CertificateArgument,
    traces_file: TracesOption,
    ledger_file: LedgerOption = None,
    learn_file: Annotated[
        Path | None,
        typer.Option("--learn", help="Recompute rules and order from these traces, if it was made with --learn."),
    ] = None,
    public_key: Annotated[
        list[Path] | None,
        typer.Option(help="Require a signature by the Ed25519 key in this PEM file; may be repeated: by one of them."),
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Recompute a certificate from its traces and its ledger; one line says what differs, or what they cannot show."""
    certificate, recorded = Certificate.read(file), read_traces(traces_file)
    check_signature(certificate, PublicKeys.read(public_key or ()))
    learn = read_traces(learn_file) if learn_file else None
    parts, is_whole = _parts_of(certificate, recorded, learn)
    verify_certificate(certificate, parts.certify, Ledger.beside(traces_file, ledger_file))
    told = f"{file}: {certificate.num_problems} traces give this certificate; {_tries(certificate)}"
    console.print(escape(told))
    unknown = ["its rules and their order; name the traces that they were made from by --learn"]
    gaps = check_provenance(certificate, parts) if is_whole else unknown
    for gap in gaps:
        console.print(f"[yellow]not verified:[/] {escape(gap)}", soft_wrap=True)
    write_json(json_file, _summary(certificate) | {"not_verified": gaps})


def _parts_of(certificate: Certificate, recorded: TraceSet, learn: TraceSet | None) -> tuple[Splits, bool]:
    """The splits that it was certified on, with or without gold, and whether they are all that it was made from."""
    for strip in (TraceSet.of, without_gold):
        whole, other = strip(recorded), learn and strip(learn)
        parts = splits(whole, other)
        if parts.certify.split.sha256 == certificate.splits.get("certify"):
            return parts, True
        if whole.split.sha256 == certificate.splits.get("certify"):
            return parts._replace(certify=whole), not certificate.splits.keys() - {"certify"}
    return Splits(recorded, recorded, recorded), False


def _read(file: Path, gold: bool, layout: Layout) -> TraceSet:
    traces = read_traces(file) if layout == "reasonrt" else read_conformal_thinking(file)
    return traces if gold else without_gold(traces)


def _summary(certificate: Certificate) -> dict[str, Any]:
    """What `_print` says, but for the rule."""
    return {
        "sha256": certificate.sha256,
        "findings": [asdict(finding) for finding in certificate.findings],
        "delta": certificate.delta,
        "n": certificate.num_problems,
        "saving": asdict(certificate.saving),
        "attempt": certificate.attempt.number,
        "fingerprints": asdict(certificate.fingerprints),
        "signed": certificate.signature is not None,
    }


def _print(certificate: Certificate) -> None:
    for finding in certificate.findings:
        console.print(_sentence(finding, certificate.delta))
    console.print(_tries(certificate))
    saving = certificate.saving
    console.print(
        f"net saving {saving.net:.1%} ({saving.low:.1%} to {saving.high:.1%}) of the tokens of thinking to the end, on "
        f"the {certificate.num_problems} certified problems, probes counted"
    )
    console.print(f"{certificate.num_certified} of {len(certificate.order)} rules certified; the cheapest:")
    rule = to_json(certificate.rule)
    rule = rule if len(rule) <= _LONGEST_RULE else f"{rule[:_LONGEST_RULE]} ... {len(rule)} characters"  # it has trees
    console.print(f"  {rule}", style="dim", markup=False)
    table = Table("group", "problems", "losses", "risk at most", "net saving", title="seen, not promised, by group")
    for group in certificate.groups:
        finding = group.findings[0]
        table.add_row(
            escape(group.group) or "-",
            str(group.num_problems),
            str(finding.k),
            f"{finding.upper_bound:.1%}",
            f"{group.saving.net:.1%}",
        )
    console.print(table)
    for name, value in asdict(certificate.fingerprints).items():
        console.print(f"[dim]{name:>9}[/] {escape(str(value))}", soft_wrap=True)
    console.print(f"[dim]   sha256[/] {certificate.sha256}")
    signed = "no" if certificate.signature is None else "yes; `verify --public-key` says by whom"
    console.print(f"[dim]   signed[/] {signed}")


def _sentence(finding: Finding, delta: float) -> str:
    return (
        f"{finding.risk} below {finding.alpha:g}, wrong with probability at most {delta:g}: "
        f"{finding.k} of {finding.n} lost, p = {finding.p_value:.2g}"
    )


def _tries(certificate: Certificate) -> str:
    number, num_levels = certificate.attempt.number, len(certificate.attempt.levels)
    spent = f"tested at {certificate.tested_at:.3g} of delta {certificate.delta:g}"
    spent += f", with {num_levels - 1} other levels" if num_levels > 1 else ""
    spent += ", and may be certified again as problems are added" if certificate.growing else ""
    if number is None:
        return f"no ledger was kept, so nothing else may have been tried on these problems; {spent}"
    return f"try {number} on these problems, all of whose certificates hold together; {spent}"
