"""Whether this program survives that vLLM starts a process of its own, which runs the program's main file again."""

import ast
import multiprocessing
import os
import sys
from multiprocessing.spawn import get_preparation_data
from pathlib import Path

from reasonrt.errors import ConfigError

_WAY_OUT = 'put what starts reasonrt under `if __name__ == "__main__":`'


def require_main_guard() -> None:
    """To be called before an engine is started in a spawned process; in such a process, it ends it.

    Raises:
        ConfigError: the main file has no guard, so that each process of an engine would run all of it again.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself finds it out
        sys.stderr.write(f"error: a process of an engine runs the whole program again; {_WAY_OUT}\n")
        os._exit(1)
    told = get_preparation_data("")  # what such a process gets to know
    is_run = "init_main_from_path" in told or not told.get("init_main_from_name", "__main__").endswith("__main__")
    file = getattr(sys.modules["__main__"], "__file__", None)
    if is_run and file is not None and not _has_guard(Path(file)):
        raise ConfigError(f"{Path(file).name} would be run again by each process of an engine; {_WAY_OUT}")


def _has_guard(file: Path) -> bool:
    try:
        program = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # no file of Python code
        return True
    tests = [node.test for node in ast.walk(program) if isinstance(node, ast.If)]
    return any(isinstance(part, ast.Name) and part.id == "__name__" for test in tests for part in ast.walk(test))
