"""A sandbox by the name of its backend."""

from collections.abc import Callable
from typing import Any, Protocol

from reasonrt.errors import ConfigError
from reasonrt.ports import Tool
from reasonrt.programs.sandbox.base import Sandbox
from reasonrt.programs.sandbox.cpython import CPythonSandbox
from reasonrt.programs.sandbox.monty import MontySandbox
from reasonrt.programs.sandbox.settings import SandboxSettings, read_settings


class SandboxTool(Sandbox, Tool, Protocol):
    """A sandbox, as a runtime holds it."""


BACKENDS: dict[str, Callable[[SandboxSettings], SandboxTool]] = {"monty": MontySandbox, "cpython": CPythonSandbox}


def build_sandbox(backend: str = "monty", **settings: Any) -> SandboxTool:
    """A sandbox, not started. None stands in for another: where the one that is named cannot run, its start says so.

    Raises:
        ConfigError: no such backend, or a setting that it does not take.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"unknown sandbox {backend[:64]!r}; there are {', '.join(BACKENDS)}")
    return BACKENDS[backend](read_settings(settings))
