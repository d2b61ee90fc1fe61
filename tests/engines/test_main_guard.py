"""A program whose main file would be run again by each process of an engine learns it in one line, before that."""

import subprocess
import sys
from pathlib import Path

import pytest

_START = """
from reasonrt.engines.main_guard import require_main_guard
from multiprocessing import get_context
print("runs")
"""
_BEGIN = """
require_main_guard()
process = get_context("spawn").Process(target=print, args=("child",))
process.start()
process.join()
"""
_GUARDED = _START + "if __name__ == '__main__':" + _BEGIN.replace("\n", "\n    ")


def _run(*command: str, cwd: Path) -> tuple[str, str]:
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=60)
    return done.stdout, done.stderr


@pytest.mark.parametrize("command", [["script.py"], ["-m", "script"]])
def test_unguarded_main_is_refused_before_it_is_run_again(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "script.py").write_text(_START + _BEGIN)

    out, error = _run(*command, cwd=tmp_path)

    assert out == "runs\n"
    assert error.splitlines()[-1].endswith(
        "ConfigError: script.py would be run again by each process of an engine; "
        'put what starts reasonrt under `if __name__ == "__main__":`'
    )


def test_guarded_main_starts(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(_GUARDED)

    assert _run("script.py", cwd=tmp_path) == ("runs\nruns\nchild\n", "")


def test_code_that_no_process_runs_again_needs_no_guard(tmp_path: Path) -> None:
    assert _run("-c", _START + _BEGIN, cwd=tmp_path) == ("runs\nchild\n", "")


def test_guard_in_the_wrong_place_is_one_line_of_the_process_that_runs_again(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(_START + "if __name__ == '__main__': pass" + _BEGIN)

    out, error = _run("script.py", cwd=tmp_path)

    assert out == "runs\nruns\n"
    assert error == (
        "error: a process of an engine runs the whole program again; "
        'put what starts reasonrt under `if __name__ == "__main__":`\n'
    )
