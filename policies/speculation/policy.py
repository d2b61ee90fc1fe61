"""Step-level speculation: the draft writes, a router judges each step, the target writes those that it should.

One loop for all such policies (`policies/speculation/loop.py`); they differ in their router alone, a row of
`routers/registry.py`. Per request:

* **run-ahead**: the draft is not stopped at a boundary. Steps are cut from its stream and judged while it writes
  the next ones; one that the target writes instead aborts it and goes back to what is committed.
* **verified**: the target reads a rejected step before it writes one. What it would have written itself stays, with
  its own token after it, from where the draft continues: an escalation costs passes where they differ, not tokens.
* **warm target** (off: what it saves, a verification reads in its one pass): while the draft writes, the target
  reads what is committed, so that it can begin immediately.
* **handed over** (`hand_over`): one draft, gated step by step; from the first step that does not pass, the target
  writes to the end, at its best with token-level speculation of its own. Where all pass, it never reads the problem.
* **priced**: escalate when the predicted advantage is worth the seconds that the target is predicted to take.

Source of the decision: Arbitrage (arXiv 2512.05033), algorithm 1. The loop is ours: published ones are lock-step,
and their target writes every escalated step anew.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Self

from reasonrt.answers import holds_answer
from reasonrt.policies.options import read_together, settings_of
from reasonrt.policies.speculation.loop import SpeculationLoop, Tally
from reasonrt.policies.speculation.options import SpeculationOptions
from reasonrt.ports import Engine, Engines, Policy
from reasonrt.routers.base import Router
from reasonrt.routers.registry import RouterKind
from reasonrt.thinking import ends_thinking
from reasonrt.transcript import Transcript
from reasonrt.types import PolicyEvent, Request, Step


@dataclass
class Speculation(Policy):
    """Speculation with one kind of router.

    Attributes:
        kind: the router's row in the registry.
        options: of the loop, with a threshold.
        router_options: the router's own, of the type `kind.options`.
    """

    kind: RouterKind
    options: SpeculationOptions
    router_options: Any

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        raise NotImplementedError("its router is not an option; see SpeculationKind")

    @property
    def engines(self) -> tuple[str, ...]:
        return ("draft", self.options.target)

    @property
    def replaceable_engines(self) -> tuple[str, ...]:
        """The target writes alone where there is no room for the draft."""
        return ("draft",)

    @property
    def optional_engines(self) -> tuple[str, ...]:
        return self.kind.roles(self.router_options)

    @property
    def gives_logprobs(self) -> bool:
        return True

    @property
    def settings(self) -> Mapping[str, Any]:
        return settings_of(self.options, self.router_options)

    def check(self, engines: Mapping[str, Engine]) -> None:
        self.router(Request.ask("?"), engines)

    def router(self, request: Request, engines: Mapping[str, Engine]) -> Router:
        """The router for this request.

        Raises:
            ConfigError: there is none for these engines; the target will write alone.
        """
        return self.kind.build(self.router_options, request, self._with_target(engines))

    def is_worth(self, advantage: float, step: Step, target_s: float | None, expected_loss: float = 0.0) -> bool:
        """Whether a step of this predicted advantage goes to the target; see `loop.Terms`."""
        options = self.options
        bar = self.kind.advantage_at(self.kind.threshold if options.threshold is None else options.threshold)
        if options.max_loss is not None:
            bar = round(options.max_loss - expected_loss, 6)  # what is rounded to hundredths adds up to such
        if options.price is not None:
            bar = options.price * (target_s or 0.0)  # unmeasured: free, and so measured
        if holds_answer(step.text) or ends_thinking(step.text):
            stricter = options.answer_threshold
            bar = min(bar, bar / 2 if stricter is None else self.kind.advantage_at(stricter))
        return advantage > bar

    def hands_over(self, transcript: Transcript, tally: Tally) -> bool:
        """Whether the target writes to the end from a step on that is the target's to write."""
        return self.options.hand_over

    async def solve(self, request: Request, engines: Engines) -> AsyncGenerator[PolicyEvent, None]:
        loop = SpeculationLoop(self, request, self._with_target(engines), engines.told)
        engines.at_limit(loop.details, loop.warnings)
        async with aclosing(loop.events()) as events:
            async for event in events:
                yield event

    def _with_target(self, engines: Mapping[str, Any]) -> dict[str, Any]:
        return {**engines, "target": engines[self.options.target]} if self.options.target in engines else {**engines}


@dataclass(frozen=True)
class SpeculationKind:
    """The policies that speculate with one kind of router; in the place of a class of policies.

    Attributes:
        name: of the router.
    """

    name: str
    kind: RouterKind

    def option_types(self) -> tuple[type, ...]:
        return (SpeculationOptions, self.kind.options)

    def from_options(self, options: Mapping[str, Any]) -> Speculation:
        """Raises: RequestError: an option that is not known, or a value that is not allowed."""
        given = {**self.kind.defaults, **options}
        return Speculation(self.kind, *read_together(self.name, given, SpeculationOptions, self.kind.options))
