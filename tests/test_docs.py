"""Documents point at what is there: their links, the files that they name, and the options that they describe.

What they show is run: every program and command without a mark above it here, with engines that add numbers; the others
name the test that runs them, or say why none does.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import yaml
from typer.testing import CliRunner

from reasonrt.cli.demo_file import failed_logins, writing_programs
from reasonrt.cli.main import app
from reasonrt.cli.reference import reference
from reasonrt.config import load_config
from reasonrt.diffusion.decoding import Decoding, Strategy
from reasonrt.policies.program_search import ProgramSearch
from reasonrt.policies.registry import build_policy, policy_names
from reasonrt.programs.language import SIGNATURES
from reasonrt.runtime import Runtime
from reasonrt.serve.config import load_serve_config
from reasonrt.types import Request

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").rglob("*.md"))
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
_FOLDERS = (ROOT, ROOT / "reasonrt", ROOT / "calibration", ROOT / "tests" / "serve")  # that pages name files from


def _anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub makes links of them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_it_names_are_there(page: Path) -> None:
    named = set(re.findall(r"(?<![\w/.-])((?:\w[\w.-]*/)+\w[\w-]*\.(?:py|yaml|json|txt))(?![\w/-])", page.read_text()))

    missing = {name for name in named if not name.startswith(("runs/", "models/", "data/"))}
    missing = {name for name in missing if not any((folder / name).exists() for folder in _FOLDERS)}
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_that_it_shows_can_be_read(page: Path, tmp_path: Path, installed: Path) -> None:
    file = tmp_path / "reasonrt.yaml"
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        assert isinstance(yaml.safe_load(block), dict)
        file.write_text(block)
        config = load_config(file)
        load_serve_config(config.serve, {})
        for name, options in config.policies.items():
            build_policy(name, options)


def test_programs_page_has_every_option_and_every_function() -> None:
    page = (ROOT / "docs" / "programs.md").read_text()
    described = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    functions = set(re.findall(r"`(\w+)\(", page))

    assert not {option.name for option in fields(ProgramSearch)} - described
    assert not {name for name in SIGNATURES if not name.startswith("_")} - functions


def test_diffusion_page_has_every_option() -> None:
    page = (ROOT / "docs" / "diffusion.md").read_text()
    described = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}

    assert not {"engine", *(option.name for option in fields(Decoding))} - described
    assert not set(get_args(Strategy)) - described


def test_the_page_of_all_keys_is_what_the_command_prints() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()

    assert page == reference(), "run `reasonrt config reference > docs/configuration.md`"


def _entries(nav: list[Any]) -> Iterator[tuple[str, str]]:
    """Title and file of each page of the site."""
    for entry in nav:
        ((title, below),) = entry.items()
        if isinstance(below, str):
            yield title, below
        else:
            yield from _entries(below)


def test_the_site_has_each_page_once_and_a_page_for_each_policy() -> None:
    entries = list(_entries(SITE["nav"]))
    pages = sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))

    assert sorted(file for _, file in entries) == pages
    titles = [title.split(", ") for title, _ in entries]
    assert set(policy_names()) <= {name for title in titles for name in title}


def test_pages_of_the_site_link_only_to_each_other() -> None:
    """What stands elsewhere in the repository is named, since the site does not have it."""
    for page in (ROOT / "docs").rglob("*.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)\s#]+)", page.read_text()):
            assert (ROOT / "docs") in (page.parent / link).resolve().parents, f"{page.name}: {link}"


def test_figures_that_choosing_a_policy_rests_on_stand_where_they_were_measured() -> None:
    measured = "".join((ROOT / "docs" / name).read_text() for name in ("figures.md", "diffusion.md", "programs.md"))
    rows = re.findall(r"^\| .*", (ROOT / "docs" / "policies.md").read_text(), re.MULTILINE)
    quoted = {
        number for row in rows for number in re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w.])", row.rpartition(" | ")[2])
    }

    assert len(quoted) > 30
    assert not {number for number in quoted if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", measured)}


def test_messages_that_the_page_of_errors_quotes_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    code = "".join(file.read_text() for folder in ("reasonrt", "policies", "routers", "calibration")
                   for file in (ROOT / folder).rglob("*.py"))  # fmt: skip
    joined = re.sub(r"\"\s*f?\"", "", code)  # a message over several lines
    quoted = [
        each for line in re.findall(r"^\*\*`.*", page, re.MULTILINE) for each in re.findall(r"\*\*`([^`]+)`", line)
    ]

    assert len(quoted) > 12
    assert [message for message in quoted if message not in joined and message != "arbitrage"] == []


class Block(NamedTuple):
    """What a page shows, with the mark above it or, where there is none, that of its page."""

    page: Path
    line: int
    language: str
    code: str
    mark: str


_MARK = re.compile(r"<!-- (?:blocks of this page are )?(not run[^:]*: .{10,}|run by (tests/\S+\.py)) -->")


def _blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text()
        whole = re.search(r"^<!-- (blocks of this page .*) -->$", text, re.MULTILINE)
        for found in re.finditer(r"^(<!-- [^\n]* -->\n)?```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            mark = found[1] or (f"<!-- {whole[1]} -->" if whole else "")
            yield Block(page, text.count("\n", 0, found.start()) + 1, found[2], found[3], mark.strip())


def _name(block: Block) -> str:
    return f"{block.page.name}:{block.line}"


# others are no programs; a test above reads each configuration
BLOCKS = [block for block in _blocks() if block.language not in ("text", "yaml", "toml")]
UNMARKED = [block for block in BLOCKS if not block.mark]


@pytest.mark.parametrize("block", BLOCKS, ids=_name)
def test_what_is_not_run_here_names_the_test_that_runs_it_or_says_why_not(block: Block) -> None:
    mark = _MARK.fullmatch(block.mark)

    assert mark or not block.mark, f"write <!-- not run: WHY --> or <!-- run by tests/FILE.py -->, not {block.mark}"
    if mark and mark[2]:
        assert block.page.name in (ROOT / mark[2]).read_text(), f"{mark[2]} does not name {block.page.name}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what programs and commands of the pages find: a configuration, questions, and a log."""
    folder = tmp_path_factory.mktemp("pages")
    adders = "{target: {kind: plugin, name: adder}, draft: {kind: plugin, name: adder, settings: {off_by: 1}}}"
    (folder / "reasonrt.yaml").write_text(f"engines: {adders}\n")
    (folder / "questions.jsonl").write_text('{"question": "What is 40 + 2?"}\n{"question": "What is 1 + 2?"}\n')
    (folder / "logs").mkdir()
    (folder / "logs" / "auth.log").write_text(failed_logins()[:1_000_000])
    return folder


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("block", UNMARKED, ids=_name)
def test_what_is_shown_runs(
    block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    if block.language in ("py", "python"):
        if "program_search" in block.code:
            monkeypatch.setattr(Runtime, "from_config", lambda *_, **__: Runtime({"target": writing_programs()}))
        exec(block.code, {"__name__": "__main__", "Request": Request, "question": "?"})  # noqa: S102
        assert capsys.readouterr().out or "print" not in block.code
        return
    for line in block.code.replace("\\\n", " ").splitlines():
        command = shlex.split(line.removeprefix("$ "), comments=True)
        if command and command != [".", ".venv/bin/activate"]:
            assert command[0] == "reasonrt", line
            done = CliRunner().invoke(app, command[1:], catch_exceptions=False)
            assert done.exit_code == 0, done.output
