"""Step-level speculation: the draft writes, a router judges each step, the target writes those that it should.

One loop for all such policies (`policies/speculation/loop.py`); they differ in their router only
(`policies/speculation/arbitrage.py`). Per request:

* **run-ahead**: the draft is not stopped at a boundary. Steps are cut from its stream and judged while it writes
  the next ones; one that the target writes instead aborts it and goes back to what is committed.
* **verified**: the target reads a rejected step before it writes one. What it would have written itself stays, with
  its own token behind it, from where the draft goes on: an escalation costs passes where they differ, not tokens.
* **warm target** (off: what it saves, a verification reads in its one pass): while the draft writes, the target
  reads what is committed, so that it can begin at once.
* **priced**: escalate when the predicted advantage is worth the seconds that the target is predicted to take.

Source of the decision: Arbitrage (arXiv 2512.05033), algorithm 1. The loop is ours: published ones are lock-step,
and their target writes every escalated step anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from reasonrt.answers import holds_answer
from reasonrt.errors import RequestError
from reasonrt.policies.options import PolicyOptions
from reasonrt.ports import PacedEngine
from reasonrt.routers.base import Router
from reasonrt.thinking import ends_thinking
from reasonrt.types import Request, Step


@dataclass
class SpeculationOptions(PolicyOptions):
    """Options of every policy here.

    Attributes:
        threshold: escalate above this predicted advantage, in the router's unit (each policy says which).
        price: instead of `threshold`: advantage that a second of the target must bring; needs a router whose
            advantage is a probability.
        answer_threshold: for the steps that hold the answer or end the thinking, in the unit of `threshold`; None is
            half of the advantage. The stricter of the two holds.
        max_target_share: of the committed tokens, in [0, 1]; the target is not asked beyond it.
        look_ahead: steps that the draft may be ahead of the router; 0 is lock-step.
        verify: let the target read a rejected step and keep what it would have written itself. At temperature 0,
            with engines of one tokenizer and a target that has `Capability.VERIFY`; elsewhere the target writes
            the step.
        warm_target: let the target read along while the draft writes, in passes of its own.
        keep_prefix: probability in [0, 1]; where it does not verify, the target keeps a rejected step up to the first
            token of which the draft was less sure. 0 keeps nothing.
        reject_early: judge a step while it is being written, too; not where it is verified.
        start_early: first-token entropy, nats, above which the target begins its step beside the draft's.
        target: the role of the target.
    """

    threshold: float = 0.0
    price: float | None = None
    answer_threshold: float | None = None
    max_target_share: float = 1.0
    look_ahead: int = 4
    verify: bool = False
    warm_target: bool = False
    keep_prefix: float = 0.0
    reject_early: bool = False
    start_early: float | None = None
    target: str = "target"

    @property
    def engines(self) -> tuple[str, ...]:
        return ("draft", self.target)

    def __post_init__(self) -> None:
        bounds = {"threshold": 1e6, "answer_threshold": 1e6, "price": 1e6, "look_ahead": 1000, "start_early": 100}
        for name, high in (bounds | {"max_target_share": 1, "keep_prefix": 1}).items():
            value, low = getattr(self, name), -high if "threshold" in name else 0
            if value is not None and (type(value) not in (int, float) or not low <= value <= high):
                raise RequestError(f"{name} must be a number in [{low:g}, {high:g}], got {value!r}")

    def router(self, request: Request, engines: Mapping[str, PacedEngine]) -> Router:
        """The router for this request.

        Raises:
            ConfigError: there is none for these engines; the target will write alone.
        """
        raise NotImplementedError

    def advantage_at(self, threshold: float) -> float:
        """The advantage above which this threshold escalates."""
        return threshold

    def is_worth(self, advantage: float, step: Step, target_s: float | None) -> bool:
        """Whether a step of this predicted advantage goes to the target, which would take `target_s` for it."""
        bar = self.advantage_at(self.threshold)
        if self.price is not None:
            bar = self.price * (target_s or 0.0)  # unmeasured: free, and so measured
        if holds_answer(step.text) or ends_thinking(step.text):
            stricter = self.answer_threshold
            bar = min(bar, bar / 2 if stricter is None else self.advantage_at(stricter))
        return advantage > bar
