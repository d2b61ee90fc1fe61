"""What docs/calibration.md shows runs, and prints what it says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from reasonrt.calibration import Certificate, write_traces
from reasonrt.calibration.stopping.synthetic import synthetic_traces

PAGE = (Path(__file__).parents[2] / "docs" / "calibration.md").read_text()


def test_the_program_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    write_traces(tmp_path / "traces.jsonl", synthetic_traces("honest", 400))

    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)

    certificate = Certificate.read(tmp_path / "certificate.json")
    assert certificate.risk == "lost_correct"
    assert certificate.rule.reads == {"end_of_thinking", "entropy_after_thinking"}, "not the family of the command"


@pytest.mark.parametrize(("command", "output"), re.findall(r"^\$ python (.*)\n(.*)$", PAGE, re.MULTILINE))
def test_the_commands_print_what_they_say(command: str, output: str) -> None:
    printed = subprocess.run([sys.executable, *shlex.split(command)], capture_output=True, text=True, check=True)

    assert printed.stdout.strip() == output
