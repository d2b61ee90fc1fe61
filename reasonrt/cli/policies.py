"""`reasonrt policies`: the ways to solve a request that have a name."""

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from rich.markup import escape
from rich.table import Table

from reasonrt.cli.common import ConfigOption, JsonOption, console, write_json


def policies(config: ConfigOption = None, json_file: JsonOption = None) -> None:
    """List the policies that a request can name, what they need, and whether it is configured here."""
    from reasonrt.config import load_config

    settings = load_config(config)
    rows = list(_rows(set(settings.engines), settings.policies))
    table = Table("policy", "engines", "here", "options and their defaults")
    for row in rows:
        here = "[green]yes[/]" if row["is_here"] else f"[dim]{escape(row['missing'])}[/]"
        engines = ", ".join([*row["engines"], *(f"({role})" for role in row["optional_engines"])])
        options = ", ".join(f"{name}={value}" for name, value in row["options"].items())
        table.add_row(escape(row["policy"]), escape(engines), here, escape(options))
    console.print(table)
    console.print(
        "Write NAME, or NAME@OPTION=VALUE,OPTION=VALUE. An engine in brackets is used where it is there. Every policy "
        "that commits step by step also takes `stopping` and `risk`.",
        style="dim",
        markup=False,
    )
    write_json(json_file, {"policies": rows})


def _rows(engines: set[str], configured: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    from reasonrt.errors import RequestError
    from reasonrt.policies.registry import build_policy, find_policy, policy_names

    for name in policy_names():
        options = {
            each.name: _default(each) for kind in find_policy(name).option_types() for each in fields(kind) if each.init
        }
        row: dict[str, Any] = {"policy": name, "engines": [], "optional_engines": [], "options": options}
        try:
            policy = build_policy(name, configured.get(name, {}))
        except RequestError as error:  # it has an option without a default
            yield row | {"is_here": False, "missing": str(error)}
            continue
        row |= {"engines": list(policy.engines), "optional_engines": list(policy.optional_engines)}
        missing = [role for role in policy.engines if role not in engines]
        yield row | {"is_here": not missing, "missing": f"no engine {missing[0]!r}" if missing else ""}


def _default(field: Any) -> Any:
    """As JSON has it."""
    if field.default is not MISSING:
        return field.default if isinstance(field.default, bool | int | float | str | None) else str(field.default)
    if field.default_factory is not MISSING:
        return str(field.default_factory())
    return "(to be given)"
