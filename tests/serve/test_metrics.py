"""What is counted is what happened."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from reasonrt.calibration import Certificate, Level, certify_levels, upper_threshold_rules
from reasonrt.calibration.stopping.synthetic import synthetic_traces
from reasonrt.engines.scripted import continuing
from reasonrt.errors import ConfigError
from reasonrt.policies.stopping.probes import SUFFIX
from reasonrt.policies.stopping.rules import UpperThreshold
from reasonrt.policies.stopping.signals import TokensUsed
from reasonrt.serve.backends.base import CertificateState
from reasonrt.serve.metrics import Metrics
from reasonrt.serve.tracing import Span, Spans
from reasonrt.types import Completion, EngineUsage, FinishReason, Request, Sampling, Step

BODY: Any = {"messages": [{"role": "user", "content": "3 + 4?"}]}


def samples(server: Any) -> dict[tuple[str, ...], float]:
    """By name and the values of its labels, in the order of the labels' names."""
    families = text_string_to_metric_families(httpx.get(server.url + "/metrics").text)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def test_counters_follow_requests(start: Any) -> None:
    server = start()
    client = server.http()
    answers = [client.post("/v1/chat/completions", json=BODY | {"model": "self_consistency", "n": 2}).json()]
    answers += [client.post("/v1/chat/completions", json=BODY | {"model": "target", "stop": "box"}).json()]
    client.post("/v1/chat/completions", json=BODY | {"model": "gpt"})
    with client.stream("POST", "/v1/chat/completions", json=BODY | {"model": "draft", "stream": True}):
        pass
    server.wait_until(lambda: server.admission.is_idle)

    found = samples(server)

    assert found["reasonrt_choices_total", "stop", "self_consistency"] == 2
    assert found["reasonrt_choices_total", "stop", "target"] == 1
    assert found["reasonrt_steps_total", "target", "self_consistency"] == 2 * 5
    generated = sum(answer["usage"]["completion_tokens"] for answer in answers)
    assert found["reasonrt_tokens_total", "target", "generated"] == generated
    wasted = sum(answer["reasonrt"]["usage"]["target"]["discarded"] for answer in answers)
    assert found["reasonrt_tokens_total", "target", "wasted"] == wasted > 0
    passes = sum(answer["reasonrt"]["usage"]["target"]["passes"] for answer in answers)
    assert found["reasonrt_passes_total", "target"] == passes > 0
    assert found["reasonrt_http_responses_total", "404"] == 1
    assert found["reasonrt_first_step_seconds_count",] >= 3
    assert found["reasonrt_step_seconds_count",] >= 3 * 3
    assert (found["reasonrt_running",], found["reasonrt_queued",], found["reasonrt_restarts_total",]) == (0, 0, 0)
    assert found["reasonrt_replicas_ready",] == 1


def thinking_for_long(prompt: str, sampling: Sampling) -> str:
    """Says 84 whenever it is asked."""
    _, suffix, begun = prompt.rpartition("[assistant] ")[2].partition(SUFFIX)
    text = "<think>\n" + "".join(f"step {index} it is\n\n" for index in range(20)) + SUFFIX + "84}"
    return "84}"[len(begun) :] if suffix else continuing(text)(prompt, sampling)


@pytest.mark.parametrize("stop", [[], ["4"], ["box"]])
@pytest.mark.parametrize("is_stream", [True, False])
def test_author_that_is_no_engine_counts_for_no_engine(start: Any, stop: list[str], is_stream: bool) -> None:
    """The suffix that ends the thinking is committed and shown, and no engine has generated it."""
    rule = {"rule": UpperThreshold(TokensUsed(), 40), "schedule": {"first_tokens": 16, "block_tokens": 8}}
    server = start(thinking_for_long, policies={"target": {"stopping": rule}})
    body = BODY | {"model": "target", "stop": stop, "stream": is_stream, "stream_options": {"include_usage": True}}

    answer = server.http().post("/v1/chat/completions", json=body | {"reasonrt": {"trace": True}})

    last = answer.text.split("\n\n")[-3].removeprefix("data: ") if is_stream else answer.text
    assert '"author":"stopping"' in answer.text
    assert set(json.loads(last)["reasonrt"]["usage"]) == {"target"}
    found = samples(server)
    assert {labels[1] for labels in found if labels[0] == "reasonrt_tokens_total"} == {"target"}
    assert found["reasonrt_steps_total", "stopping", "target"] == 1


