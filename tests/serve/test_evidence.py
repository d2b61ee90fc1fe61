"""A server that is started again knows what the one before it knew."""

import time
from pathlib import Path
from typing import Any

import pytest

from reasonrt import Request, Runtime
from reasonrt.calibration import Certificate, TraceSet, certify, upper_threshold_rules
from reasonrt.calibration.stopping.synthetic import synthetic_traces
from reasonrt.engines.scripted import ScriptedEngine
from reasonrt.errors import ConfigError
from reasonrt.policies.stopping.evidence import KeptEvidence
from reasonrt.policies.stopping.evidence_file import EvidenceFile
from reasonrt.policies.stopping.service import evidence_path


def monitor_of(server: Any) -> Any:
    (served,) = server.runtime.certificates
    assert isinstance(served.evidence, KeptEvidence)
    return served.evidence.monitor


def test_evidence_outlives_the_server(start: Any, tmp_path: Path) -> None:
    plain = start().runtime.prepare(Request.ask("?", options={"stopping": {"record": True}}))
    recorded = TraceSet(synthetic_traces("honest", 200).traces, plain.policy.fingerprints(plain.request, plain.engines))
    rules = upper_threshold_rules("confidence", [0.9, 0.99])
    certify(recorded, rules, risk="lost_correct", alpha=0.1, delta=0.1).write(tmp_path / "c.json")
    (tmp_path / "state").mkdir()

    seen, details = [], []
    for number in range(3):
        server = start(
            policies={"target": {"stopping": {"certificate": str(tmp_path / "c.json"), "shadow": 1}}},
            evidence_folder=str(tmp_path / "state"),
        )
        for question in ("the same", f"another, {number}"):  # the same one has a single vote
            body = {"model": "target", "messages": [{"role": "user", "content": question}], "max_tokens": 200}
            answer = server.http().post("/v1/chat/completions", json=body)
            details.append(answer.json()["choices"][0]["reasonrt"]["details"]["stopping"])
        seen.append(monitor_of(server))
        server.server.should_exit = True
        give_up = time.monotonic() + 10
        while list(server.runtime.certificates):  # until it has let go of the file
            assert time.monotonic() < give_up
            time.sleep(0.01)

    assert [found.get("fallback") for found in details] == [None] * 6
    assert [monitor.n for monitor in seen] == [2, 3, 4]
    assert [path.suffix for path in sorted((tmp_path / "state").iterdir())] == [".evidence", ".lock"]


def test_a_key_that_is_none_is_said_when_the_server_starts(start: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*; name another file"):
        start(certificate_keys=[str(tmp_path / "none.pem")])


async def test_a_start_that_is_refused_lets_go_of_the_evidence(tmp_path: Path) -> None:
    traces, rules = synthetic_traces("honest", 200), upper_threshold_rules("confidence", [0.9, 0.99])
    files = [tmp_path / name for name in ("one.json", "other.json")]
    for file, alpha in zip(files, (0.1, 0.3), strict=True):  # apart, so that they are not served together
        certify(traces, rules, risk="lost_correct", alpha=alpha, delta=0.1).write(file)
    options = {"target": {"stopping": {"certificate": [str(file) for file in files]}}}
    runtime = Runtime({"target": ScriptedEngine("target", "x")}, options)
    runtime.certificates.keep()

    with pytest.raises(ConfigError, match="certified apart"):
        async with runtime:
            pass

    for file in files:
        certificate = Certificate.read(file)
        taken = KeptEvidence(certificate, EvidenceFile(evidence_path(certificate, file, None), certificate.sha256))
        assert taken.verdict.refusal is None
        taken.close()
