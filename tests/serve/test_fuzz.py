"""Requests that nobody would think of: made up from `/openapi.json` (two minutes), and every option of every policy."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrt.options import option_names
from reasonrt.policies.registry import find_policy, policy_names
from reasonrt.policies.stopping.policy import CommonOptions

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


OPTIONS = sorted(
    {
        (policy, name)
        for policy in policy_names()
        for kind in (*find_policy(policy).option_types(), CommonOptions)
        for name in option_names(kind)
    }
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(-10, 10) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(option=st.sampled_from(OPTIONS), value=JSON)
def test_no_option_of_any_policy_gives_a_server_error(running: Any, option: tuple[str, str], value: Any) -> None:
    policy, name = option
    body = {
        "model": policy,
        "messages": [{"role": "user", "content": "3 + 4?"}],
        "max_tokens": 8,
        "reasonrt": {"options": {name: value}},
    }

    answer = httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=20)

    assert answer.status_code < 500, answer.text
