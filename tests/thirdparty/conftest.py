"""The configuration that uses the installed package."""

from pathlib import Path

import pytest

CONFIG = """
engines:
  target: {kind: plugin, name: adder}
  draft: {kind: plugin, name: adder, settings: {off_by: 1}}
tools:
  abacus: {name: abacus, settings: {tolerance: 0}}
policies:
  equations: {look_ahead: 2}
"""


@pytest.fixture
def config(tmp_path: Path, installed: Path) -> Path:
    file = tmp_path / "reasonrt.yaml"
    file.write_text(CONFIG)
    return file
