"""OpenTelemetry spans, for those who have it: one for each choice, under it one for each committed step."""

import time
from typing import Any

from reasonrt.errors import ConfigError
from reasonrt.types import Completion, Request, Step

_NS = 1_000_000_000


class Span:
    """One choice. This one records nothing."""

    def step(self, step: Step, seconds: float) -> None:
        """A step was committed, `seconds` after the one before."""

    def end(self, completion: Completion | None) -> None:
        """The choice has ended; None is for a caller that left and for an error."""


class Spans:
    """Makes them. Prompts and answers are never part of one.

    Args:
        is_on: record, by the exporter that the variables OTEL_* configure.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """

    def __init__(self, is_on: bool) -> None:
        self._tracer: Any = _tracer() if is_on else None

    def begin(self, request: Request) -> Span:
        return Span() if self._tracer is None else _Recorded(self._tracer, request)


class _Recorded(Span):
    def __init__(self, tracer: Any, request: Request) -> None:
        from opentelemetry.trace import set_span_in_context

        asked = {"gen_ai.operation.name": "chat", "gen_ai.request.model": request.policy}
        limits = {"gen_ai.request.max_tokens": request.limits.max_tokens}
        self._tracer = tracer
        self._span = tracer.start_span(f"chat {request.policy}", attributes=asked | limits)
        # by hand: a generator is resumed in the context of whoever asks it for more
        self._context = set_span_in_context(self._span)

    def step(self, step: Step, seconds: float) -> None:
        now = time.time_ns()
        written = {"reasonrt.author": step.author, "gen_ai.usage.output_tokens": len(step.token_ids)}
        scores = {f"reasonrt.score.{name}": score for name, score in step.scores.items()}
        begun = now - round(seconds * _NS)
        span = self._tracer.start_span("step", self._context, attributes=written | scores, start_time=begun)
        span.end(now)

    def end(self, completion: Completion | None) -> None:
        if completion is not None:
            self._span.set_attribute("gen_ai.response.finish_reasons", [str(completion.finish_reason)])
            self._span.set_attribute("gen_ai.usage.output_tokens", completion.generated_tokens)
        self._span.end()


def _tracer() -> Any:
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(f"serve.tracing needs OpenTelemetry: pip install 'reasonrt[otel]' ({error})") from None
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):  # whoever set one up before keeps it
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)
    return trace.get_tracer("reasonrt")
