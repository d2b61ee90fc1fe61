"""`reasonrt serve`: the OpenAI-compatible endpoint."""

import os
from typing import Annotated, Any

import typer

from reasonrt.cli.common import ConfigOption, console


def serve(
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
