"""What is counted is what happened."""

import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from reasonrt.errors import ConfigError
from reasonrt.serve.tracing import Span, Spans
from reasonrt.types import Completion, EngineUsage, FinishReason, Request, Step

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
    time.sleep(0.2)

    found = samples(server)

    assert found["reasonrt_choices_total", "stop", "self_consistency"] == 2
    assert found["reasonrt_choices_total", "stop", "target"] == 1
    assert found["reasonrt_steps_total", "target", "self_consistency"] == 2 * 5
    generated = sum(answer["usage"]["completion_tokens"] for answer in answers)
    assert found["reasonrt_tokens_total", "target", "generated"] == generated
    wasted = sum(answer["reasonrt"]["usage"]["target"]["discarded"] for answer in answers)
    assert found["reasonrt_tokens_total", "target", "wasted"] == wasted > 0
    assert found["reasonrt_http_responses_total", "404"] == 1
    assert found["reasonrt_first_step_seconds_count",] >= 3
    assert found["reasonrt_step_seconds_count",] >= 3 * 3
    assert (found["reasonrt_running",], found["reasonrt_queued",], found["reasonrt_restarts_total",]) == (0, 0, 0)


def test_rejections_are_counted_by_their_code(start: Any) -> None:
    server = start(bounds={"requests_per_minute_per_key": 1})
    for _ in range(3):
        server.http().post("/v1/chat/completions", json=BODY | {"model": "target"})

    assert samples(server)["reasonrt_rejections_total", "rate_limit"] == 2


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
    assert child.parent.span_id == parent.context.span_id
    assert abs(child.end_time - child.start_time - 5e8) < 1e6
    assert child.attributes["reasonrt.score.advantage"] == 0.25
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
    assert asked - known <= {"reasonrt_rejections_total"}  # none so far
