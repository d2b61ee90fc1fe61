"""Thousands of requests that somebody else's tool makes up from `/openapi.json`; about two minutes."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")
@pytest.mark.timeout(600)
def test_made_up_requests_meet_no_server_error_and_no_hang(start: Any, tmp_path: Path) -> None:
    server = start(bounds={"running": 8, "deadline_s": 5})
    command = [sys.executable, "-m", "schemathesis.cli", "run", server.url + "/openapi.json", "--checks", CHECKS]
    command += ["--max-examples", "500", "--request-timeout", "10", "--seed", "1", "--continue-on-failure"]
    command += ["--workers", "1", "--suppress-health-check", "all", "--phases", "examples,coverage,fuzzing"]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout[-6000:]
    answers = re.findall(
        r'reasonrt_http_responses_total{status="(\w+)"} (\d+)', httpx.get(server.url + "/metrics").text
    )
    assert sum(int(count) for _, count in answers) >= 2000
    assert not [status for status, _ in answers if status.startswith("5")]
    assert server.working == 0
