"""`reasonrt config`: the effective configuration."""

import os

import typer
import yaml

from reasonrt.cli.common import ConfigOption, JsonOption, console, write_json
from reasonrt.config import dump_config, load_config
from reasonrt.masking import masked
from reasonrt.serve.config import load_serve_config

app = typer.Typer(no_args_is_help=True, help="Show the configuration in effect.")


@app.command("reference", epilog="Example: reasonrt config reference")
def show_reference() -> None:
    """Print every key of the configuration with its values, its default and its meaning, as Markdown."""
    from reasonrt.cli.reference import reference

    typer.echo(reference(), nl=False)


@app.command(epilog="Example: reasonrt config show --config reasonrt.yaml")
def show(config: ConfigOption = None, json_file: JsonOption = None) -> None:
    """Print the effective configuration as YAML, defaults included."""
    settings = load_config(config)
    serving = {"serve": load_serve_config(settings.serve, os.environ).model_dump(mode="json")}  # API keys are masked
    typer.echo(dump_config(settings) + yaml.safe_dump(serving, sort_keys=False), nl=False, err=console.stderr)
    write_json(json_file, masked(settings.model_dump(mode="json")) | serving)
