"""What `import reasonrt` offers, and what it must not drag in."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import reasonrt

HEAVY = ("torch", "vllm", "ray", "pyarrow", "pandas", "transformers")


def test_all_is_sorted_and_complete() -> None:
    public = {
        name for name, value in vars(reasonrt).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }

    assert reasonrt.__all__ == sorted(public)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("reasonrt", (*HEAVY, "numpy")), ("reasonrt.cli.main", HEAVY)],  # numpy comes with some of the extras
)
def test_importing_stays_light(module: str, heavy: tuple[str, ...]) -> None:
    file = Path(reasonrt.__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    if module != "reasonrt" and not file.exists():
        pytest.skip(f"there is no {module}")

    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
