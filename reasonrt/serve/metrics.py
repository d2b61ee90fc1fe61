"""What the server counts, for Prometheus. One registry per app: nothing is global."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from reasonrt.types import Completion, Step

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Names begin with `reasonrt_`; the label `policy` is one of the served ones, `engine` an engine's name."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.responses = Counter("reasonrt_http_responses", "HTTP answers by status.", ["status"], registry=registry)
        self._choices = Counter(
            "reasonrt_choices", "Choices by policy and how they ended.", ["policy", "finish_reason"], registry=registry
        )
        self.rejections = Counter("reasonrt_rejections", "Requests that were sent away.", ["code"], registry=registry)
        self.resumes = Counter(
            "reasonrt_resumed_requests", "Times that a request went on after a death.", registry=registry
        )
        self._steps = Counter("reasonrt_steps", "Committed steps.", ["policy", "author"], registry=registry)
        self._escalations = Counter(
            "reasonrt_escalations", "Steps that a target was asked for.", ["policy"], registry=registry
        )
        self._tokens = Counter(
            "reasonrt_tokens", "Tokens by kind; wasted ones are generated ones.", ["engine", "kind"], registry=registry
        )
        self._step_seconds = Histogram(
            "reasonrt_step_seconds", "From one committed step to the next.", buckets=_SECONDS, registry=registry
        )
        self._first_seconds = Histogram(
            "reasonrt_first_step_seconds",
            "From arrival to the first committed step.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "reasonrt_queue_seconds", "From arrival to a place.", buckets=_SECONDS, registry=registry
        )
        self.request_seconds = Histogram(
            "reasonrt_request_seconds", "From arrival to the end.", ["policy"], buckets=_SECONDS, registry=registry
        )

    def watch(self, name: str, text: str, value: Callable[[], float], *, is_counter: bool = False) -> None:
        """Ask `value` for a number whenever somebody looks."""
        self._registry.register(_Watched(name, text, value, is_counter))

    def step(self, policy: str, step: Step, seconds: float, *, is_first: bool) -> None:
        self._steps.labels(policy, step.author).inc()
        (self._first_seconds if is_first else self._step_seconds).observe(seconds)

    def end(self, policy: str, finish_reason: str, completion: Completion) -> None:
        self._choices.labels(policy, finish_reason).inc()
        self._escalations.labels(policy).inc(completion.details.get("escalations", 0))
        for engine, usage in completion.usage.items():
            kinds = {
                "prefilled": usage.prefilled,
                "cached": usage.cached,
                "generated": usage.generated,
                "wasted": usage.discarded,
                "probe": usage.probe,
            }
            for kind, tokens in kinds.items():
                self._tokens.labels(engine, kind).inc(tokens)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)


class _Watched(Collector):
    def __init__(self, name: str, text: str, value: Callable[[], float], is_counter: bool) -> None:
        self._family = CounterMetricFamily if is_counter else GaugeMetricFamily
        self._name, self._text, self._value = name, text, value

    def collect(self) -> list[CounterMetricFamily | GaugeMetricFamily]:
        return [self._family(self._name, self._text, value=self._value())]
