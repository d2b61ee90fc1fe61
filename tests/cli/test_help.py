"""The command line explains itself: whole sentences, and for each command an example that it would take.

So do the commands in the documents: each of them parses, and its policies can be built.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from reasonrt.cli.common import read_policy
from reasonrt.cli.main import app
from reasonrt.policies.registry import build_policy

ROOT = Path(__file__).parents[2]
CLI: Any = typer.main.get_command(app)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _commands(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The command, and every one below it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, *path, name)


ALL = list(_commands(CLI))
LEAVES = [(path, command) for path, command in ALL if not hasattr(command, "commands")]


def _assert_sentence(text: str | None, what: str) -> None:
    assert text, f"{what} has no help"
    assert re.match(r"[A-Z]", text), f"{what}: {text}"
    assert text.endswith("."), f"{what}: {text}"
    assert len(text.split()) >= 3, f"{what}: {text}"


def _parse(arguments: list[str]) -> dict[str, Any]:
    """The values of a command line, without running it; raises where it would be refused."""
    command, name, context = CLI, "reasonrt", None
    while hasattr(command, "commands"):
        context = command.make_context(name, list(arguments), parent=context)
        found, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        name = found
    parsed: dict[str, Any] = command.make_context(name, list(arguments), parent=context).params
    return parsed


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_the_shell_completes_policies_and_tasks_wherever_one_is_named(path: tuple[str, ...], command: Any) -> None:
    known = {"policy": "self_consistency", "task": "variables" if path[-1] == "programs" else "zoo"}
    for parameter in command.params:
        if name := known.get(parameter.name):
            found = parameter.shell_complete(typer.Context(command), name[:2])
            assert name in [item.value for item in found], f"{' '.join(path)}: {parameter.opts}"


def _named(leaves: list[tuple[tuple[str, ...], Any]]) -> list[Any]:
    return [pytest.param(path, command, id=" ".join(path) or "reasonrt") for path, command in leaves]


@pytest.mark.parametrize(("path", "command"), _named(ALL))
def test_help_is_sentences(path: tuple[str, ...], command: Any) -> None:
    _assert_sentence(" ".join(command.help.split()), " ".join(path))
    for parameter in command.params:
        if not getattr(parameter, "hidden", False):
            _assert_sentence(parameter.help, f"{' '.join(path)} {parameter.name}")


@pytest.mark.parametrize(("path", "command"), _named(LEAVES))
def test_help_shows_an_example_that_the_command_takes(path: tuple[str, ...], command: Any) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "240", "NO_COLOR": "1"})

    assert shown.exit_code == 0
    (example,) = re.findall(r"Example: reasonrt (.*)", command.epilog)
    assert f"Example: reasonrt {example}" in " ".join(shown.output.split())
    assert example.split()[: len(path)] == list(path)
    _parse(shlex.split(example))


WITHOUT_JSON = {
    ("trace",): "it shows a file that is JSON",
    ("serve",): "it has no end, and what it logs is JSON",
    ("config", "reference"): "it prints a page",
    ("zoo", "wording"): "its result is a file of its own",
    ("certificate", "sign"): "its result is the certificate, which is JSON",
}


@pytest.mark.parametrize(("path", "command"), _named(LEAVES))
def test_every_command_can_be_quiet_and_give_json(path: tuple[str, ...], command: Any) -> None:
    options = {option for parameter in command.params for option in parameter.opts}

    assert "--quiet" in options
    assert ("--json" in options) is (path not in WITHOUT_JSON)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("doctor --nothing", "No such option"),
        ("nothing", "No such command"),
        ("zoo nothing", "No such command"),
        ("serve --port x", "valid integer"),
    ],
)
def test_what_a_command_does_not_take_is_found(arguments: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        _parse(shlex.split(arguments))


def _documented() -> Iterator[Any]:
    for page in PAGES:
        blocks = "\n".join(re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text(), re.DOTALL))
        for line in blocks.replace("\\\n", " ").splitlines():
            if line.removeprefix("$ ").startswith("reasonrt "):
                yield pytest.param(line.removeprefix("$ ").removeprefix("reasonrt "), id=f"{page.name}: {line[:60]}")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("line", list(_documented()))
def test_commands_in_the_documents_are_taken(line: str) -> None:
    parsed = _parse(shlex.split(line, comments=True))

    policies = parsed.get("policy") or []
    for policy in [policies] if isinstance(policies, str) else policies:
        build_policy(*read_policy(policy))
