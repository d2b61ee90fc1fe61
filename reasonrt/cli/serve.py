"""`reasonrt serve`: the OpenAI-compatible endpoint."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from reasonrt.cli.common import ConfigOption, complete_model, console
from reasonrt.errors import ConfigError

_WINDOW_ON_CPU, _WINDOW_ON_GPU = 4096, 32_768  # tokens


def complete_zoo(incomplete: str) -> list[str]:
    """The models that ship, as a configuration names them, for the shell."""
    return [f"zoo:{name}" for name in complete_model(incomplete.removeprefix("zoo:"))]


def serve(
    target: Annotated[
        str | None,
        typer.Argument(
            help="Serve this model in place of the configured engines: a folder, the id of a model on the Hugging Face "
            "hub, or zoo:NAME.",
            autocompletion=complete_zoo,
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(help="Let this model draft for it, named in the same way.", autocompletion=complete_zoo),
    ] = None,
    config: ConfigOption = None,
    local: Annotated[bool, typer.Option("--local", help="Serve in this process alone, without Ray.")] = False,
    host: Annotated[
        str | None, typer.Option(help="Listen on this address; beyond this machine, API keys are required.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Listen on this port; 0 takes a free one.")] = None,
    log_level: Annotated[
        str, typer.Option(help="Write JSON lines of this level and above to standard error.")
    ] = "INFO",
) -> None:
    """Serve every policy as a model of one OpenAI-compatible endpoint.

    API keys come from the configuration, or from the environment: REASONRT_API_KEYS=name=key,name=key.
    """
    from reasonrt.serve.signals import take_signals

    take_signals(_leave)  # until the server takes them: what follows is imported for seconds

    from reasonrt.config import load_config
    from reasonrt.serve.config import load_serve_config
    from reasonrt.serve.logs import log_as_json
    from reasonrt.serve.server import serve_local

    settings = load_config(config, engines_of(target, draft))
    flags: dict[str, Any] = {"host": host, "port": port}
    serving = load_serve_config(
        {**settings.serve, **{name: value for name, value in flags.items() if value is not None}},
        os.environ,
    )
    log_as_json(log_level.upper())
    if local:
        serve_local(settings, serving, _announce)
        return
    from reasonrt.serve.backends.ray import serve_on_ray

    serve_on_ray(settings, serving, _announce)


def engines_of(target: str | None, draft: str | None) -> dict[str, Any]:
    """The configuration's `engines` where models are named: with as long a window as they have and fits."""
    from reasonrt.config import model_folder
    from reasonrt.engines.vllm_settings import is_cpu_build

    if target is None:
        if draft is not None:
            raise ConfigError(f"--draft {draft} drafts for a target; write `reasonrt serve TARGET --draft {draft}`")
        return {}
    on_cpu, engines = is_cpu_build(), {}
    shares = {"target": 0.85} if draft is None else {"target": 0.65, "draft": 0.2}
    for role, model in (("target", target), ("draft", draft)):
        if model is not None:
            own_tokens = _positions_of(model_folder(model))
            engines[role] = {
                "kind": "vllm",
                "model": model,
                "max_model_len": min(own_tokens or _WINDOW_ON_GPU, _WINDOW_ON_CPU if on_cpu else _WINDOW_ON_GPU),
                "kv_cache_mib": 1024 if on_cpu else None,
                "gpu_share": shares[role],
            }
    return {"engines": engines}


def _leave(*_: object) -> None:
    raise SystemExit(0)


def _positions_of(folder: Path) -> int | None:
    """Of a model, where it says how many it has."""
    try:
        known = json.loads((folder / "config.json").read_text())
        positions: int | None = known.get("max_position_embeddings")
        return positions or known.get("text_config", {}).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        raise ConfigError(f"{folder} holds no model (no config.json that can be read); give a folder of one") from None


def _announce(url: str) -> None:
    console.print(f"listening on [bold]{escape(url)}[/]; /ready says when the engines are warm")
