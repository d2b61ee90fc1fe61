"""Documents point at what is there: their links, the files that they name, and the options that they describe."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import yaml

from reasonrt.cli.reference import reference
from reasonrt.config import load_config
from reasonrt.diffusion.decoding import Decoding, Strategy
from reasonrt.policies.program_search import ProgramSearch
from reasonrt.policies.registry import build_policy
from reasonrt.programs.language import SIGNATURES
from reasonrt.serve.config import load_serve_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").rglob("*.md"))
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
