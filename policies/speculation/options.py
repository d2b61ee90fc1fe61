"""The options of step-level speculation, common to every router."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

Threshold = Annotated[float, Field(ge=-1e6, le=1e6)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass
class SpeculationOptions:
    """Options of every policy that speculates.

    Attributes:
        threshold: escalate beyond this number of the router, in its own unit (see `reasonrt.routers.registry`); None is
            the router's default.
        max_loss: instead of `threshold`: the probability of a right end that the draft's steps of one request may cost
            together, in [0, 1]: as much as the router expects of those that the target has not read. Needs a router
            whose advantage is a probability, and a target that may be asked about each step. No unread part of a
            rejected step is kept.
        price: instead of `threshold`: the advantage that a second of the target must bring; needs a router whose
            advantage is a probability.
        answer_threshold: for the steps that hold the answer or end the thinking, in the unit of `threshold`; None is
            half of the advantage. The stricter of the two holds.
        hand_over: from the first step that is the target's to write, the target writes to the end, and the draft is
            not asked again. It verifies nothing, and so works at every temperature and across tokenizers.
        max_target_share: passes of the target for each committed token, in [0, 1]: a token that it writes is one, and
            so is each verification and each reading. The target is not asked beyond it; 1 is no bound.
        look_ahead: steps that the draft may be ahead of the router; 0 is lock-step. No bound before a hand-over.
        verify: let the target read a rejected step and keep what it would have written itself, or has drawn as well.
            With engines of one tokenizer and a target that has `Capability.VERIFY`, at temperatures above 0
            `Capability.VERIFY_SAMPLED`; elsewhere the target writes the step.
        warm_target: let the target read along while the draft writes, in passes of its own.
        keep_prefix: probability in [0, 1]; where it does not verify, the target keeps a rejected step up to the first
            token of which the draft was less sure. 0 keeps nothing.
        reject_early: judge a step while it is being written, too; not where it is verified.
        start_early: first-token entropy, nats, above which the target begins its step beside the draft's.
        target: the role of the target.
    """

    threshold: Threshold | None = None
    max_loss: Share | None = None
    price: Annotated[float, Field(ge=0, le=1e6)] | None = None
    answer_threshold: Threshold | None = None
    hand_over: bool = False
    max_target_share: Share = 1.0
    look_ahead: Annotated[int, Field(ge=0, le=1000)] = 4
    verify: bool = False
    warm_target: bool = False
    keep_prefix: Share = 0.0
    reject_early: bool = False
    start_early: Annotated[float, Field(ge=0, le=100)] | None = None
    target: Annotated[str, Field(min_length=1)] = "target"

    def __post_init__(self) -> None:
        if self.hand_over and self.max_target_share < 1:
            raise ValueError("a target that writes to the end keeps no max_target_share; leave it out, or hand_over")
        if self.max_loss is not None and self.max_target_share < 1:  # steps would go unread, whatever they lose
            raise ValueError("a target that is not always asked keeps no max_loss; leave it out, or max_target_share")
        if self.max_loss is not None and self.price is not None:
            raise ValueError("max_loss and price both take the place of threshold; leave one of them out")
