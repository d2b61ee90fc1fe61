"""Every example runs as it stands, and so does the program in the README."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from reasonrt.config import load_config
from reasonrt.testing import check_policy

ROOT = Path(__file__).parent.parent
_NEED_VLLM = {"01_quickstart.py", "08_configuration.py"}
_PRINTS = {
    "01_quickstart.py": "answer: \\boxed{1692}",
    "03_stopping_rule.py": "stopped:    \\boxed{42}",
    "04_evaluation.py": "target minus self_consistency@k=9: -",
    "05_serve.py": "answer: \\boxed{42}",
    "06_certify.py": "read again and unchanged: True",
    "07_limits_and_usage.py": "generated tokens: ended by budget",
    "08_configuration.py": "refused before anything ran: ",
    "10_without_async.py": "tokens for the ninth alone: 23",
    "09_block_diffusion.py": "{'threshold': 0.6} answer: ",
}
"""What a reader should learn from it."""


def _marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.vllm] if name in _NEED_VLLM else []


def _run(program: Path) -> str:
    done = subprocess.run([sys.executable, str(program)], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [pytest.param(path.name, marks=_marks(path.name)) for path in sorted((ROOT / "examples").glob("*.py"))],
)
def test_example_runs(name: str) -> None:
    printed = _run(ROOT / "examples" / name)

    assert printed.strip()
    assert _PRINTS.get(name, "") in printed


@pytest.mark.parametrize("program", sorted((ROOT / "examples").glob("*.py")), ids=lambda program: program.name)
def test_example_is_one_page_without_arguments(program: Path) -> None:
    text = program.read_text()

    assert text.count("\n") < 50
    assert "argparse" not in text


def test_the_readme_program_is_the_first_example_and_under_20_lines() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

    assert (ROOT / "examples" / "01_quickstart.py").read_text().partition('"""\n\n')[2] == program
    assert program.count("\n") < 20


async def test_the_examples_policy_keeps_the_contract() -> None:
    namespace = runpy.run_path(str(ROOT / "examples" / "02_custom_policy.py"), run_name="example")

    await check_policy(namespace["Fallback"])


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.yaml")))
def test_each_example_of_a_configuration_can_be_read(name: str) -> None:
    assert load_config(ROOT / "examples" / name).engines
