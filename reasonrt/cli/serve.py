"""`reasonrt serve`: the OpenAI-compatible endpoint."""

import os
from typing import Annotated, Any

import typer

from reasonrt.cli.common import ConfigOption, console


def serve(
    config: ConfigOption = None,
    local: Annotated[bool, typer.Option("--local", help="In this process alone, without Ray.")] = False,
    host: Annotated[str | None, typer.Option(help="Where to listen; beyond this machine only with API keys.")] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free one.")] = None,
    log_level: Annotated[str, typer.Option(help="Of the JSON lines on standard error.")] = "INFO",
) -> None:
    """Serve every policy under /v1. API keys: in the configuration, or REASONRT_API_KEYS=name=key,name=key."""
    from reasonrt.config import load_config
    from reasonrt.serve.config import load_serve_config
    from reasonrt.serve.logs import log_as_json
    from reasonrt.serve.server import serve_local

    settings = load_config(config)
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


def _announce(url: str) -> None:
    console.print(f"listening on [bold]{url}[/]; /ready says when the engines are warm")
