"""The attacks of `benchmarks/`, fewer of each, on a server of scripted engines in a thread."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from tests.serve.conftest import clients, close_clients, start

__all__ = ["clients", "close_clients", "start"]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

for _name in ("attacks", "spoilt_files"):  # not by the path: a module of that folder is called `kernels`
    _spec = spec_from_file_location(_name, BENCHMARKS / f"{_name}.py")
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules[_name] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])
