"""The configuration that uses the installed package."""

import os
import sys
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


@pytest.fixture
def plugin_environment(installed: Path) -> dict[str, str]:
    """Of a process that finds the package."""
    path = os.pathsep.join([str(installed), *sys.path])
    return os.environ | {"PYTHONPATH": path, "COLUMNS": "200", "NO_COLOR": "1", "REASONRT_API_KEYS": ""}
