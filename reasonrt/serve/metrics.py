"""What the server counts, for Prometheus. One registry per app: nothing is global."""

from collections import Counter as Tally
from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from reasonrt.serve.backends.base import CertificateState
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
            "reasonrt_resumed_requests", "Times that a request continued after a death.", registry=registry
        )
        self._warnings = Counter(
            "reasonrt_not_done", "Choices for which a part did not take place.", ["policy", "part"], registry=registry
        )
        self._steps = Counter("reasonrt_steps", "Committed steps.", ["policy", "author"], registry=registry)
        self._steps_of: dict[tuple[str, str], Counter] = {}
        self._escalations = Counter(
            "reasonrt_escalations", "Steps that a target was asked for.", ["policy"], registry=registry
        )
        self._tokens = Counter(
            "reasonrt_tokens", "Tokens by kind; wasted ones are generated ones.", ["engine", "kind"], registry=registry
        )
        self._passes = Counter("reasonrt_passes", "Forward passes.", ["engine"], registry=registry)
        self._canvas = Counter(
            "reasonrt_canvas_positions",
            "Positions of blocks of masked tokens, in each pass anew.",
            ["engine"],
            registry=registry,
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
        self._registry.register(_Watched(name, text, (), lambda: {(): value()}, is_counter))

    def watch_connections(self, num_open: Callable[[], int], num_closed: Callable[[], int]) -> None:
        self.watch("reasonrt_connections", "Open connections.", num_open)
        text = "Connections that were closed because there were too many."
        self.watch("reasonrt_closed_connections", text, num_closed, is_counter=True)

    def watch_certificates(self, states: Callable[[], Sequence[CertificateState]]) -> None:
        """Counts add up over processes; of evidence and alarm, the highest is shown."""

        def counts() -> Mapping[tuple[str, ...], float]:
            tally = Tally[tuple[str, ...]]()
            for state in states():
                tally.update({(state.certificate, kind): num for kind, num in state.counts.items()})
            return tally

        def evidence() -> Mapping[tuple[str, ...], float]:
            ascending = sorted(states(), key=lambda state: state.evidence)
            return {(state.certificate,): state.evidence for state in ascending}

        def alarm() -> Mapping[tuple[str, ...], float]:
            return {(state.certificate,): state.is_alarmed for state in sorted(states(), key=lambda s: s.is_alarmed)}

        labels, text = ("certificate", "kind"), "Requests under a certificate, and probes, by what became of them."
        self._registry.register(_Watched("reasonrt_stopping_requests", text, labels, counts, True))
        text = "Against the certificate, by all votes; an alarm is raised at 2 / delta."
        self._registry.register(_Watched("reasonrt_stopping_evidence", text, labels[:1], evidence, False))
        text = "Whether the certificate no longer holds, for any API key."
        self._registry.register(_Watched("reasonrt_stopping_alarm", text, labels[:1], alarm, False))

    def step(self, policy: str, step: Step, seconds: float, *, is_first: bool) -> None:
        key = policy, step.author
        if key not in self._steps_of:  # to find it by its labels takes longer than to count
            self._steps_of[key] = self._steps.labels(*key)
        self._steps_of[key].inc()
        (self._first_seconds if is_first else self._step_seconds).observe(seconds)

    def end(self, policy: str, finish_reason: str, completion: Completion) -> None:
        self._choices.labels(policy, finish_reason).inc()
        self._escalations.labels(policy).inc(completion.details.get("escalations", 0))
        for part in completion.warnings:
            self._warnings.labels(policy, part).inc()
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
            self._passes.labels(engine).inc(usage.passes)
            if usage.canvas:
                self._canvas.labels(engine).inc(usage.canvas)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)


class _Watched(Collector):
    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        values: Callable[[], Mapping[tuple[str, ...], float]],
        is_counter: bool,
    ) -> None:
        self._family = CounterMetricFamily if is_counter else GaugeMetricFamily
        self._name, self._text, self._labels, self._values = name, text, labels, values

    def collect(self) -> list[CounterMetricFamily | GaugeMetricFamily]:
        family = self._family(self._name, self._text, labels=self._labels)
        for labels, value in self._values().items():
            family.add_metric(labels, value)
        return [family]
