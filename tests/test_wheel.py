"""The wheel holds everything: each module imports from a wheel installed into a clean environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

_IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import reasonrt
assert pathlib.Path(reasonrt.__file__).is_relative_to(sys.prefix), reasonrt.__file__
names = [module.name for module in pkgutil.walk_packages(reasonrt.__path__, "reasonrt.")]
for name in names:
    importlib.import_module(name)
root = pathlib.Path(reasonrt.__file__).parent
assert (root / "py.typed").exists()
assert (root / "serve" / "static" / "index.html").exists()
assert list(root.glob("zoo/models/*/model.safetensors")), "the models are missing"
assert list(root.glob("zoo/certificates/*.json")), "the certificate is missing"
print(*names)
"""


@pytest.mark.slow  # about a minute
@pytest.mark.timeout(900)
def test_every_module_imports_from_the_wheel_in_a_clean_environment(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build leaves its own folder behind
    left_out = shutil.ignore_patterns(
        ".venv", ".git", "runs", "build", ".*_cache", "__pycache__", ".hypothesis", "*.egg-info"
    )
    shutil.copytree(ROOT, source, symlinks=True, ignore=left_out)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, timeout=240)
    (wheel,) = tmp_path.glob("*.whl")
    assert any(name.endswith("/licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=240)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True, timeout=240)
    # third parties come from this environment; reasonrt is only in the clean one
    third_parties = tmp_path / "venv" / sysconfig.get_path("purelib").removeprefix(sys.prefix + os.sep) / "third.pth"
    third_parties.write_text(sysconfig.get_path("purelib") + "\n")

    done = subprocess.run([python, "-c", _IMPORT_ALL], cwd=tmp_path, capture_output=True, text=True, timeout=240)

    assert done.returncode == 0, done.stderr
    assert {"reasonrt.ports", "reasonrt.zoo.recipe", "reasonrt.cli.main"} <= set(done.stdout.split())
