"""The payloads that `benchmarks/clients.py` replays, against a server of scripted engines."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "client_cases" / "payloads_cases.py"
NAMES = ("codex", "aider", "open webui", "librechat")


async def test_every_client_finds_what_it_looks_for(running: Any) -> None:
    command = [sys.executable, str(SCRIPT), running.url, "target", "arbitrage"]
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
    out, error = await asyncio.wait_for(process.communicate(), 120)

    rows = [json.loads(line) for line in out.splitlines()]
    assert [row for row in rows if not row["ok"]] == []
    assert process.returncode == 0, error
    assert {name for row in rows for name in NAMES if row["case"].startswith(name)} == set(NAMES)


async def test_client_that_is_not_served_is_told_of(running: Any) -> None:
    command = [sys.executable, str(SCRIPT), running.url, "nonsense", "nonsense"]
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
    out, _ = await asyncio.wait_for(process.communicate(), 120)

    failed = [row for row in map(json.loads, out.splitlines()) if not row["ok"]]
    assert len(failed) >= 9
    assert all("404" in row["error"] or "listed" in row["error"] for row in failed)