def test_rejections_are_counted_by_their_code_and_are_no_fast_requests(start: Any) -> None:
    server = start(bounds={"requests_per_minute_per_key": 1})
    for _ in range(3):
        server.http().post("/v1/chat/completions", json=BODY | {"model": "target"})

    found = samples(server)

    assert found["reasonrt_rejections_total", "rate_limit"] == 2
    assert found["reasonrt_request_seconds_count", "target"] == 1


@pytest.fixture(scope="module")
def certificates() -> dict[float, Certificate]:
    """Of some model, by their alpha."""
    rules = upper_threshold_rules("confidence", [0.9, 0.99, 1.0])
    levels = [Level("lost_correct", alpha) for alpha in (0.1, 0.3)]
    found = certify_levels(synthetic_traces("honest", 200), rules, levels, delta=0.1)
    return {each.alpha: each for each in found if isinstance(each, Certificate)}


def test_certificates_in_service_are_watched(
    start: Any, certificates: dict[float, Certificate], tmp_path: Path
) -> None:
    files = {alpha: tmp_path / f"{alpha}.json" for alpha in certificates}
    for alpha, certificate in certificates.items():
        certificate.write(files[alpha])
    stopping = {"certificate": [str(file) for file in files.values()]}
    server = start(policies={"target": {"stopping": stopping}})
    for own in ({}, {"risk": 0.1}, {"risk": 0.35}, {"risk": 0.01}):  # none is for this engine, the last is too low
        answer = server.http().post("/v1/chat/completions", json=BODY | {"model": "target", "reasonrt": own})
        own = answer.json()["choices"][0]["reasonrt"]
        assert own["warnings"] == {"stopping": own["details"]["stopping"]["fallback"]}

    found = samples(server)

    for alpha, refused in ((0.1, 2), (0.3, 1)):
        name = certificates[alpha].sha256[:12]
        assert found["reasonrt_stopping_requests_total", name, "refused"] == refused
        assert found["reasonrt_stopping_evidence", name] == 0.0
        assert found["reasonrt_stopping_alarm", name] == 0.0


def test_certificates_of_several_replicas_add_up() -> None:
    metrics = Metrics()
    states = [
        CertificateState("a", {"answer": 2, "go_on": 1}, 3.0, True),
        CertificateState("a", {"answer": 5}, 1.0, False),
        CertificateState("b", {}, 1.0, False),
    ]

    metrics.watch_certificates(lambda: states)
    lines = metrics.render().decode().splitlines()

    assert 'reasonrt_stopping_requests_total{certificate="a",kind="answer"} 7.0' in lines
    assert 'reasonrt_stopping_requests_total{certificate="a",kind="go_on"} 1.0' in lines
    assert 'reasonrt_stopping_evidence{certificate="a"} 3.0' in lines
    assert 'reasonrt_stopping_alarm{certificate="a"} 1.0' in lines
    assert 'reasonrt_stopping_alarm{certificate="b"} 0.0' in lines


def test_nothing_is_traced_unless_asked_for() -> None:
    span = Spans(is_on=False).begin(Request.ask("?"))

    assert type(span) is Span
    span.step(Step("a", (1,), "target"), 0.1)
    span.end(None)


def test_spans_tell_of_steps_and_not_of_words() -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    step = Step("secret", (1, 2), "target", scores={"advantage": 0.25})

    span = Spans(is_on=True).begin(Request.ask("secret question", "draft"))
    span.step(step, 0.5)
    span.end(Completion((step,), FinishReason.STOP, {"target": EngineUsage(generated=2)}, 0.5))

    child, parent = exporter.get_finished_spans()
    assert child.parent == parent.context
    assert child.start_time is not None
    assert child.end_time is not None
    assert abs(child.end_time - child.start_time - 5e8) < 1e6
    assert child.attributes is not None
    assert child.attributes["reasonrt.score.advantage"] == 0.25
    assert parent.attributes is not None
    assert parent.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert "secret" not in child.to_json() + parent.to_json()


def test_tracing_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)

    with pytest.raises(ConfigError, match=r"pip install 'reasonrt\[otel\]'"):
        Spans(is_on=True)


def test_dashboard_asks_for_metrics_that_exist(running: Any) -> None:
    dashboard = (Path(__file__).parents[2] / "docs" / "grafana.json").read_text()
    running.http().post("/v1/chat/completions", json=BODY | {"model": "target"})
    known = {sample[0] for sample in samples(running)}

    asked = set(re.findall(r"reasonrt_\w+", dashboard))

    assert len(asked) > 10
    # none so far, and no certificate in service (tested above)
    assert {name for name in asked - known if "_stopping_" not in name} <= {"reasonrt_rejections_total"}
