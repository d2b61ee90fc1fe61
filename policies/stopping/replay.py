"""What a rule would have done with a recorded trace."""

from collections.abc import Iterable
from dataclasses import dataclass

from reasonrt.answers import is_answer
from reasonrt.errors import CalibrationError, shown
from reasonrt.policies.stopping.rules import Action, StoppingRule, Watch
from reasonrt.policies.stopping.signals import ANSWER
from reasonrt.policies.stopping.traces import Trace


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trace under one rule.

    Attributes:
        action: `GO_ON` when the trace ran to its end.
        index: of the checkpoint where it stopped; None when it ran to its end.
        answer: what the user gets; None after giving up.
        net_tokens: generated until then, and spent on every probe that the rule asked for.
    """

    action: Action
    index: int | None
    answer: str | None
    net_tokens: int


def replay(rule: StoppingRule, trace: Trace) -> Outcome:
    """`rule` along `trace`, as live serving would run it."""
    watch = Watch(rule)
    probe_tokens = 0
    for index, checkpoint in enumerate(trace.checkpoints):
        if not watch.wants(checkpoint.tokens):
            continue
        is_asked = watch.wants_answer(checkpoint.signals)
        action = watch.see(checkpoint)
        probe_tokens += len(watch.looks & checkpoint.signals.keys())
        probe_tokens += checkpoint.probe_tokens * (is_asked or action is Action.ANSWER)
        if action is Action.GIVE_UP:
            return Outcome(action, index, None, checkpoint.tokens + probe_tokens)
        if action is Action.ANSWER and is_answer(checkpoint.answer):
            return Outcome(action, index, checkpoint.answer, checkpoint.tokens + probe_tokens)
    return Outcome(Action.GO_ON, None, trace.full_answer, trace.full_tokens + probe_tokens)


def refuse_unknown_signals(rules: Iterable[StoppingRule], traces: Iterable[Trace]) -> None:
    """Raises: CalibrationError: a rule reads a signal that no checkpoint has, and could never stop."""
    known = {name for trace in traces for checkpoint in trace.checkpoints for name in checkpoint.signals}
    unknown = sorted(frozenset().union(*(rule.reads for rule in rules)) - known - {ANSWER})
    if unknown:
        raise CalibrationError(
            f"no checkpoint has the signal {shown(unknown[0])}; there are {', '.join(sorted(known))}"
        )
