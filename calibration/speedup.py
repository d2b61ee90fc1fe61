"""What step-level speculation can gain, from the speeds of its parts.

Per committed token, in units of the target's time for one: the draft writes every token, and those that are thrown
away; the target writes the share that was not accepted and reads the steps that it verifies; routers and hand-overs
cost what they cost. Lock-step: S = 1 / (c + rho + (1 - a)); with run-ahead the router is off the path of what it
accepts.
"""

from dataclasses import dataclass

from reasonrt.errors import CalibrationError


@dataclass(frozen=True, slots=True)
class Parts:
    """The measured parts of one pair at one concurrency; seconds are of wall clock.

    Attributes:
        draft_s, target_s: per token, each model alone.
        accepted_share: of the committed tokens, written by the draft, in [0, 1].
        step_tokens: mean length of a step.
        wasted_share: draft tokens thrown away per committed token.
        router_s: per judged step.
        draft_start_s, target_start_s: from asking an engine to its first token, beyond the token's own time.
        verified_share: passes of the target over a drafted step, per step.
        verify_s: of one such pass.
        length_ratio: committed tokens over those of the target alone, for the same problems.
        is_run_ahead: whether the draft writes on while its steps are judged.
    """

    draft_s: float
    target_s: float
    accepted_share: float
    step_tokens: float
    wasted_share: float = 0.0
    router_s: float = 0.0
    draft_start_s: float = 0.0
    target_start_s: float = 0.0
    verified_share: float = 0.0
    verify_s: float = 0.0
    length_ratio: float = 1.0
    is_run_ahead: bool = True

    def __post_init__(self) -> None:
        if not (self.draft_s > 0 and self.target_s > 0 and self.step_tokens > 0 and 0 <= self.accepted_share <= 1):
            raise CalibrationError(
                f"speeds and step length must be positive and accepted_share in [0, 1], got {self.draft_s:g}, "
                f"{self.target_s:g}, {self.step_tokens:g} and {self.accepted_share:g}"
            )


def predicted_speedup(parts: Parts) -> float:
    """How many times as fast as the target alone the pair is predicted to be."""
    rejected = 1.0 - parts.accepted_share
    judged_share = rejected if parts.is_run_ahead else 1.0  # of the steps, those that wait for their router
    draft_starts = rejected if parts.is_run_ahead else 1.0
    per_step_s = judged_share * parts.router_s + draft_starts * parts.draft_start_s + rejected * parts.target_start_s
    per_step_s += parts.verified_share * parts.verify_s
    per_token_s = parts.draft_s * (parts.accepted_share + parts.wasted_share) + rejected * parts.target_s
    return parts.target_s / (parts.length_ratio * (per_token_s + per_step_s / parts.step_tokens))


def break_even_share(parts: Parts) -> float | None:
    """The accepted share from which the pair is as fast as the target; None where no share is enough.

    A rejected step is thrown away whole, so `wasted_share` is taken as the rejected share here.
    """
    from dataclasses import replace

    def gain(share: float) -> float:
        return predicted_speedup(replace(parts, accepted_share=share, wasted_share=1.0 - share)) - 1.0

    if gain(1.0) <= 0:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-6:  # the gain grows with the share
        middle = (low + high) / 2
        low, high = (low, middle) if gain(middle) > 0 else (middle, high)
    return high
