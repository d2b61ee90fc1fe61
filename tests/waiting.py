"""How tests wait for what another thread or process does: they look until it holds, however slow the machine is."""

import time
from collections.abc import Callable

import pytest

PATIENCE_S = 60.0
"""A test that fails waits this long; one that passes waits as long as it takes."""


def wait_until(holds: Callable[[], object], seconds: float = PATIENCE_S) -> float:
    """Seconds until `holds`; fails when it does not in time."""
    began = time.perf_counter()
    while not holds():
        waited = time.perf_counter() - began
        if waited > seconds:
            pytest.fail(f"it did not hold within {seconds} s")
        time.sleep(0.002 + min(waited / 50, 0.1))  # who waits long takes no time from what it waits for
    return time.perf_counter() - began
