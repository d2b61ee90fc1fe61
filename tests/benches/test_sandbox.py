"""The measurement of the sandboxes says what it found."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reasonrt.benches import sandbox
from reasonrt.benches.progress import Advance
from reasonrt.cli.main import app
from reasonrt.programs.sandbox.base import Sandbox
from reasonrt.programs.sandbox.build import BACKENDS
from reasonrt.programs.sandbox.escapes import Attempt


@pytest.mark.parametrize("backend", sorted(BACKENDS))
async def test_cost_is_that_of_sessions_with_their_contexts(backend: str) -> None:
    small = await sandbox.measure_cost(backend, 3, 0)
    large = await sandbox.measure_cost(backend, 3, 20)

    assert (large["backend"], large["sandboxes"], large["context_megabytes"]) == (backend, 3, 20)
    # Three contexts of 20 MB are 0.060 GB; two of them would be 0.040. A worker without one differs by 1 MB or so.
    assert large["rss_gigabytes"] - small["rss_gigabytes"] > 0.05
    assert 0 < large["pss_gigabytes"] < large["rss_gigabytes"] < 1
    assert 0 < large["start_ms_median"] <= large["start_ms_p95"]


async def test_an_attempt_that_does_not_hold_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = [Attempt("holds", "open('/etc/passwd')", ("monty",)), Attempt("does not", "print(REACHED)", ("monty",))]
    monkeypatch.setattr(sandbox, "attempts", lambda backend: tried)
    said: list[tuple[str, int, int]] = []

    row = await sandbox.measure_escapes("monty", lambda *told: said.append(told))

    assert row == {"backend": "monty", "attempts": 2, "held": 1, "failed": {"does not": "reached the outside"}}
    assert said == [("monty: attempts to escape", 1, 2), ("monty: attempts to escape", 2, 2)]


def test_the_command_fails_where_an_attempt_does_not_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def attempt(box: Sandbox, tried: Attempt) -> str:
        return "got through" if tried.name == "bad" else ""

    async def cost(backend: str, num_sandboxes: int, advance: Advance) -> dict[str, Any]:
        return {"backend": backend, "sandboxes": num_sandboxes}

    monkeypatch.setattr(sandbox, "run_attempt", attempt)
    monkeypatch.setattr(sandbox, "measure_cost", cost)
    command = ["bench", "sandbox", "--backend", "monty", "--json", str(tmp_path / "s.json")]

    monkeypatch.setattr(sandbox, "attempts", lambda backend: [Attempt("good", "", ("monty",))])
    held = CliRunner().invoke(app, command)
    monkeypatch.setattr(sandbox, "attempts", lambda backend: [Attempt("bad", "", ("monty",))])
    failed = CliRunner().invoke(app, command)

    assert (held.exit_code, failed.exit_code) == (0, 1)
    assert "bad: got through" in failed.output
    assert '"held": 0' in (tmp_path / "s.json").read_text()
